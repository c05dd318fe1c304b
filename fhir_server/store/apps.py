"""Registered apps on MongoDB: programs that obtain tokens by OAuth, as the authorization server knows them.

* `apps`  `_id` client id. Beside each app stands the client of the same id in `clients`, for which tokens are made

Only the SHA-256 of a client secret is stored: it has 256 bits from the operating system, so there is nothing to guess.
"""

from dataclasses import asdict, dataclass
from typing import Any

from pymongo import ASCENDING, IndexModel, WriteConcern
from pymongo.database import Database

INDEXES = [
    IndexModel([("organization", ASCENDING)], name="organization"),
    IndexModel([("origins", ASCENDING)], name="origins"),
]


@dataclass(frozen=True, slots=True)
class App:
    """What an operator, or the app itself where that is allowed, registered.

    organization      the subscriber that it acts for, "Organization/..."
    method            how it proves who it is at the token endpoint: none, client_secret_basic or private_key_jwt
    grant_types       of authorization_code, refresh_token and client_credentials
    scope             the most that it can be granted, separated by blanks
    jwks, jwks_uri    its public keys, or where they are; for private_key_jwt, one of the two
    redirect_uris     compared character by character
    launch_uri        where a launch from here sends the browser, "" if it cannot be launched
    origins           of the pages that may call this server from a browser
    """

    client_id: str
    organization: str
    name: str
    method: str
    grant_types: tuple[str, ...]
    scope: str
    redirect_uris: tuple[str, ...] = ()
    launch_uri: str = ""
    secret_sha256: str = ""
    jwks: str = ""  # as JSON: keys hold members that no database field should have
    jwks_uri: str = ""
    origins: tuple[str, ...] = ()
    registration_sha256: str = ""


class Apps:
    """The register of apps."""

    def __init__(self, database: Database[dict[str, Any]]) -> None:
        # A registration that was confirmed must survive, and a removal must never be rolled back.
        self._apps = database.get_collection("apps", write_concern=WriteConcern(w="majority", j=True))

    def ensure_indexes(self) -> None:
        """Create the indexes; those that exist are left alone."""
        self._apps.create_indexes(INDEXES)

    def put(self, app: App) -> None:
        """Register an app, or replace the one of the same id."""
        document = asdict(app)
        self._apps.replace_one({"_id": document.pop("client_id")}, document, upsert=True)

    def find(self, client_id: str) -> App | None:
        """Return the app of this id, None when there is none."""
        document = self._apps.find_one({"_id": client_id})
        return _app(document) if document else None

    def all(self) -> list[App]:
        """Return every app, by id."""
        return [_app(document) for document in self._apps.find().sort("_id")]

    def remove(self, client_id: str) -> bool:
        """Forget an app; say whether there was one."""
        return bool(self._apps.delete_one({"_id": client_id}).deleted_count)

    def is_origin(self, origin: str) -> bool:
        """Say whether a page of this origin belongs to a registered app."""
        return self._apps.find_one({"origins": origin}, {"_id": 1}) is not None


def _app(document: dict[str, Any]) -> App:
    values: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in document.items() if name != "_id"
    }
    return App(client_id=document["_id"], **values)
