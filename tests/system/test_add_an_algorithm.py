"""The how-to about adding an algorithm, followed: its file in a package of its own is offered, ordered and done."""

import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from imaging.derive import to_part10
from tests.support.serving import ENVIRONMENT, fhir_imaging, serving
from tests.support.user import User
from tests.support.volumes import slice_dataset

pytestmark = pytest.mark.slow

PAGE = Path(__file__).parents[2] / "docs/howto/add-an-algorithm.md"
SIDE, STUDY, SERIES = 25, "1.2.3.4", "1.2.3.4.5"


def block(language: str) -> str:
    (found,) = re.findall(rf"^```{language}\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    return str(found)


def install(folder: Path) -> None:
    """Make the package that the page describes, as an installer would."""
    group, name, target = re.findall(r'entry-points\."([\w.]+)"\]\n(\w+) = "([\w.:]+)"', block("toml"))[0]
    package, _, module = target.partition(":")[0].rpartition(".")
    without_decorator = block("python").replace(f'@algorithms.register("{name}")\n', "")
    assert without_decorator != block("python")
    (folder / package).mkdir()
    (folder / package / "__init__.py").write_text("")
    (folder / package / f"{module}.py").write_text(without_decorator)
    information = folder / f"{package}-1.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    (information / "entry_points.txt").write_text(f"[{group}]\n{name} = {target}\n")


def phantom(deviation_mm: float) -> Iterator[bytes]:
    """Yield slices 2 mm apart, pixels of 1 mm: a Gaussian around the middle, 10,000 high."""
    z, y, x = np.indices((SIDE, SIDE, SIDE)) - SIDE // 2
    values = 10_000 * np.exp(-((2 * z) ** 2 + y**2 + x**2) / (2 * deviation_mm**2))
    for n, plane in enumerate(np.rint(values).astype(np.int16)):
        ds = slice_dataset(
            (0, 0, 2 * n), n + 1, StudyInstanceUID=STUDY, SeriesInstanceUID=SERIES, SOPInstanceUID=f"{SERIES}.{n + 1}",
            Rows=SIDE, Columns=SIDE, PixelSpacing=[1, 1], SliceThickness=2, RescaleSlope=1, RescaleIntercept=0,
        )  # fmt: skip
        ds.PixelData = plane.tobytes()
        ds["PixelData"].VR = "OW"
        yield to_part10(ds)


@pytest.fixture(scope="module")
def user() -> Iterator[User]:
    with tempfile.TemporaryDirectory(prefix="fhir-imaging-test-") as directory:
        packages, data_dir = Path(directory) / "packages", Path(directory) / "data"
        packages.mkdir()
        install(packages)
        path = os.pathsep.join([str(packages), ENVIRONMENT.get("PYTHONPATH", "")])
        with serving(data_dir, PYTHONPATH=path) as served:
            made = User.let_in(served, PYTHONPATH=path)
            for file in phantom(5.0):
                made.ask("POST", "/dicom-web/studies", file, "application/dicom")
            yield made


def test_it_is_listed_with_its_parameters(user: User) -> None:
    assert re.search(r"^gaussian +1 +volume +Blur a volume", user.run("algorithms").stdout, re.MULTILINE)
    assert re.search(
        r"sigma_mm +number +mm +0.1 ... 50 +1 +standard deviation", user.run("algorithms", "gaussian").stdout
    )
    assert "gaussian" not in fhir_imaging("algorithms").stdout


def test_it_is_offered_to_programs(user: User) -> None:
    bundle = user.ask("GET", "/fhir/ActivityDefinition?url=urn:fhir-imaging:algorithm:gaussian")

    (definition,) = [each["resource"] for each in bundle["entry"]]
    assert definition["contained"][0]["parameter"][0]["name"] == "sigma_mm"
    assert user.ask("GET", "/fhir/Device/algorithm-gaussian")["status"] == "active"


def test_it_is_ordered_and_its_result_is_right(user: User) -> None:
    words = ("--as", "radiology", "--series", SERIES, "-p", "sigma_mm=3", "--wait")
    done = user.run("order", "gaussian", *words)
    assert done.returncode == 0, done.stderr

    (series,) = re.findall(r"^series: (\S+)$", done.stdout, re.MULTILINE)
    volume = user.volume(STUDY, series)

    # Variances add: 5^2 + 3^2 = 34 mm2, in all directions, also between slices that lie 2 mm apart.
    middle = SIDE // 2
    assert volume[middle, middle, middle] == pytest.approx(10_000 * (25 / 34) ** 1.5, rel=0.02)
    for profile, step_mm in ((volume[:, middle, middle], 2), (volume[middle, :, middle], 1)):
        expected = profile[middle] * np.exp(-((np.arange(-middle, middle + 1) * step_mm) ** 2) / (2 * 34))
        assert np.abs(profile - expected)[4:-4].max() < 0.02 * profile[middle]


def test_the_result_says_what_was_applied(user: User) -> None:
    (task,) = [
        each["resource"]
        for each in user.ask("GET", "/fhir/Task?status=completed")["entry"]
        if "gaussian" in str(each["resource"]["input"])
    ]
    told: dict[str, Any] = {each["type"]["coding"][0]["code"]: each for each in task["output"]}

    provenance = user.ask("GET", f"/fhir/{told['provenance']['valueReference']['reference']}")

    assert told["performed"]["valueString"] == "Gaussian blur (gaussian 1: sigma_mm=3.0)"
    assert provenance["agent"][0]["who"]["reference"] == "Device/algorithm-gaussian"


def test_what_it_refuses_is_refused_when_it_is_ordered(user: User) -> None:
    done = user.run("order", "gaussian", "--as", "radiology", "--series", SERIES, "-p", "sigma_mm=0")

    assert done.returncode == 2
    assert "a value from 0.1 to 50 mm expected (sigma_mm)" in done.stderr
