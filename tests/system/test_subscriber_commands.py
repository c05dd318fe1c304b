"""The commands that say how far a contract goes, as an operator types them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from pymongo.database import Database

from fhir_server.cli import cli

Command = Callable[..., str]


@pytest.fixture
def command(db: Database[dict[str, Any]], engine_uri: str, tmp_path: Path) -> Command:
    given = ["--data-dir", str(tmp_path), "--set", f"mongodb.uri={engine_uri}", "--set", f"mongodb.database={db.name}"]

    def run(*words: str) -> str:
        return CliRunner().invoke(cli, ["subscriber", *words, *given], env={"COLUMNS": "200"}).output

    return run


def test_a_contract_goes_as_far_as_the_command_says(command: Command) -> None:
    def added(name: str, *options: str) -> str:
        return command("add", name, "--receive-images", *options).splitlines()[-1]

    assert added("north") == "of: own"
    assert added("south", "--sees", "all") == "of: all"
    assert added("south") == "of: all"  # as before
    assert added("reader", "--sees", "north", "--modality", "mg", "--patient", "7") == "of: own, north (MG) (Patient/7)"
    assert added("reader") == "of: own, north"
    listed = command("list")
    assert [line.split("  ")[0] for line in listed.splitlines()][1:] == ["north", "reader", "south"]
    assert "own, north" in listed


def test_emergency_access_is_agreed_on_both_sides_and_widens_nothing_else(command: Command) -> None:
    command("add", "north", "--receive-images")
    said = command("add", "ward", "--receive-images", "--patient", "7", "--break-glass", "all")
    assert said.splitlines()[-1] == "of: own (Patient/7); in emergencies all"
    assert "break glass" in said
    assert command("add", "ward", "--receive-images").splitlines()[-1] == "of: own"
    assert command("add", "ward", "--receive-images", "--break-glass", "north").splitlines()[-1] == (
        "of: own; in emergencies own, north"
    )

    assert "opened in emergencies to ward" in command("agree", "north", "--open-in-emergencies", "ward")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--sees", "all", "--sees", "own"], "--sees all"),
        (["--modality", "computed tomography"], "--modality"),
        (["--patient", "Group/1"], "--patient"),
        (["--break-glass", "all", "--break-glass", "own"], "--break-glass all"),
    ],
)
def test_what_cannot_be_meant_is_said(command: Command, options: list[str], said: str) -> None:
    assert said in command("add", "x", "--receive-images", *options)
