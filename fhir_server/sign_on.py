"""How the authorization server is put together: its stores and what depends on them. Part of the composition root."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from pymongo.database import Database

from fhir_server.access.apps import Apps
from fhir_server.access.audit import Audit
from fhir_server.access.authorization import Authorization, Lives
from fhir_server.access.emergencies import Emergencies
from fhir_server.access.grants import Grant, Role
from fhir_server.access.passwords import Passwords
from fhir_server.access.people import People, Person
from fhir_server.access.principals import Principal, Principals
from fhir_server.access.scopes import Scopes
from fhir_server.access.second_factor import SecondFactor
from fhir_server.access.security_keys import SecurityKeys
from fhir_server.access.sessions import SignIn
from fhir_server.config import Config
from fhir_server.outbound.jwks import KeySets
from fhir_server.outbound.remote import Rules
from fhir_server.store.apps import Apps as AppRegister
from fhir_server.store.credentials import Credentials
from fhir_server.store.emergencies import Emergencies as EmergencyRegister
from fhir_server.store.people import People as PeopleRegister
from fhir_server.store.repository import Repository
from fhir_server.store.secrets import secret
from fhir_server.store.sessions import Sessions
from fhir_server.store.signing_keys import SigningKeys
from fhir_server.store.tickets import Tickets

# As what a person looks for a patient before any app has a token.
_TO_PICK = Scopes.parse("user/Patient.rs user/Encounter.rs user/ImagingStudy.rs")
# As what it looks at pages of resources; what its contracts and its role allow is less.
_TO_READ = Scopes.parse("user/*.rs")
_A_MOMENT = timedelta(minutes=1)


@dataclass(frozen=True, slots=True)
class SignOn:
    """What lets people and apps in."""

    apps: Apps
    people: People
    sign_in: SignIn
    second_factor: SecondFactor
    security_keys: SecurityKeys
    authorization: Authorization
    emergencies: Emergencies
    principals: Principals
    own: Repository
    clock: Callable[[], datetime]

    def add_person(
        self, login: str, *, organization: str, name: str, role: str, fhir_user: str, password: str
    ) -> Person:
        """Register a person, represented by a new Practitioner where no resource is named. Raises INVALID, CONFLICT.

        Raises NOT_FOUND when the resource that is named is not here.
        """
        if fhir_user:
            kind, _, identifier = fhir_user.partition("/")
            self.own.read(kind, identifier)
        elif role != Role.PATIENT:
            practitioner = {"resourceType": "Practitioner", "active": True, "name": [{"text": name.strip() or login}]}
            fhir_user = self.own.create(practitioner).key
        return self.people.add(
            login, organization=organization, name=name, role=role, fhir_user=fhir_user, password=password
        )

    def shut_out(self, login: str) -> None:
        """Shut a person out: sessions end, and so does all that apps were authorised to. Raises NOT_FOUND."""
        self.authorization.end_all_of(self.people.disable(login).login)

    def set_password(self, login: str, password: str) -> None:
        """Give a person another password; what was got with the one before ends. Raises NOT_FOUND, INVALID."""
        self.authorization.end_all_of(self.people.set_password(login, password).login)

    def principal_of(self, person: Person) -> Principal:
        """Return the principal as which a person looks at patients. Raises FORBIDDEN for a suspended subscriber."""
        return self._acting(person, "sign-in", _TO_PICK)

    def reader(self, person: Person) -> Principal:
        """Return the principal as which a person reads in a browser. Raises FORBIDDEN for a suspended subscriber."""
        return self._acting(person, "browser", _TO_READ)

    def _acting(self, person: Person, client: str, scopes: Scopes) -> Principal:
        patient = person.fhir_user if person.role == Role.PATIENT else ""
        grant = Grant(
            client,
            scopes,
            self.clock() + _A_MOMENT,
            patient=patient,
            user=person.fhir_user,
            role=Role(person.role),
        )
        return replace(self.principals.acting_for(person.organization).holding(grant), client_id=client)


def stores(database: Database[Any]) -> list[Any]:
    """Return the stores whose indexes are made when the server is."""
    return [each(database) for each in (AppRegister, PeopleRegister, Sessions, Tickets, EmergencyRegister)]


def sign_on(
    config: Config,
    database: Database[Any],
    principals: Principals,
    own: Repository,
    audit: Audit,
    *,
    rules: Callable[[], Rules],
    clock: Callable[[], datetime],
) -> SignOn:
    """Return what lets people and apps in, on a database."""
    base_url = config["web.base_url"]
    # Who waits for a hash keeps a thread; half of them are left to images.
    passwords = Passwords(places=max(1, config["web.threads"] // 2))
    people = People(PeopleRegister(database), clock, passwords)
    apps = Apps(AppRegister(database), Credentials(database), principals.is_active)
    sign_in = SignIn(
        people,
        Sessions(database),
        life=timedelta(hours=config["smart.session_hours"]),
        strong=config["smart.second_factor_roles"],
        clock=clock,
    )
    tickets, subject_key = Tickets(database), secret(database, "subjects")
    security_keys = SecurityKeys(
        people,
        tickets,
        base_url=base_url,
        user_verification=config["smart.user_verification"],
        handle_key=subject_key,
        clock=clock,
    )
    lives = Lives(
        token=timedelta(seconds=config["smart.token_s"]),
        backend_token=timedelta(seconds=config["smart.backend_token_s"]),
        refresh=timedelta(days=config["smart.refresh_days"]),
        emergency=timedelta(seconds=config["access.emergency_s"]),
    )
    authorization = Authorization(
        principals,
        apps,
        people,
        tickets,
        SigningKeys(database, rotated_after=timedelta(days=config["smart.key_days"]), clock=clock),
        key_sets=KeySets(rules),
        subject_key=subject_key,
        issuer=base_url,
        fhir_url=f"{base_url}/fhir",
        lives=lives,
        is_session=sign_in.is_going_on,
        clock=clock,
    )
    emergencies = Emergencies(
        principals,
        EmergencyRegister(database),
        own,
        audit,
        per_day=config["access.emergencies_per_day"],
        life=lives.emergency,
        end_family=authorization.end,
        clock=clock,
    )
    return SignOn(
        apps=apps,
        people=people,
        sign_in=sign_in,
        second_factor=SecondFactor(people, clock),
        security_keys=security_keys,
        authorization=authorization,
        emergencies=emergencies,
        principals=principals,
        own=own,
        clock=clock,
    )
