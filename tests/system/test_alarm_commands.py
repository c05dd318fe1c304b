"""The commands with which emergency accesses are reviewed, as an operator types them."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from pymongo.database import Database

from fhir_server.cli import cli
from fhir_server.store.emergencies import Emergencies, Emergency

Command = Callable[..., Result]
REASON = "unconscious, allergies needed"


@pytest.fixture
def command(db: Database[dict[str, Any]], engine_uri: str, tmp_path: Path) -> Command:
    given = ["--data-dir", str(tmp_path), "--set", f"mongodb.uri={engine_uri}", "--set", f"mongodb.database={db.name}"]

    def run(*words: str) -> Result:
        return CliRunner().invoke(cli, ["alarm", *words, *given], env={"COLUMNS": "200"})

    return run


def test_alarm_is_listed_shown_ended_and_reviewed_once(db: Database[dict[str, Any]], command: Command) -> None:
    assert command("list").exit_code == 0, "nothing to review"
    now = datetime.now(UTC)
    ids = {"login": "jones", "user": "Practitioner/7", "organization": "Organization/1", "patient": "Patient/9"}
    more = {"owner": "", "client_id": "app-1", "reason": REASON, "asked": now, "until": now + timedelta(minutes=10)}
    Emergencies(db).add(Emergency(id="6f1c", **ids, **more))

    listed = command("list")
    assert listed.exit_code == 1
    assert "to be reviewed" in listed.output
    assert REASON not in listed.output
    assert REASON in command("show", "6f1c").output
    assert command("end", "6f1c").output == "6f1c is over\n"
    assert "no" not in [line.split()[-1] for line in command("show", "6f1c").output.splitlines() if "ended" in line]
    review = ("review", "6f1c", "--by", "C. Privacy", "--verdict", "justified")
    assert command(*review).output == "6f1c is justified\n"
    assert command("list").exit_code == 0
    assert "C. Privacy" in command("show", "6f1c").output
    assert "justified" in command("list", "--all").output
    again = command(*review)
    assert again.exit_code != 0
    assert "reviewed before" in str(again.exception) + again.output
    assert "no emergency access" in str(command("show", "nothing").exception) + command("show", "nothing").output
