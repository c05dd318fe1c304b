"""Orders as a table for people: what, how far, since when, and what they wait for or failed of."""

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

from rich.table import Table
from rich.text import Text

from fhir_server.model.dates import interval
from fhir_server.model.task import code_of, name_of, progress_of

_URL = "urn:fhir-imaging:algorithm:"
_MOST = 40  # characters of a description
_BAR = 10  # characters
_ID = 36  # characters of most ids
_COLOURS = {"completed": "green", "failed": "red", "in-progress": "cyan", "rejected": "red", "cancelled": "dim"}


def order_table(tasks: Iterable[Mapping[str, Any]]) -> Table:
    """Return a row for each Task. Words of others are in it: print it without markup."""
    table = plain_table("order", "what", "status", "progress", "changed", "")
    table.columns[0].min_width = _ID  # whole, also where there is little room: it is what one asks about next
    for task in tasks:
        percent, step = _progress(task)
        bar = f"{'━' * (percent * _BAR // 100):<{_BAR}} {percent:3} %" if percent is not None else ""
        status = str(task["status"])
        note = step or _text_of(task, "statusReason") or _text_of(task, "businessStatus")
        table.add_row(str(task["id"]), _what(task), Text(status, _COLOURS.get(status, "")), bar, _age(task), note)
    return table


def plain_table(*headers: str) -> Table:
    """Return a table without lines."""
    return Table(*headers, box=None, pad_edge=False)


def text_of_entry(entry: Mapping[str, Any]) -> str:
    """Return the value of an input or output as text; of a reference, what it leads to, of a quantity, its unit too."""
    content = next((value for name, value in entry.items() if name.startswith("value")), "")
    if isinstance(content, Mapping) and "value" in content:
        return f"{content['value']} {content.get('unit') or content.get('code', '')}".rstrip()
    return str(content.get("reference", content)) if isinstance(content, Mapping) else str(content)


def _progress(task: Mapping[str, Any]) -> tuple[int | None, str]:
    if task["status"] == "completed":
        return 100, ""
    told = progress_of(task)
    return (told.percent, told.step) if told else (None, "")


def _what(task: Mapping[str, Any]) -> str:
    """Return what is ordered: an algorithm, a rule, or else what the Task says of itself, or its code."""
    named = [text_of_entry(each) for each in task.get("input", []) if name_of(each) == "algorithm"]
    named += [str(task["instantiatesCanonical"])] if "instantiatesCanonical" in task else []
    if named:
        return named[0].removeprefix(_URL)
    return str(task.get("description", ""))[:_MOST] or code_of(task) or name_of({"type": task.get("code", {})})


def _text_of(task: Mapping[str, Any], name: str) -> str:
    return str(task.get(name, {}).get("text", ""))


def _age(task: Mapping[str, Any]) -> str:
    seconds = max(0, int((datetime.now(UTC) - interval(task["meta"]["lastUpdated"]).low).total_seconds()))
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= size:
            return f"{seconds // size} {unit} ago"
    return f"{seconds} s ago"
