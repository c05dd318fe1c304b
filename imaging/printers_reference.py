"""The reference page of the printers, written from their registry.

`python -m imaging.printers_reference > docs/reference/printers.md` writes it anew; a test compares the two.
"""

import inspect
import sys

from imaging.film.layout import FILM_SIZES
from imaging.parameters_page import table
from imaging.printer import Printer, Progress
from imaging.printers import printers

_PROGRESS = {
    Progress.PENDING: "pages are still to be sent; sending is safe",
    Progress.PRINTING: "the printer has all pages",
    Progress.DONE: "it is over; so many pages came out",
    Progress.FAILED: "nothing more comes of it; the reason, and whether to order anew, are told",
    Progress.UNKNOWN: "something may have been printed, and the printer cannot say: look into its tray",
}

_INTRODUCTION = """# Printers

What hard copies can be printed on. This page is written from `imaging/printers/` by
`python -m imaging.printers_reference`.

A printer is made from a kind and its parameters. It takes a job in steps: the job is reserved, its ticket is saved,
then the pages are sent. Before each step that cannot be undone, the printer has a newer ticket saved. Whoever starts
again after a crash asks the printer what became of the ticket, and sends only what is known not to be printed:

| outcome | means |
|---|---|
"""

_GREYS = """
A page holds **P-Values** (PS3.14): 0 is the darkest that the printer can do, the highest the lightest, and equal steps
look equally large. Each kind says below how they become densities, ink or light.

**Film sizes**: """


def reference_page() -> str:
    """Return the page in Markdown: an introduction, then a section for each kind by name."""
    outcomes = "".join(f"| `{progress}` | {meaning} |\n" for progress, meaning in _PROGRESS.items())
    sizes = ", ".join(f"`{size}`" for size in FILM_SIZES)
    sections = "".join(_section(name, printers.get(name)) for name in printers)
    return f"{_INTRODUCTION}{outcomes}{_GREYS}{sizes}.\n{sections}"


def _section(name: str, kind: type[Printer]) -> str:
    lines = [
        "",
        f"## `{name}`",
        "",
        f"**{kind.title}.** {inspect.getdoc(kind) or ''}",
        "",
        *table(kind.parameters()),
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.stdout.write(reference_page())
