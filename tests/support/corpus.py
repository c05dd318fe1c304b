"""Every DICOM file that the installed test packages carry: pydicom, pydicom-data and deid-data."""

from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path

_PACKAGES = {
    # package: folder in it
    "pydicom": "data",
    "data_store": "data",
    "deid_data": "data",
}
_NOT_DICOM = frozenset({".dump", ".gz", ".icc", ".json", ".md", ".py", ".pyc", ".txt", ".zip"})


@cache
def corpus() -> tuple[Path, ...]:
    """Return all files, ordered by path."""
    return tuple(sorted(_files()))


def corpus_file(name: str) -> bytes:
    """Return the bytes of the one file of this name."""
    return next(path for path in corpus() if path.name == name).read_bytes()


def _files() -> Iterator[Path]:
    for package, folder in _PACKAGES.items():
        spec = find_spec(package)
        assert spec is not None, f"the test package {package} is not installed"
        assert spec.origin is not None
        for path in (Path(spec.origin).parent / folder).rglob("*"):
            if path.is_file() and path.suffix not in _NOT_DICOM and path.name != "README":
                yield path
