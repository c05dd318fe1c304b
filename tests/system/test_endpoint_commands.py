"""The commands that register endpoints, as an operator types them."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from click.testing import CliRunner, Result

from fhir_server.cli import cli
from imaging.errors import AppError, Category

TOKEN = "top-secret-token"


@pytest.fixture
def run(engine_uri, db, tmp_path) -> Any:
    """Run a command on the test database, in this process; `typed` comes to its standard input."""

    def command(*words: str, typed: str = "") -> Result:
        env = {"MONGODB_URI": engine_uri, "FHIR_IMAGING_MONGODB_DATABASE": db.name}
        return CliRunner().invoke(cli, [*words, "--data-dir", str(tmp_path)], input=typed, env=env)

    assert command("subscriber", "add", "clinic", "--receive-images").exit_code == 0
    return command


def test_an_endpoint_is_registered_listed_suspended_resumed_and_removed_and_its_token_never_shown(run, db):
    pacs = ["endpoint", "add", "pacs", "clinic", "https://pacs.example.org/dicom-web/"]
    added = run(*pacs, "--way", "stow", "--bearer", "-", typed=f"{TOKEN}\n")
    listed = run("endpoint", "list")
    suspended = run("endpoint", "suspend", "pacs")
    then = run("endpoint", "list")
    resumed = run("endpoint", "resume", "pacs")
    removed = run("endpoint", "remove", "pacs")

    assert (added.exit_code, added.stdout) == (0, "pacs is Endpoint/peer-pacs of clinic\n")
    assert listed.stdout.splitlines()[1].split() == [
        "pacs", "stow", "clinic", "in", "use", "https://pacs.example.org/dicom-web",
    ]  # fmt: skip
    assert (suspended.stdout, resumed.stdout, removed.stdout) == (
        "pacs is suspended\n", "pacs is in use\n", "pacs is removed\n",
    )  # fmt: skip
    assert "suspended" in then.stdout
    assert all(TOKEN not in each.output for each in (added, listed, suspended, then, resumed, removed))
    assert run("endpoint", "list").stdout.splitlines() == ["name  way  subscriber  state  address"]


def test_the_password_of_a_file_becomes_a_basic_header(run, db, tmp_path):
    (tmp_path / "password").write_text("orthanc:secret word\n")

    added = run(
        "endpoint", "add", "pacs", "clinic", "https://pacs.example.org", "--way", "stow",
        "--basic", str(tmp_path / "password"),
    )  # fmt: skip

    assert added.exit_code == 0, added.output
    # RFC 7617 2: Basic and the base64 of user:password.
    assert db.peers.find_one()["authorization"] == "Basic b3J0aGFuYzpzZWNyZXQgd29yZA=="


def test_the_secret_of_a_webhook_is_printed_when_it_is_made_and_not_again(run, db):
    hook = ["endpoint", "add", "hook", "clinic", "https://app.example.org/hook", "--way", "webhook"]

    first, second, third = run(*hook), run(*hook), run(*hook, "--new-secret", "--old-secret-hours", "2")

    assert timedelta(0) < db.peers.find_one()["old_secret_until"] - datetime.now(UTC) <= timedelta(hours=2)
    assert run(*hook, "--old-secret-hours", "2").exit_code == 2
    assert db.peers.find_one()["secret"] in third.stdout
    assert "whsec_" in first.stdout
    assert "whsec_" not in second.stdout
    assert first.stdout != third.stdout


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["https://a.example.org"], "--way"),
        (["https://a.example.org", "--way", "webhook", "--form", "stored"], "--form does not go with"),
        (["https://a.example.org", "--way", "stow", "--filter", "Modality=CT"], "--filter does not go with"),
        (["https://a.example.org", "--way", "stow", "--basic", "-"], "user:password"),
        (["https://a.example.org", "--way", "stow", "--basic", "-", "--bearer", "-"], "one of --bearer and --basic"),
    ],
)
def test_options_that_do_not_fit_are_told(run, db, words, told):
    refused = run("endpoint", "add", "x", "clinic", *words, typed="no colon")

    assert refused.exit_code == 2
    assert told in refused.output
    assert db.peers.count_documents({}) == 0


@pytest.mark.parametrize(
    ("words", "category", "told"),
    [
        (["http://10.0.0.1", "--way", "stow"], Category.FORBIDDEN, "outbound.private_networks"),
        (["folder", "--way", "folder"], Category.INVALID, "whole path"),
    ],
)
def test_an_address_that_cannot_work_is_refused(run, db, words, category, told):
    refused = run("endpoint", "add", "x", "clinic", *words)

    assert isinstance(refused.exception, AppError)
    assert refused.exception.category is category
    assert told in refused.exception.message
    assert db.peers.count_documents({}) == 0


def test_every_option_of_a_source_is_kept(run, db):
    added = run(
        "endpoint", "add", "ct", "clinic", "https://ct.example.org/q", "--way", "dicomweb", "--wado-address",
        "https://ct.example.org/w", "--every", "60", "--filter", "Modality=CT", "--since", "2026-01-31",
        "--overlap-days", "0", "--from", "2026-02-01", "--until", "2026-02-28",
    )  # fmt: skip
    folder = run("endpoint", "add", "in", "clinic", "/srv/in", "--way", "folder", "--quiet", "0", "--keep-files")

    assert (added.exit_code, folder.exit_code) == (0, 0), added.output + folder.output
    ct = db.peers.find_one({"_id": "ct"})
    assert ct["schedule"] == {
        "every_s": 60.0, "filters": ["Modality=CT"], "since": "20260131", "overlap_days": 0, "quiet_s": 10.0,
        "keeps": False,
    }  # fmt: skip
    assert [ct[each].isoformat() for each in ("start", "end")] == [
        "2026-02-01T00:00:00+00:00", "2026-03-01T00:00:00+00:00",
    ]  # fmt: skip
    assert ct["wado_address"] == "https://ct.example.org/w"
    inbox = db.peers.find_one({"_id": "in"})
    assert (inbox["schedule"]["quiet_s"], inbox["schedule"]["keeps"]) == (0.0, True)
