"""The options that every command takes, kinds of values that some do, and the tables that commands print."""

import functools
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from fhir_server import config as settings

_WHOLE = 1_000  # characters: a first sentence is never cut
_ANY_PATH = click.Path(path_type=Path)
_CONFIG_HELP = "Settings file  [default: fhir-imaging.toml in the data directory]"
_DATA_DIR_HELP = "Directory of the server and its data"
_SET_HELP = "Any setting that `fhir-imaging config` lists; may be repeated."

Command = Callable[..., Any]


class Group(click.Group):
    """A group of commands whose help tells the first sentence of each in full, in sections where it has any.

    sections   title -> names of commands; every command is in one of them
    """

    def __init__(self, *args: Any, sections: Mapping[str, Sequence[str]] | None = None, **more: Any) -> None:
        super().__init__(*args, **more)
        self.sections = sections

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the sections."""
        for title, names in (self.sections or {"Commands": sorted(self.commands)}).items():
            with formatter.section(title):
                formatter.write_dl([(name, self.commands[name].get_short_help_str(_WHOLE)) for name in names])


def day(text: str) -> datetime:
    """Return a day as its first moment in UTC: the `type` of an option. Raises click.BadParameter."""
    try:
        return datetime.strptime(text, "%Y-%m-%d").replace(tzinfo=UTC)
    except ValueError:
        raise click.BadParameter(f"{text!r} is no day such as 2027-01-31") from None


def pair(text: str) -> tuple[str, str]:
    """Split NAME=VALUE: the `type` of an option. Raises click.BadParameter."""
    name, equals, value = text.partition("=")
    if not equals:
        raise click.BadParameter(f"{text!r} is not NAME=VALUE")
    return name.strip(), value


def configured(*, data_dir: str = "~/.local/share/fhir-imaging", **named: str) -> Callable[[Command], Command]:
    """Give a command the settings options, and hand it the Config as first argument.

    `data_dir` says which data directory it takes when none is named, where that is another one than of other commands.
    `named` maps further options of the command to the settings that they set: `port="web.port"`.
    """

    def decorate(command: Command) -> Command:
        @click.option("--config", "file", type=_ANY_PATH, metavar="FILE", help=_CONFIG_HELP)
        @click.option("--data-dir", type=_ANY_PATH, metavar="DIR", help=f"{_DATA_DIR_HELP}  [default: {data_dir}]")
        @click.option("--set", "pairs", type=pair, multiple=True, metavar="NAME=VALUE", help=_SET_HELP)
        @functools.wraps(command)
        def run(file: Path | None, data_dir: Path | None, pairs: tuple[tuple[str, str], ...], **options: Any) -> Any:
            given = dict(pairs)
            if data_dir is not None:
                given["data.dir"] = str(data_dir)
            for option, setting in named.items():
                value = options.pop(option)
                if value is not None:
                    given[setting] = str(value)
            configuration = settings.load(given, file=file)
            return command(configuration, **options)

        return run

    return decorate


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return rows as text in columns under a header, one line each."""
    widths = [max(len(row[column]) for row in [header, *rows]) for column in range(len(header))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in [header, *rows]]
    return "".join(f"{line.rstrip()}\n" for line in lines)
