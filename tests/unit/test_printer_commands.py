"""Options of printers on the command line: what cannot be used is said, before anything is opened."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from fhir_server.cli import cli


@pytest.mark.parametrize(("content", "says"), [(None, "No such file or directory"), (b"\xff\xfe", "is no text")])
def test_a_secret_that_cannot_be_read_is_said(tmp_path: Path, content: bytes | None, says: str) -> None:
    if content is not None:
        (tmp_path / "secret").write_bytes(content)
    words = ["printer", "add", "desk", "ipp", "--secret", f"password={tmp_path / 'secret'}"]

    result = CliRunner().invoke(cli, words)

    assert result.exit_code == 2
    assert says in result.stderr
    assert str(tmp_path) in result.stderr


@pytest.mark.parametrize(("option", "value"), [("--option", "folder"), ("--secret", "password"), ("--set", "web.port")])
def test_a_pair_without_an_equals_sign_is_refused_by_the_name_of_its_option(option: str, value: str) -> None:
    result = CliRunner().invoke(cli, ["printer", "add", "desk", "ipp", option, value])

    assert result.exit_code == 2
    assert option in result.stderr
    assert f"'{value}' is not NAME=VALUE" in result.stderr
