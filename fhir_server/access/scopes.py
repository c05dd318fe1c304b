"""The grammar of SMART scopes, versions 1 and 2: what a token may be asked for, written, compared and narrowed.

Pure. A resource scope is `context/Type.permissions?parameter=value`, such as `patient/ImagingStudy.rs?modality=CT`;
`.read`, `.write` and `.*` of version 1 mean `rs`, `cud` and `cruds`. What a scope lets a client see is compiled in
`policy`.   Source: SMART App Launch 2.2, scopes and launch context; FHIR R4 search for what stands behind the `?`.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from functools import lru_cache
from itertools import product
from urllib.parse import parse_qsl, quote

from fhir_server.model.criteria import Clause, clause
from fhir_server.model.definitions import parameters
from fhir_server.model.resources import RESOURCES
from imaging.errors import AppError, Category

LONGEST = 8_192  # characters of all scopes of a request
MOST = 200  # scopes of a request
MOST_CRITERIA = 10  # behind the `?` of one scope
ANY = "*"

_WORDS = {"read": "rs", "write": "cud", "*": "cruds"}  # of version 1
_WORD_OF = {permissions: word for word, permissions in _WORDS.items()}
_FORM = re.compile(r"(patient|user|system)/(\*|[A-Z][A-Za-z]*)\.([a-z]+|\*)(?:\?(.+))?", re.DOTALL)
_IN_ORDER = re.compile(r"c?r?u?d?s?")
# Scopes that say something other than which resources: launch context, sign-in, how long.
_OTHER = re.compile(r"openid|fhirUser|profile|offline_access|online_access|launch(?:/[a-z]+)?(?:\?role=[^\s]{1,200})?")


class Context(StrEnum):
    """On whose behalf a scope holds."""

    PATIENT = "patient"  # of the one patient that the token is about
    USER = "user"  # as far as the user who signed in may go
    SYSTEM = "system"  # of a program without a user


class Permission(StrEnum):
    """What may be done. Source: SMART 2.2, scopes for requesting FHIR resources."""

    CREATE = "c"
    READ = "r"  # read, vread and the history of one resource
    UPDATE = "u"  # update and patch
    DELETE = "d"
    SEARCH = "s"  # search and the history of a type


ALL = "".join(Permission)


@dataclass(frozen=True, slots=True)
class ResourceScope:
    """One scope about resources.

    type         resource type, `*` for every one
    permissions  some of `cruds`, in this order
    criteria     search criteria that resources have to meet, (name, value), sorted; values not yet interpreted
    is_v1        whether it is written `.read`, `.write` or `.*`; means nothing
    """

    context: Context
    type: str
    permissions: str
    criteria: tuple[tuple[str, str], ...] = ()
    is_v1: bool = field(default=False, compare=False)

    def __str__(self) -> str:
        word = _WORD_OF.get(self.permissions, "") if self.is_v1 and not self.criteria else ""
        query = "&".join(f"{quote(name, safe=':')}={quote(value, safe=_PLAIN)}" for name, value in self.criteria)
        return f"{self.context}/{self.type}.{word or self.permissions}" + (f"?{query}" if query else "")

    def covers(self, other: "ResourceScope") -> bool:
        """Say whether all that the other one lets a client do this one does too."""
        return (
            self.context is other.context
            and self.type in (ANY, other.type)
            and set(self.permissions) >= set(other.permissions)
            and set(self.criteria) <= set(other.criteria)
        )

    def clauses(self, resource_type: str) -> tuple[Clause, ...] | None:
        """Return the criteria as clauses on resources of a type that it is about, None where they cannot be met.

        That is so for `*` with a parameter that the type does not have.
        """
        if any(name.partition(":")[0] not in parameters(resource_type) for name, _ in self.criteria):
            return None
        return tuple(clause(resource_type, name, value) for name, value in self.criteria)


# Characters of a value that need no escape in a scope.
_PLAIN = ":/|,$-._~"


@dataclass(frozen=True, slots=True)
class Scopes:
    """The scopes of a token or of a request, in their order, each once.

    resources   about resources
    others      `openid`, `fhirUser`, `launch/patient`, `offline_access` and the like, as written
    refused     what was written and is no scope of this server, each with the reason; means nothing
    """

    resources: tuple[ResourceScope, ...] = ()
    others: tuple[str, ...] = ()
    refused: tuple[tuple[str, str], ...] = field(default=(), compare=False)

    @classmethod
    def parse(cls, text: str) -> "Scopes":
        """Return what a `scope` parameter says. Raises INVALID for more than there may be.

        What cannot be understood is left out and stands in `refused`, so that the rest may be granted (RFC 6749 3.3).
        """
        words = list(dict.fromkeys(text.split()))
        if len(text) > LONGEST or len(words) > MOST:
            message = f"at most {MOST} scopes of together {LONGEST} characters are taken"
            raise AppError(Category.INVALID, message, where="scope")
        resources: dict[ResourceScope, None] = {}
        others, refused = [], []
        for word in words:
            if _OTHER.fullmatch(word):
                others.append(word)
                continue
            try:
                resources.setdefault(_resource_scope(word))
            except AppError as error:
                refused.append((word, error.message))
        return cls(tuple(resources), tuple(others), tuple(refused))

    def __str__(self) -> str:
        """Return the scopes as a token response has them."""
        return " ".join([*self.others, *map(str, self.resources)])

    def __and__(self, allowed: "Scopes") -> "Scopes":
        """Return what both let a client do, without what is said twice: what is asked, as far as it is allowed."""
        both = [scope for one, other in product(self.resources, allowed.resources) for scope in _both(one, other)]
        return Scopes(_without_covered(both), tuple(each for each in self.others if each in allowed.others))

    def covers(self, other: "Scopes") -> bool:
        """Say whether each of the other's scopes lies within one of these; True is sure, False may only be careful."""
        wanted = [each for scope in other.resources for each in _single(scope)]
        return set(self.others) >= set(other.others) and all(
            any(mine.covers(each) for mine in self.resources) for each in wanted
        )

    def about(self, resource_type: str, permission: Permission) -> Iterator[ResourceScope]:
        """Yield the scopes that let a client do something with resources of a type."""
        for scope in self.resources:
            if scope.type in (ANY, resource_type) and permission in scope.permissions:
                yield scope

    def has(self, name: str) -> bool:
        """Say whether a scope that is not about resources is among them, such as `openid`."""
        return name in self.others


