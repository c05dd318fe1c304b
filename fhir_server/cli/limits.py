"""How far a contract goes, on the command line: `--sees`, `--modality`, `--patient`, and the same in words."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from fhir_server.access.contracts import Limits, Term
    from fhir_server.access.principals import Principals, Subscriber

OWN, ALL = "own", "all"
_MODALITY = re.compile(r"[A-Z0-9_ ]{1,16}")  # PS3.5 6.2, CS
_PATIENT = re.compile(r"(?:Patient/)?([A-Za-z0-9\-.]{1,64})")

Command = Callable[..., Any]


def limited(command: Command) -> Command:
    """Give a command the options."""
    options = [
        click.option(
            "--sees",
            multiple=True,
            metavar="own|all|NAME",
            help="Whose images and resources: its own, everybody's, or those of the subscriber NAME as well; may be "
            "repeated  [default: own; for a subscriber that exists, as before]",
        ),
        click.option(
            "--modality", multiple=True, metavar="CODE", help="Only studies with such a series; may be repeated."
        ),
        click.option("--patient", multiple=True, metavar="ID", help="Only this Patient; may be repeated."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def limits_of(
    principals: "Principals", name: str, sees: Sequence[str], modality: Sequence[str], patient: Sequence[str]
) -> "tuple[Limits, bool]":
    """Return the limits that options give to a subscriber, and whether its own images are meant besides `whose`.

    Raises click.UsageError for what cannot be meant, NOT_FOUND for a subscriber that is not there.
    """
    from fhir_server.access.contracts import MOST_NAMED, Limits

    if max(len(sees), len(modality), len(patient)) > MOST_NAMED:
        raise click.UsageError(f"at most {MOST_NAMED} may be named by one option")
    modalities = frozenset(each.strip().upper() for each in modality)
    matches = [_PATIENT.fullmatch(each) for each in patient]
    if wrong := [each for each in modalities if not _MODALITY.fullmatch(each)]:
        raise click.UsageError(f"--modality {wrong[0]}: a code such as CT is expected")
    if not all(matches):
        raise click.UsageError("--patient: the id of a Patient is expected")
    patients = frozenset(f"Patient/{match[1]}" for match in matches if match)
    if ALL in sees and len(set(sees)) > 1:
        raise click.UsageError("--sees all leaves nothing to be named besides")
    whose = _before(principals, name) if not sees else _named(principals, sees)
    return Limits(whose, modalities, patients), whose is not None


def emergency_limits(principals: "Principals", whose: Sequence[str]) -> "Limits | None":
    """Return how far `--break-glass` goes, None where it is not given. Raises click.UsageError, NOT_FOUND."""
    from fhir_server.access.contracts import Limits

    if not whose:
        return None
    if ALL in whose and len(set(whose)) > 1:
        raise click.UsageError("--break-glass all leaves nothing to be named besides")
    return Limits(_named(principals, whose))


def _named(principals: "Principals", sees: Iterable[str]) -> frozenset[str] | None:
    names = set(sees)
    return None if ALL in names else frozenset(principals.named(each) for each in sorted(names - {OWN}))


def _before(principals: "Principals", name: str) -> frozenset[str] | None:
    """Return whose images the contract in force is about; of a new subscriber only its own.

    How far emergency access goes says nothing of that.
    """
    from fhir_server.access.contracts import Right

    there = [each for each in principals.subscribers() if each.name == name and each.terms]
    if not there:
        return frozenset()
    found = [term.limits.whose for term in there[0].terms if term.right is not Right.BREAK_GLASS]
    return None if None in found else frozenset[str]().union(*(each for each in found if each is not None))


def words_of(subscriber: "Subscriber", names: Mapping[str, str]) -> str:
    """Return in words how far a subscriber's rights go; `names` has the subscribers by reference."""
    from fhir_server.access.contracts import Right

    def words(terms: "Iterable[Term]") -> list[str]:
        return sorted(_words(each, subscriber.organization, names) for each in {term.limits for term in terms})

    usual = words(each for each in subscriber.terms if each.right is not Right.BREAK_GLASS)
    urgent = words(each for each in subscriber.terms if each.right is Right.BREAK_GLASS)
    emergency = f"; in emergencies {' or '.join(urgent)}" if urgent else ""
    kept = sorted({each.replace("_", "-") for term in subscriber.terms for each in term.keeps})
    keeping = f"; keeping {', '.join(kept)}" if kept else ""
    return "; or ".join(usual) + keeping + emergency


def _words(limits: "Limits", organization: str, names: Mapping[str, str]) -> str:
    if limits.whose is None:
        whose = ALL
    else:
        whose = ", ".join([OWN, *sorted(names.get(each, each) for each in limits.whose - {organization})])
    parts = [sorted(limits.modalities), sorted(limits.patients)]
    return " ".join([whose, *(f"({', '.join(part)})" for part in parts if part)])
