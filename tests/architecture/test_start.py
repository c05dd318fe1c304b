"""What a command need not import it does not import: it would wait for that each time."""

import subprocess
import sys

import pytest

LISTED = "import sys, {module}; print(*sys.modules)"


def packages_of(module: str) -> set[str]:
    """Names of all packages that are there once a module was imported, by a process of its own."""
    run = subprocess.run(
        [sys.executable, "-c", LISTED.format(module=module)], capture_output=True, text=True, check=True
    )
    return {name.partition(".")[0] for name in run.stdout.split()}


@pytest.mark.parametrize(
    ("module", "unneeded"),
    [
        ("fhir_server.cli", {"flask", "limits", "numpy", "pydicom", "pymongo", "rich"}),
        ("fhir_server.app", {"flask", "limits", "rich", "scipy", "skimage", "SimpleITK"}),
        ("fhir_server.supervisor", {"flask", "limits", "numpy", "pydicom", "rich"}),
    ],
    ids=["help", "command", "serve"],
)
def test_what_a_start_does_not_need_is_not_imported(module: str, unneeded: set[str]) -> None:
    assert packages_of(module) & unneeded == set()
