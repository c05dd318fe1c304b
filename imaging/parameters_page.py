"""Parameters as a table in Markdown, for reference pages that are written from what the code declares."""

from collections.abc import Iterable

from imaging.parameters import Parameter


def table(parameters: Iterable[Parameter]) -> list[str]:
    """Return the lines of a table with a row for each parameter."""
    head = ["| parameter | type | unit | range | default | meaning |", "|---|---|---|---|---|---|"]
    return [*head, *map(_row, parameters)]


def _row(parameter: Parameter) -> str:
    kind = ", ".join(f"`{choice}`" for choice in parameter.choices) or parameter.kind
    several = {None: "", 0: ", any number"}.get(parameter.length, f" x {parameter.length}")
    unit = f"`{parameter.unit}`" if parameter.unit else ""
    has_no_default = parameter.is_required or parameter.default in ("", ())
    told = "the images'" if parameter.is_stated else "" if has_no_default else f"`{parameter.default_in_words()}`"
    limits = parameter.range_in_words()
    return f"| `{parameter.name}` | {kind}{several} | {unit} | {limits} | {told} | {parameter.help} |"
