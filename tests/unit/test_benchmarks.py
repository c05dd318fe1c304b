"""The benchmarks run: what they measure is not asked here."""

import re

import pytest

from tests.benchmarks import __main__ as command


def test_the_stages_of_an_ingest_are_measured(capsys: pytest.CaptureFixture[str]) -> None:
    command.main(["stages", "2"])

    text = capsys.readouterr().out
    assert "CPU time of 2 CT slices" in text
    rows = re.findall(r"^│ (.+?) +│ +([\d.]+) +│ +(\d+) +│$", text, re.MULTILINE)
    assert len(rows) > 5
    assert {"parse and check (ours)", "encode, decode and compare, build the file"} <= {row[0] for row in rows}


def test_help_names_the_parts_and_measures_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        command.main(["--help"])

    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert set(re.findall(r"^    (\w+)\b", text, re.MULTILINE)) == command.PARTS.keys()


@pytest.mark.parametrize(
    "arguments", [["nothing"], ["--nothing"], ["stages", "many"], ["stages", "0"], ["checks", "5"]]
)
def test_what_is_no_part_or_no_number_is_refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        command.main(arguments)

    assert ended.value.code == 2
    assert arguments[-1] in capsys.readouterr().err


def test_writes_are_measured(capsys: pytest.CaptureFixture[str]) -> None:
    command.main(["writes", "40"])

    text = capsys.readouterr().out
    rows = re.findall(r"^│ (\w+, \d) +│" + r" +([\d.]+) +│" * 8 + "$", text, re.MULTILINE)
    assert [row[0] for row in rows] == ["ImagingStudy, 1", "ImagingStudy, 4", "Patient, 1", "Patient, 4"]
    assert all(float(each) > 0 for row in rows for each in row[1:])
    assert "is validated in" in text


def test_searches_are_measured(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.benchmarks.searches.SMALL", 60)

    command.main(["searches", "120"])

    text = capsys.readouterr().out
    rows = re.findall(r"^│ (.+?) +│ +([\d.]+)(?: bare)? +│ +([\d.]+) +│ +([\d.]+) +│[^│]*│$", text, re.MULTILINE)
    assert {"patient", "compartment", "page of 50 as a Bundle", "read"} <= {row[0] for row in rows}
    assert all(float(each) > 0 for row in rows for each in row[1:])


def test_grants_are_measured(capsys: pytest.CaptureFixture[str]) -> None:
    command.main(["grants", "800"])

    text = capsys.readouterr().out
    rows = re.findall(r"^│ (.+?) +│" + r" +([\d.]+) +│" * 4 + "$", text, re.MULTILINE)
    assert {"check of a request", "read", "newest studies"} <= {row[0] for row in rows}
    assert all(float(each) > 0 for row in rows for each in row[1:])
