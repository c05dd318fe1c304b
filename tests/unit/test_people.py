"""Who can be registered to sign in, and how passwords are kept."""

from datetime import UTC, datetime
from typing import Any

import pytest

from fhir_server.access.passwords import Passwords
from fhir_server.access.people import People, new_password
from fhir_server.store.people import Person
from imaging.errors import AppError, Category

PASSWORD = "correct horse battery"


class Register:
    """Keeps people in memory, as the store does."""

    def __init__(self) -> None:
        self.people: dict[str, Person] = {}

    def add(self, person: Person) -> bool:
        is_new = person.login not in self.people
        self.people.setdefault(person.login, person)
        return is_new


@pytest.fixture
def register() -> Register:
    return Register()


@pytest.fixture
def people(register: Any) -> People:
    return People(register, lambda: datetime(2026, 3, 1, tzinfo=UTC), Passwords(places=1))


def add(people: People, **changes: str) -> Person:
    given = {"login": "jones", "organization": "Organization/1", "name": "Dr. Jones", "role": "practitioner"}
    given |= {"fhir_user": "Practitioner/7", "password": PASSWORD, **changes}
    return people.add(given.pop("login"), **given)


def test_password_is_kept_as_argon2id_and_nothing_else(people: People, register: Register) -> None:
    add(people)

    assert register.people["jones"].password_hash.startswith("$argon2id$")
    assert PASSWORD not in repr(register.people)


def test_login_is_taken_once_however_it_is_written(people: People) -> None:
    add(people)

    with pytest.raises(AppError) as caught:
        add(people, login=" JONES ")
    assert caught.value.category is Category.CONFLICT


@pytest.mark.parametrize("reference", ["", "Organization/1", "Device/1", "Practitioner/", "Practitioner"])
def test_only_what_stands_for_people_represents_a_person(people: People, reference: str) -> None:
    with pytest.raises(AppError, match="fhirUser"):
        add(people, fhir_user=reference)


def test_patient_is_represented_by_a_patient(people: People) -> None:
    with pytest.raises(AppError, match="fhirUser"):
        add(people, role="patient")


@pytest.mark.parametrize("login", ["", "a b", "é", "x" * 101, "a/b", "$ne"])
def test_logins_are_plain(people: People, login: str) -> None:
    with pytest.raises(AppError, match="login"):
        add(people, login=login)


@pytest.mark.parametrize("password", ["", "short", "x" * 257])
def test_passwords_have_bounds(people: People, password: str) -> None:
    with pytest.raises(AppError, match="password"):
        add(people, password=password)


def test_made_passwords_can_be_used_and_differ(people: People) -> None:
    made = {new_password() for _ in range(50)}

    assert len(made) == 50
    add(people, password=made.pop())