@lru_cache(maxsize=2048)
def _resource_scope(word: str) -> ResourceScope:
    match = _FORM.fullmatch(word)
    if match is None:
        raise _invalid("it is not written context/Type.permissions")
    context, kind, permissions, query = match.groups()
    if kind != ANY and kind not in RESOURCES:
        raise _invalid(f"this server keeps no {kind[:64]} resources")
    meaning = _WORDS.get(permissions, permissions)
    if not _IN_ORDER.fullmatch(meaning):
        raise _invalid(f"permissions are some of {ALL}, in this order, or read, write, *")
    criteria = _criteria(query) if query else ()
    scope = ResourceScope(Context(context), kind, meaning, criteria, permissions in _WORDS)
    if all([scope.clauses(each) is None for each in (RESOURCES if kind == ANY else (kind,))]):
        names = ", ".join(name[:64] for name, _ in criteria)
        raise _invalid(f"no resources of this type have all of these search parameters: {names}")
    return scope


def _criteria(query: str) -> tuple[tuple[str, str], ...]:
    try:
        pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=True, errors="strict")
    except ValueError:
        raise _invalid("what follows the ? is not name=value&name=value") from None
    if len(pairs) > MOST_CRITERIA:
        raise _invalid(f"it has more than {MOST_CRITERIA} criteria")
    for name, value in pairs:
        # Criteria of a grant are judged on each resource by itself, never by what others say of it.
        if "." in name or name.startswith("_has") or name.partition(":")[2] in _LOOKED_UP:
            raise _invalid(f"{name[:64]} leads to other resources; a scope has plain criteria only")
        if not value.strip():
            raise _invalid(f"{name[:64]} has no value")
    return tuple(sorted(set(pairs)))


_LOOKED_UP = frozenset({"in", "not-in", "above", "below"})


def _both(one: ResourceScope, other: ResourceScope) -> Iterator[ResourceScope]:
    """Yield the scope that two have in common, none where they have nothing."""
    permissions = "".join(each for each in one.permissions if each in other.permissions)
    if one.context is not other.context or not permissions or ANY not in (one.type, other.type, _same(one, other)):
        return
    kind = other.type if one.type == ANY else one.type
    criteria = tuple(sorted({*one.criteria, *other.criteria}))
    yield ResourceScope(one.context, kind, permissions, criteria, one.is_v1 and permissions in _WORD_OF)


def _same(one: ResourceScope, other: ResourceScope) -> str:
    return ANY if one.type == other.type else ""


def _single(scope: ResourceScope) -> Iterator[ResourceScope]:
    for permission in scope.permissions:
        yield ResourceScope(scope.context, scope.type, permission, scope.criteria)


def _without_covered(scopes: Iterable[ResourceScope]) -> tuple[ResourceScope, ...]:
    kept: list[ResourceScope] = []
    for scope in scopes:
        if not any(each.covers(scope) for each in kept):
            kept = [each for each in kept if not scope.covers(each)] + [scope]
    return tuple(kept)


def _invalid(reason: str) -> AppError:
    return AppError(Category.INVALID, reason, where="scope")
