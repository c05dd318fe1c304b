"""What README and docs say exists: links, commands, options, settings, files; and their code blocks can be read."""

import ast
import json
import re
import shlex
import subprocess
import tomllib
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import click
import numpy as np
import pytest
from pydicom.data import get_testdata_file

from fhir_server.cli import cli
from fhir_server.config import SETTINGS
from fhir_server.model.outcome import ISSUE_CODES
from fhir_server.rest.statuses import STATUS
from fhir_server.store import index
from imaging.archive.attributes import STANDARD
from imaging.archive.catalogue import instance_row
from imaging.dataset import read
from imaging.errors import AppError, Category
from imaging.layout import PixelLayout
from imaging.transcode import encode

ROOT = Path(__file__).parents[2]
PAGES = sorted([ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").rglob("*.md"), *ROOT.glob("docker/*.md")])
DATA_MODEL = ROOT / "docs/explanation/data-model.md"
COMMANDS = ROOT / "docs/reference/commands.md"
ERRORS = ROOT / "docs/reference/errors.md"

FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`([^`\n]+)`")
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)(?: \"[^\"]*\")?\)")
COMMAND = re.compile(r"(?<![\w/.-])fhir-imaging +(?![A-Z]+\b)([^\n|;)`&#]+)")  # capitals stand for any command
VARIABLE = re.compile(r"\bFHIR_IMAGING_[A-Z_]+\b")
REPOSITORY_PATH = re.compile(r"(?:imaging|fhir_server|tests|docs|docker)/[\w./-]*")
DEVELOPMENT_PATH = re.compile(r"(?<![\w.:])/(?:work|root|home|Users|tmp)/")

GROUPS = {setting.name.partition(".")[0] for setting in SETTINGS}
SETTING = re.compile(rf"(?<![\w/.\-`\"'])(?:{'|'.join(sorted(GROUPS))})\.(?!py\b)[a-z_]+(?![\w/(.])")


class Block(NamedTuple):
    """A fenced block: page, language, text."""

    page: str
    language: str
    text: str


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def blocks(*languages: str) -> list[Block]:
    return [
        Block(name(page), *found)
        for page in PAGES
        for found in FENCE.findall(page.read_text())
        if not languages or found[0] in languages
    ]


def code(page: Path) -> list[str]:
    """Everything that is set as code: the lines of fenced blocks, and inline code."""
    text = page.read_text()
    lines = [
        line
        for _, body in FENCE.findall(text)
        for line in body.replace("\\\n", " ").splitlines()
        if not line.lstrip().startswith("#")
    ]
    return lines + INLINE.findall(FENCE.sub("", text))


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ +(.+)$", FENCE.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_relative_link_leads_somewhere(page: Path) -> None:
    text = FENCE.sub("", re.sub(r"<!--.*?-->", "", page.read_text(), flags=re.DOTALL))
    lost = []
    for target in LINK.findall(text):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, fragment = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        if not there.exists() or (fragment and fragment not in anchors(there)):
            lost.append(target)

    assert lost == []


def test_every_page_is_listed_in_the_index() -> None:
    index = ROOT / "docs/index.md"
    listed = {(index.parent / target).resolve() for target in LINK.findall(index.read_text())}
    inner = ("adr", "changes")  # have a list of their own

    pages = {page for page in (ROOT / "docs").rglob("*.md") if page.parent.name not in inner}

    assert sorted(name(page) for page in pages - listed - {index}) == []


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_path_of_this_repository_that_is_named_exists(page: Path) -> None:
    named = {text for text in code(page) if REPOSITORY_PATH.fullmatch(text)}

    assert [path for path in sorted(named) if not (ROOT / path).exists()] == []


def shell_words(text: str) -> list[str]:
    try:
        return shlex.split(text)
    except ValueError:  # a quotation that goes on in the next line
        return text.split()


def walk(words: list[str]) -> tuple[click.Command, list[str]]:
    """The command that words name, and what follows it."""
    command: click.Command = cli
    rest = list(words)
    while isinstance(command, click.Group) and rest and not rest[0].startswith("-"):
        found = command.commands.get(rest[0])
        assert found is not None, f"there is no command {rest[0]!r}"
        command, rest = found, rest[1:]
    return command, rest


def options(command: click.Command) -> set[str]:
    declared = [word for parameter in command.params for word in parameter.opts if word.startswith("-")]
    return {*declared, "--help", "-h"}


def commands_named() -> Iterator[tuple[str, str]]:
    for page in PAGES:
        for text in code(page):
            for found in COMMAND.findall(text):
                yield name(page), found.strip()


def groups(group: click.Group, name: str = "fhir-imaging") -> Iterator[tuple[str, click.Group]]:
    yield name, group
    for each, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from groups(command, f"{name} {each}")


def test_every_command_stands_in_one_section_of_the_help() -> None:
    assert sorted(each for names in (cli.sections or {}).values() for each in names) == sorted(cli.commands)


@pytest.mark.parametrize(("title", "group"), sorted(groups(cli), key=str))
def test_help_tells_what_each_command_is_for_and_cuts_nothing(title: str, group: click.Group) -> None:
    formatter = click.HelpFormatter(width=80)
    group.format_commands(click.Context(group, info_name=title), formatter)

    told = formatter.getvalue()
    assert [each for each in group.commands if f"\n  {each}  " not in told] == []
    assert "..." not in told


@pytest.mark.parametrize(("page", "text"), sorted(set(commands_named())))
def test_every_command_and_option_that_is_named_exists(page: str, text: str) -> None:
    command, rest = walk(shell_words(text))

    unknown = [word for word in rest if word.startswith("--") and word.partition("=")[0] not in options(command)]
    assert unknown == []


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_setting_and_variable_that_is_named_exists(page: Path) -> None:
    known = {setting.name for setting in SETTINGS}
    variables = {setting.variable for setting in SETTINGS} | {"FHIR_IMAGING_CONFIG"}
    texts = code(page)

    settings = {found for text in texts for found in SETTING.findall(text)}
    named = {found.removesuffix("_FILE") for text in texts for found in VARIABLE.findall(text)}

    assert (settings - known, named - variables) == (set(), set())


@pytest.mark.parametrize("block", blocks("json"), ids=lambda block: block.page)
def test_json_blocks_are_json(block: Block) -> None:
    json.loads(block.text)


@pytest.mark.parametrize("block", blocks("python"), ids=lambda block: block.page)
def test_python_blocks_are_python(block: Block) -> None:
    ast.parse(block.text)


@pytest.mark.parametrize("block", blocks("toml"), ids=lambda block: block.page)
def test_toml_blocks_are_toml(block: Block) -> None:
    tomllib.loads(block.text)


@pytest.mark.parametrize("block", blocks("bash", "sh"), ids=lambda block: block.page)
def test_shell_blocks_are_shell(block: Block) -> None:
    checked = subprocess.run(["bash", "-n"], input=block.text, text=True, capture_output=True, check=False)

    assert checked.returncode == 0, checked.stderr


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_no_path_of_somebodys_machine_is_named(page: Path) -> None:
    assert DEVELOPMENT_PATH.findall(page.read_text()) == []


def test_all_commands_with_all_options_are_on_the_reference_page() -> None:
    text = COMMANDS.read_text()
    sections = dict(
        re.findall(r"^## `fhir-imaging ([\w -]+?)(?: NAME)?`\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    )
    common = {"--config", "--data-dir", "--set", "--help", "-h"}
    expected = dict(leaves(cli, ()))

    assert sections.keys() == expected.keys()
    missing = {
        path: sorted(word for word in options(command) - common if f"`{word}" not in sections[path])
        for path, command in expected.items()
    }
    assert {path: words for path, words in missing.items() if words} == {}


def leaves(command: click.Command, path: tuple[str, ...]) -> Iterator[tuple[str, click.Command]]:
    if not isinstance(command, click.Group):
        yield " ".join(path), _without_hidden(command)
        return
    for word, inner in command.commands.items():
        yield from leaves(inner, (*path, word))


def _without_hidden(command: click.Command) -> click.Command:
    shown = [each for each in command.params if not (isinstance(each, click.Option) and each.hidden)]
    return click.Command(command.name, params=shown)


@pytest.mark.parametrize(("path", "command"), list(dict(leaves(cli, ())).items()), ids=str)
def test_the_help_of_every_command_teaches_by_an_example_that_could_be_typed(path: str, command: click.Command) -> None:
    shown, _ = walk(path.split())
    examples = [
        line.replace("\\\n", " ") for line in re.findall(r"(?m)^ +(.*fhir-imaging (?:.*\\\n)*.*)$", help_of(shown))
    ]

    typed = [walk(shell_words(found)) for line in examples for found in COMMAND.findall(line)]

    assert shown in [inner for inner, _ in typed]
    unknown = [word for inner, rest in typed for word in rest if word.startswith("--") and word not in options(inner)]
    assert unknown == []


def help_of(command: click.Command) -> str:
    return command.get_help(click.Context(command, max_content_width=200, terminal_width=200))


def test_the_table_of_errors_is_the_servers() -> None:
    row = re.compile(r"^\| `([\w-]+)` \| (\d{3})[^|]* \| `([\w-]+)` \|", re.MULTILINE)
    told = {category: (int(status), issue) for category, status, issue in row.findall(ERRORS.read_text())}

    assert told == {str(each): (int(STATUS[each]), ISSUE_CODES[each]) for each in Category}


# ---- the worked example


def examples() -> list[Any]:
    return [json.loads(block.text) for block in blocks("json") if block.page == name(DATA_MODEL)]


def example(key: str) -> dict[str, Any]:
    """The first document on the page that has this field."""
    found: dict[str, Any] = next(each for each in examples() if key in each)
    return found


def test_the_instance_on_the_data_model_page_is_the_one_that_is_stored() -> None:
    received = read(Path(str(get_testdata_file("CT_small.dcm"))).read_bytes())

    row = instance_row(
        received,
        encode(received),
        STANDARD,
        registered_by="Organization/1",
        brought_by="",
        stored_at=datetime.now(UTC),
    )

    told = example("envelope")
    assert list(told) == list(row)
    for inner in ("envelope", "layout", "received"):
        assert set(told[inner]) == set(row[inner])
    same = ("_id", "study", "series", "class", "number", "series_number", "stored_syntax", "kept_reason", "received")
    assert {key: told[key] for key in same} == {key: row[key] for key in same}
    assert told["pixels_sha256"] == row["pixels_sha256"]


def test_the_resource_on_the_data_model_page_has_the_search_rows_that_are_stored() -> None:
    resource = next(each for each in examples() if each.get("resourceType") == "ImagingStudy")
    told = example("tok")

    rows = index.rows(resource)

    assert set(told) - {"_id", "type", "version", "created", "lastUpdated", "method", "owner", "body"} == set(rows)
    assert (told["tok"], told["ref"], told["uri"]) == (rows["tok"], rows["ref"], rows["uri"])


@pytest.mark.parametrize(
    ("dtype", "bits", "shape"), [("u1", 8, (37, 53)), ("<u2", 12, (37, 53)), ("u1", 8, (37, 53, 3))]
)
def test_the_example_of_a_codec_is_exact_and_refuses_damage(dtype: str, bits: int, shape: tuple[int, ...]) -> None:
    frame = np.random.default_rng(1).integers(0, 2**bits, shape).astype(dtype)
    colour = len(shape) == 3
    layout = PixelLayout(
        "PixelData", None, None, True, 37, 53, 3 if colour else 1, 8 * frame.dtype.itemsize, bits, bits - 1,
        0, 0, "RGB" if colour else "MONOCHROME2", 1,
    )  # fmt: skip
    (block,) = (block for block in blocks("python") if block.page == "docs/howto/add-a-codec.md")
    written: dict[str, Any] = {}
    exec(block.text, written)

    codestream = written["encode"](frame, layout)

    assert np.array_equal(written["decode"](codestream, layout, trusted=True).pixels, frame)
    with pytest.raises(AppError):
        written["decode"](codestream[:40], layout, trusted=False)


# ---- changes


@pytest.mark.parametrize("path", sorted((ROOT / "docs/changes").glob("*.md")), ids=lambda path: path.name)
def test_a_change_is_named_by_its_kind_and_has_no_heading(path: Path) -> None:
    if path.name == "README.md":
        return
    kinds = {"added", "changed", "deprecated", "removed", "fixed", "security"}

    short, kind = re.fullmatch(r"([a-z0-9-]+)\.([a-z]+)\.md", path.name).groups()  # type: ignore[union-attr]

    assert short
    assert kind in kinds
    assert not path.read_text().startswith("#")
