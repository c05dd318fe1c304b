"""Sessions of people: who is signed in in which browser, and for how long."""

from collections.abc import Callable, Collection
from datetime import datetime, timedelta

from fhir_server.access.people import People, Person
from fhir_server.store.sessions import Session, Sessions

__all__ = ["Session", "SignIn"]

FRESH = timedelta(minutes=5)


class SignIn:
    """Begins, finds and ends sessions.

    strong   roles of which a session without a second factor is none
    """

    def __init__(
        self,
        people: People,
        sessions: Sessions,
        *,
        life: timedelta,
        strong: Collection[str],
        clock: Callable[[], datetime],
    ) -> None:
        self._strong = frozenset(strong)
        self._people = people
        self._sessions = sessions
        self._life = life
        self._clock = clock

    def begin(self, person: Person, agent: str, *, factor: str) -> str:
        """Begin a session of a person who proved who it is; return what the browser keeps.

        factor   by which second factor, "" by the password alone
        """
        now = self._clock()
        return self._sessions.begin(
            person.login, person.stamp, now=now, expires=now + self._life, agent=agent, factor=factor
        )

    def needs_second_factor(self, person: Person) -> bool:
        """Say whether the password alone is not enough for the role of a person."""
        return person.role in self._strong

    def is_fresh(self, session: Session) -> bool:
        """Say whether somebody signed in just now, as to change how to sign in asks for."""
        return self._clock() - session.began < FRESH

    def is_freshly_proved(self, person: Person, session: Session) -> bool:
        """Say whether a person signed in just now, with a second factor if there is one."""
        return self.is_fresh(session) and (bool(session.factor) or not person.has_second_factor)

    def of_browser(self, value: str) -> tuple[Person, Session] | None:
        """Return who is signed in in a browser, None when nobody is (any more)."""
        return self._valid(self._sessions.find(value, now=self._clock()))

    def is_going_on(self, key: str) -> bool:
        """Say whether a session has not ended."""
        return self._valid(self._sessions.at(key, now=self._clock())) is not None

    def of(self, person: Person) -> list[Session]:
        """Return the sessions of a person, newest first."""
        return self._sessions.of(person.login, now=self._clock())

    def end(self, person: Person, key: str) -> bool:
        """End one session of a person; say whether there was one."""
        return self._sessions.end(key, login=person.login)

    def _valid(self, session: Session | None) -> tuple[Person, Session] | None:
        person = self._people.find(session.login) if session else None
        if person is None or session is None or person.stamp != session.stamp:
            return None
        return None if self.needs_second_factor(person) and not session.factor else (person, session)
