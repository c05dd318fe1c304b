"""The tables of `docs/reference/dicomweb-conformance.md` that follow from the code.

The page is written by hand but for what stands between `<!-- table: NAME -->` and `<!-- end -->`. This command writes
those tables again: `python -m fhir_server.dicomweb_page docs/reference/dicomweb-conformance.md`.
"""

import re
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from pydicom.datadict import dictionary_description, dictionary_VR

from fhir_server.storage_checks import CHECKS
from fhir_server.web import qido, stow
from fhir_server.web.capabilities import RESOURCES
from fhir_server.web.dicom_forms import NATIVE, Pixels, written_syntaxes
from imaging.archive import query
from imaging.codecs import codecs
from imaging.dicomweb import Level
from imaging.dicomweb.negotiation import MEDIA_TYPE_OF_TRANSFER_SYNTAX

MATCHING = {
    # VR               how the values are matched; PS3.4 C.2.2.2
    "UI": "one, or a list",
    "DA": "one, or a range",
    "TM": "a range; one time is the period that it names",
    "PN": "text, wildcards, fuzzy",
    "SQ": "what is inside, by a path",
    "US": "number",
    "IS": "number",
    "CS": "text, wildcards, or a list",
}
TEXT = "text, wildcards"

_TABLE = re.compile(r"(<!-- table: ([\w-]+) -->\n).*?(<!-- end -->\n)", re.DOTALL)


def renewed(page: str) -> str:
    """Return the page with its tables as the code has them. Raises KeyError for a table that does not exist."""
    return _TABLE.sub(lambda found: f"{found[1]}\n{TABLES[found[2]]()}\n{found[3]}", page)


def tables_of(page: str) -> list[str]:
    """Return the names of the tables on a page, in order."""
    return [found[1] for found in _TABLE.findall(page)]


def _media_types() -> str:
    rows = ((resource, ", ".join(f"`{each}`" for each in offers)) for resource, offers in RESOURCES.items())
    return _table(("resource", "media types, the default first"), rows)


def _transfer_syntaxes() -> str:
    files, frames = (*NATIVE, *written_syntaxes(Pixels.USUAL)), RESOURCES["one frame"][0].transfer_syntaxes
    rows = (
        (codecs.get(uid).name, f"`{uid}`", "yes", _yes(uid in files), _yes(uid in frames), _frame_type(uid, frames))
        for uid in codecs
    )
    return _table(("transfer syntax", "UID", "pixels read", "files made", "frames made", "frame media type"), rows)


def _frame_type(uid: str, made: Iterable[str]) -> str:
    media_type = MEDIA_TYPE_OF_TRANSFER_SYNTAX.get(uid, "application/octet-stream")
    return f"`{media_type}`" if uid in made else ""


def _keys(level: Level) -> Callable[[], str]:
    def table() -> str:
        tags = sorted(query.matched(level) | query.returned(level) | {qido.RETRIEVE_URL})
        given = query.returned(level) | {qido.RETRIEVE_URL}
        rows = (
            (dictionary_description(tag), f"({tag[:4]},{tag[4:]})", matching(level, tag), _yes(tag in given))
            for tag in tags
        )
        return _table(("attribute", "tag", "matched by", "returned"), rows)

    return table


def matching(level: Level, tag: str) -> str:
    """Return how a key is matched at a level, "" where it cannot be."""
    return MATCHING.get(dictionary_VR(tag)[:2], TEXT) if tag in query.matched(level) else ""


def _failure_reasons() -> str:
    by_code: dict[int, list[str]] = {}
    for category, code in stow.FAILURE_REASON.items():
        by_code.setdefault(code, []).append(f"`{category}`")
    by_code[stow.OTHER_STUDY] = ["`conflict` with the study of the address"]
    by_code[stow.PROCESSING_FAILURE] = ["any other"]
    rows = ((f"`0x{code:04X}` ({code})", ", ".join(names)) for code, names in sorted(by_code.items()))
    return _table(("Failure Reason (0008,1197)", "category of the error"), rows)


def _checks() -> str:
    rows = (
        (f"`{name}`", check.title, f"`0x{check.failure_reason:04X}`", f"`0x{check.warning_reason:04X}`")
        for name, check in CHECKS.items()
    )
    return _table(("check", "what has to be", "Failure Reason", "Warning Reason"), rows)


def _table(header: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = ["|".join(f" {cell} " if cell else " " for cell in row) for row in (header, *rows)]
    lines.insert(1, "|".join("---" for _ in header))
    return "".join(f"|{line}|\n" for line in lines)


def _yes(told: bool) -> str:
    return "yes" if told else ""


TABLES: Mapping[str, Callable[[], str]] = {
    "media-types": _media_types,
    "transfer-syntaxes": _transfer_syntaxes,
    "study-keys": _keys(Level.STUDIES),
    "series-keys": _keys(Level.SERIES),
    "instance-keys": _keys(Level.INSTANCES),
    "failure-reasons": _failure_reasons,
    "checks": _checks,
}


if __name__ == "__main__":
    for name in sys.argv[1:]:
        Path(name).write_text(renewed(Path(name).read_text()))
