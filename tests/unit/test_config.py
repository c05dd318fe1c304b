"""Settings: where a value comes from, what is refused, and that secrets are not shown."""

from pathlib import Path

import pytest

from fhir_server import config, settings_page
from fhir_server.access.grants import Role
from fhir_server.config import GIB, MIB, SETTINGS
from imaging.errors import AppError, Category

REFERENCE = Path(__file__).parents[2] / "docs/reference/settings.md"


@pytest.fixture
def file(tmp_path):
    return tmp_path / "settings.toml"


def refusal(command_line=None, **options) -> str:
    with pytest.raises(AppError) as refused:
        config.load(command_line, **{"environment": {}, **options})
    assert refused.value.category is Category.INVALID
    return str(refused.value)


def test_the_later_source_wins_and_each_is_named(file):
    file.write_text('[web]\nport = 1001\nthreads = 5\nhost = "::1"\n')
    environment = {"FHIR_IMAGING_WEB_PORT": "1002", "FHIR_IMAGING_WEB_THREADS": "6"}

    found = config.load({"web.port": "1003"}, environment=environment, file=file)

    assert (found["web.port"], found.source("web.port")) == (1003, "command line")
    assert (found["web.threads"], found.source("web.threads")) == (6, "environment FHIR_IMAGING_WEB_THREADS")
    assert (found["web.host"], found.source("web.host")) == ("::1", f"file {file}")
    assert (found["archive.codec"], found.source("archive.codec")) == ("htj2k", "default")


def test_the_file_in_the_data_directory_is_read_when_it_is_there(tmp_path):
    (tmp_path / "fhir-imaging.toml").write_text("log.level = 'debug'")

    assert config.load({"data.dir": str(tmp_path)}, environment={})["log.level"] == "debug"
    assert config.load({"data.dir": str(tmp_path / "other")}, environment={})["log.level"] == "info"


def test_a_file_that_is_named_must_be_there(tmp_path):
    missing = tmp_path / "missing.toml"

    assert "missing.toml" in refusal(file=missing)
    assert "missing.toml" in refusal(environment={"FHIR_IMAGING_CONFIG": str(missing)})


def test_mongodb_uri_is_understood_without_prefix():
    found = config.load(environment={"MONGODB_URI": "mongodb://db"})

    assert found["mongodb.uri"] == "mongodb://db"
    assert found.source("mongodb.uri") == "environment MONGODB_URI"


def test_a_secret_may_come_from_a_file_of_its_own(tmp_path):
    (tmp_path / "uri").write_text("mongodb://db\n")

    found = config.load(environment={"MONGODB_URI_FILE": str(tmp_path / "uri")})

    assert found["mongodb.uri"] == "mongodb://db"


def test_a_secret_is_neither_shown_nor_put_on_a_command_line():
    found = config.load({"mongodb.uri": "mongodb://a:hunter2@db"}, environment={})

    assert "hunter2" not in f"{found!r} {settings_page.listing(found)} {found.arguments()}"
    assert found.secret_variables() == {"FHIR_IMAGING_MONGODB_URI": "mongodb://a:hunter2@db"}


def test_the_arguments_give_another_process_the_same_settings(file):
    file.write_text("[limits]\nparts = 7\n")
    first = config.load({"web.port": "9", "limits.request_bytes": "2 GiB"}, environment={}, file=file)

    options = first.arguments()
    pairs = [word.split("=", 1) for flag, word in zip(options[::2], options[1::2], strict=True) if flag == "--set"]
    second = config.load(dict(pairs), environment={}, file=Path(options[1]))

    assert dict(second) == dict(first)


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("web.prt", "1", "did you mean web.port?"),
        ("web.port", "70000", "from 0 to 65535"),
        ("web.port", "eighty", "whole number"),
        ("archive.codec", "jpeg", "one of htj2k, j2k"),
        ("limits.request_bytes", "2 GB", "such as 512 MiB"),
        ("web.base_url", "images.example.org", "http://"),
        ("access.cache_s", "nan", "number from 0"),
        ("web.host", " ", "address"),
        ("mongodb.database", "a/b", "database name"),
        ("limits.search_count_default", "5000", "larger than limits.search_count"),
    ],
)
def test_a_value_that_cannot_be_used_is_refused_saying_what_is_wanted(name, text, said):
    assert said in refusal({name: text})


def test_a_file_that_is_not_toml_or_names_what_is_not_there_is_refused(file):
    file.write_text("web = [")
    assert "TOML" in refusal(file=file)

    file.write_text("[web]\nprot = 1")
    assert "web.prot" in refusal(file=file)

    file.write_text("[web]\nport = [1, 2]")
    assert "single value" in refusal(file=file)


@pytest.mark.parametrize(("text", "size"), [("1048576", MIB), ("512 MiB", 512 * MIB), ("2gib", 2 * GIB)])
def test_sizes_may_carry_binary_units(text, size):
    assert config.load({"limits.request_bytes": text}, environment={})["limits.request_bytes"] == size


@pytest.mark.parametrize(
    ("host", "base_url"),
    [("127.0.0.1", "http://127.0.0.1:81"), ("0.0.0.0", "http://127.0.0.1:81"), ("::1", "http://[::1]:81")],
)
def test_the_base_address_follows_host_and_port_unless_it_is_given(host, base_url):
    assert config.load({"web.host": host, "web.port": "81"}, environment={})["web.base_url"] == base_url
    assert config.load({"web.base_url": "https://a.b/"}, environment={})["web.base_url"] == "https://a.b"


def test_a_free_port_that_was_taken_is_in_the_base_address():
    assert config.load({"web.port": "0"}, environment={}).with_port(4711)["web.base_url"] == "http://127.0.0.1:4711"


def test_the_data_directory_follows_the_xdg_rules():
    assert config.load(environment={"XDG_DATA_HOME": "/x"})["data.dir"] == Path("/x/fhir-imaging")
    home = Path("~/.local/share/fhir-imaging").expanduser()
    assert config.load(environment={"XDG_DATA_HOME": "relative"})["data.dir"] == home


def test_variables_that_no_setting_reads_are_listed():
    environment = {"FHIR_IMAGING_WEB_PROT": "1", "FHIR_IMAGING_WEB_PORT": "1", "PATH": ""}

    assert config.unknown_variables(environment) == ["FHIR_IMAGING_WEB_PROT"]


def test_every_setting_is_explained_and_its_default_can_be_read():
    for setting in SETTINGS:
        assert setting.help.endswith(".")
        if setting.derive is None:
            setting.parse(setting.default)


def test_the_reference_page_is_the_table():
    assert REFERENCE.read_text() == settings_page.reference()


def test_roles_that_can_need_a_second_factor_are_those_of_people(file):
    given = ",".join(Role)
    assert config.load({"smart.second_factor_roles": given}, environment={})["smart.second_factor_roles"] == tuple(Role)


def test_role_that_is_none_is_named(file):
    with pytest.raises(AppError, match="operator"):
        config.load({"smart.second_factor_roles": "operator, boss"}, environment={})
