"""Writes docs/quality/corpus.md: what became of every real file at hand, and whether it comes back byte for byte.

python -m tests.support.corpus_report > docs/quality/corpus.md
"""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from pydicom.uid import UID

from imaging.dataset import read
from imaging.errors import AppError
from imaging.transcode import Encoded, encode, rebuild
from tests.support.corpus import corpus

PACKAGES = ("pydicom", "pydicom-data", "deid-data")
WHY = {
    "": "re-encoded without loss as HTJ2K, every frame decoded again and compared",
    "already-jpeg-2000": "lossless JPEG 2000 already; kept as received",
    "lossy": "lossy when it came; kept as received, never compressed a second time",
    "no-pixel-data": "a document, plan, waveform or the like; kept as received",
    "one-bit-pixels": "one bit a pixel, which no JPEG 2000 transfer syntax allows (PS3.5 8.2.4); kept as received",
}
ENVELOPES = {
    "same": "the stored file with its own preamble",
    "native": "rebuilt: received header, decoded pixels",
    "file": "the received file, kept beside the stored one",
}


@dataclass(frozen=True)
class Line:
    """What became of one file; sizes in bytes."""

    name: str
    syntax: str
    pixels: str
    kept_reason: str
    envelope: str
    received: int
    stored: int


def stored_line(path: Path, data: bytes) -> Line:
    """Return the line of a file that can be read. Fails when it does not come back byte for byte."""
    received = read(data)
    encoded = encode(received)
    assert _comes_back(encoded, data), f"{path.name} does not come back"
    beside = len(data) if encoded.envelope.kind == "file" else 0
    syntax = UID(received.transfer_syntax_uid).name
    return Line(
        path.name,
        syntax,
        _pixels(encoded),
        encoded.kept_reason,
        encoded.envelope.kind,
        len(data),
        encoded.size + beside,
    )


def _comes_back(encoded: Encoded, data: bytes) -> bool:
    if encoded.envelope.kind == "file":
        return True  # kept whole, under its own digest
    return b"".join(rebuild(encoded.envelope, b"".join(encoded.parts), encoded.layout, encoded.frames)) == data


def _pixels(encoded: Encoded) -> str:
    layout = encoded.layout
    if layout is None:
        return ""
    frames = f" x {layout.number_of_frames}" if layout.number_of_frames != 1 else ""
    sign = "s" if layout.is_signed else "u"
    colour = f" x {layout.samples_per_pixel}" if layout.samples_per_pixel > 1 else ""
    return f"{layout.rows} x {layout.columns}{colour}{frames}, {sign}{layout.bits_stored}/{layout.bits_allocated}"


def report() -> Iterator[str]:
    """Yield the lines of the page."""
    lines, refused = [], []
    for path in corpus():
        data = path.read_bytes()
        try:
            lines.append(stored_line(path, data))
        except AppError as error:
            refused.append((path.name, error.message))
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in PACKAGES)
    yield "# What real files become"
    yield ""
    yield f"Every DICOM file of the packages {versions} ({len(lines) + len(refused)} files) went in and came out."
    yield f"{len(lines)} were stored; each came back byte for byte. {len(refused)} were refused, each with its reason."
    yield "`python -m tests.support.corpus_report` writes this page; `tests/unit/test_corpus.py` checks the claim."
    yield ""
    yield from _summary(lines)
    yield from _files(lines)
    yield from ("", "## Refused", "", "| file | reason |", "|---|---|")
    yield from (f"| {name} | {reason} |" for name, reason in refused)


def _summary(lines: list[Line]) -> Iterator[str]:
    yield "| stored how | the received file is | files | MB received | MB stored | ratio |"
    yield "|---|---|--:|--:|--:|--:|"
    groups: dict[tuple[str, str], list[Line]] = defaultdict(list)
    for line in lines:
        groups[line.kept_reason, line.envelope].append(line)
    for (reason, envelope), some in sorted(groups.items(), key=lambda item: -len(item[1])):
        received, stored = (sum(getattr(line, name) for line in some) / 1e6 for name in ("received", "stored"))
        row = (
            WHY[reason],
            ENVELOPES[envelope],
            len(some),
            f"{received:.2f}",
            f"{stored:.2f}",
            f"{received / stored:.2f}",
        )
        yield f"| {' | '.join(map(str, row))} |"


def _files(lines: list[Line]) -> Iterator[str]:
    yield from ("", "## File by file", "")
    yield "Pixels are rows x columns (x samples) (x frames), signed or unsigned, Bits Stored/Bits Allocated."
    yield from ("", "| file | received as | pixels | stored | bytes | stored bytes |", "|---|---|---|---|--:|--:|")
    for line in sorted(lines, key=lambda each: (each.name, each.received)):
        how = line.kept_reason or ("HTJ2K" if line.envelope == "native" else "HTJ2K, received file beside it")
        yield f"| {line.name} | {line.syntax} | {line.pixels} | {how} | {line.received:,} | {line.stored:,} |"


if __name__ == "__main__":
    for each in report():
        print(each)
