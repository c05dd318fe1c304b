"""Sessions of people: who is signed in in which browser, and for how long."""

from collections.abc import Callable
from datetime import datetime, timedelta

from fhir_server.access.people import People, Person
from fhir_server.store.sessions import Session, Sessions

__all__ = ["Session", "SignIn"]


class SignIn:
    """Begins, finds and ends sessions."""

    def __init__(self, people: People, sessions: Sessions, *, life: timedelta, clock: Callable[[], datetime]) -> None:
        self._people = people
        self._sessions = sessions
        self._life = life
        self._clock = clock

    def begin(self, person: Person, agent: str) -> str:
        """Begin a session of a person who proved who it is; return what the browser keeps."""
        now = self._clock()
        return self._sessions.begin(person.login, person.stamp, now=now, expires=now + self._life, agent=agent)

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
        return (person, session) if person and session and person.stamp == session.stamp else None
