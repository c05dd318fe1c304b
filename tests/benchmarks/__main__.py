"""Measure this server beside its peer, on the same machine, in one run, and print the ratios.

`python -m tests.benchmarks --help` names the parts; `docs/quality/speed.md` has figures of all of them.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.benchmarks import (
    checks,
    doors,
    films,
    grants,
    growth,
    processing,
    qido,
    retrieval,
    searches,
    stages,
    storm,
    tasks,
    tls,
    writes,
)

FIRST = ("stages", "doors")  # what is measured where nothing is named


@dataclass(frozen=True, slots=True)
class Part:
    """A measurement: `run` takes an empty folder and, where there is a `number`, another one instead of it."""

    run: Callable[..., None]
    what: str
    number: int | None = None


PARTS = {
    "stages": Part(stages.run, "where the time of an ingest goes, on N slices", stages.COUNT),
    "doors": Part(doors.run, "the doors with N slices, beside Orthanc where it is installed", doors.COUNT),
    "growth": Part(growth.run, "cost of an instance while the store grows to N", growth.TOTAL),
    "tasks": Part(tasks.run, "what the engine of Tasks costs, on N orders", tasks.COUNT),
    "processing": Part(
        processing.run, "what MPR and MIP of N slices cost beyond decoding and computing", processing.COUNT
    ),
    "searches": Part(searches.run, "FHIR searches at 10,000 and at N ImagingStudies", searches.LARGE),
    "grants": Part(grants.run, "what it costs to see less than all, among N studies", grants.LARGE),
    "checks": Part(checks.run, "what it costs to know who asks, for each kind of credential"),
    "qido": Part(qido.run, "QIDO-RS at 1,000 and at N studies", qido.LARGE),
    "writes": Part(writes.run, "what a create costs beside a bare transaction, on N of each", writes.COUNT),
    "retrieval": Part(retrieval.run, "a study of N instances, many clients, pictures", retrieval.COUNT),
    "storm": Part(storm.run, "frames while fifty clients sign in, N seconds in turn", storm.SECONDS),
    "tls": Part(tls.run, "N slices by HTTP and by HTTPS", tls.SLICES),
    "films": Part(
        films.run, "what composing a film costs in N rounds, and how busy an agent keeps its printer", films.ROUNDS
    ),
}


def main(arguments: Sequence[str]) -> None:
    """Measure the part that is named, or the `FIRST` ones."""
    asked = _parser().parse_args(arguments)
    numbers = [asked.number] if getattr(asked, "number", None) else []
    for name in [asked.part] if asked.part else FIRST:
        with tempfile.TemporaryDirectory(prefix=f"bench-{name}-") as folder:
            PARTS[name].run(Path(folder), *numbers)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m tests.benchmarks",
        description="Measure this server and print ratios. Each part has a folder and a database of its own.",
        epilog="`PART --help` tells what N is where none is given.",
    )
    parts = parser.add_subparsers(dest="part", metavar="PART", help=f"without one: {' and '.join(FIRST)}")
    for name, part in PARTS.items():
        one = parts.add_parser(name, help=part.what, description=part.what[0].upper() + part.what[1:] + ".")
        if part.number is not None:
            one.add_argument(
                "number", metavar="N", nargs="?", type=_positive, default=part.number, help=f"default {part.number:,}"
            )
    return parser


def _positive(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"a whole number from 1 is needed, not {text}")
    return int(text)


if __name__ == "__main__":
    main(sys.argv[1:])
