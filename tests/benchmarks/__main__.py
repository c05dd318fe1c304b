"""Measure this server beside its peer, on the same machine, in one run, and print the ratios.

python -m tests.benchmarks                     everything
python -m tests.benchmarks doors               the doors, beside Orthanc where it is installed
python -m tests.benchmarks stages              where the time of an ingest goes
python -m tests.benchmarks growth [N]          cost of an instance while the store grows to N (default 100,000)
python -m tests.benchmarks tasks [N]           what the engine of Tasks costs, on N orders (default 1,000)
python -m tests.benchmarks processing [N]      what MPR and MIP of N slices cost beyond decoding and computing
python -m tests.benchmarks searches [N]        FHIR searches at 10,000 and at N ImagingStudies (default 100,000)
python -m tests.benchmarks grants [N]          what it costs to see less than all, among N studies (default 100,000)
python -m tests.benchmarks checks              what it costs to know who asks, for each kind of credential
python -m tests.benchmarks qido [N]            QIDO-RS at 1,000 and at N studies (default 100,000)
python -m tests.benchmarks writes [N]          what a create costs beside a bare transaction, on N of each
python -m tests.benchmarks retrieval [N]       a study of N instances (default 5,000), many clients, pictures
python -m tests.benchmarks storm [N]           frames while fifty clients sign in, N seconds in turn (default 8)
python -m tests.benchmarks tls [N]             N slices by HTTP and by HTTPS (default 100)
python -m tests.benchmarks films               what composing a film costs, and how busy an agent keeps its printer
"""

import sys
import tempfile
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

PARTS = {
    "stages": stages.run,
    "doors": doors.run,
    "growth": growth.run,
    "tasks": tasks.run,
    "processing": processing.run,
    "searches": searches.run,
    "writes": writes.run,
    "qido": qido.run,
    "films": films.run,
    "grants": grants.run,
    "checks": checks.run,
    "retrieval": retrieval.run,
    "tls": tls.run,
    "storm": storm.run,
}


def main(arguments: list[str]) -> None:
    names = [name for name in arguments if name in PARTS] or ["stages", "doors"]
    numbers = [int(each) for each in arguments if each.isdigit()]
    for name in names:
        with tempfile.TemporaryDirectory(prefix=f"bench-{name}-") as folder:
            PARTS[name](Path(folder), *numbers)


if __name__ == "__main__":
    main(sys.argv[1:])
