"""The shape of the tree: who may import whom, and what lies at the top."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]

TOP_LEVEL = {
    "CHANGELOG.md",
    "LICENSE",
    "Makefile",
    "README.md",
    "docker",
    "docs",
    "fhir_server",
    "imaging",
    "pyproject.toml",
    "setup.cfg",
    "tests",
}  # and dot files


def tracked_files() -> list[str]:
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    return [name for name in listing.stdout.split("\0") if name]


def test_nobody_imports_whom_he_must_not():
    program = "from importlinter.cli import lint_imports_command; lint_imports_command()"

    checked = subprocess.run([sys.executable, "-c", program, "--no-cache"], cwd=ROOT, capture_output=True, text=True)

    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_the_top_level_is_fixed():
    names = {name.partition("/")[0] for name in tracked_files()}

    assert {name for name in names if not name.startswith(".")} <= TOP_LEVEL


def test_every_package_of_the_product_says_what_it_is():
    packages = [ROOT / name for name in tracked_files() if name.startswith(("fhir_server/", "imaging/"))]

    assert not [str(path) for path in packages if path.name == "__init__.py" and not path.read_text().startswith('"""')]
