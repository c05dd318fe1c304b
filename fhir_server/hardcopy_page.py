"""The reference page of hard-copy orders, written from their inputs and outputs.

`python -m fhir_server.hardcopy_page > docs/reference/hard-copy.md` writes it anew; a test compares the two.
"""

import sys
from itertools import groupby

from fhir_server.hardcopy.devices import PROPERTY
from fhir_server.hardcopy.inputs import INPUTS, Input
from fhir_server.hardcopy.outputs import MEANINGS, OUTPUTS
from imaging.film.marks import Kind

_INTRODUCTION = """# Hard-copy orders

What a FHIR Task with the code `hard-copy` orders, input by input, and what it tells at its end. This page is written
from `fhir_server/hardcopy/` by `python -m fhir_server.hardcopy_page`. How to place an order is told in
[Print film](../howto/print-film.md).

An input is named by `type.coding.code`, or by `type.text`. Where several elements may hold a value, any of them will
do. What is wrong with an order is told when it is placed, and names the input: values that are none, what the device
has not, images that cannot be printed in true size, boxes that lie over one another. Lengths are in mm.

All images of an order are of one patient, whose name, ID, birth date and sex stand on every page, with the study's
date, description and number, the page's number, and a QR code of the Task's address.
"""

_STATES = f"""
## Presentation states

Of a grayscale softcopy presentation state these are applied: modality LUT, VOI LUT or window, presentation LUT,
rotation and flip, displayed area (scale to fit and true size; one that magnifies for a screen needs a `fit`),
rectangular, circular, polygonal and bitmap shutters, overlays (the state's own, else those of the image that it shows),
and graphics: {", ".join(f"`{each}`" for each in Kind)} and texts. What a state has beyond that (subtraction of
a mask, compound graphics, curves, overlays in unused bits of pixels) is refused with the reason.

A step that the state does not have is none, whatever the image says (PS3.4 N.2). A `window` in the order goes before
that of the state. Images of their own have shutters applied as well; overlays in images are printed only where a
state shows them.

## True size

`true-size` needs spacing of the patient: Pixel Spacing, unless it is only a copy of Imager Pixel Spacing; Imager Pixel
Spacing with a magnification factor; or ultrasound regions that agree. Spacing at a detector is refused: how much larger
than the patient the image is, nobody knows.
"""


def reference_page() -> str:
    """Return the page in Markdown."""
    return f"{_INTRODUCTION}{_inputs()}{_STATES}{_outputs()}{_devices()}"


def _inputs() -> str:
    order = list(dict.fromkeys(each.group for each in INPUTS))
    rows = sorted(INPUTS, key=lambda each: order.index(each.group))
    return "".join(_group(name, list(members)) for name, members in groupby(rows, key=lambda each: each.group))


def _group(name: str, members: list[Input]) -> str:
    head = f"\n## {name}\n\n| input | element | values | default | meaning |\n|---|---|---|---|---|\n"
    return head + "".join(map(_row, members))


def _row(each: Input) -> str:
    elements = " or ".join(f"`{element}`" for element in each.value.split("|"))
    several = ", several" if each.most > 1 else ", needed" if each.least else ""
    meaning = each.meaning.replace("|", "\\|")
    return f"| `{each.name}`{several} | {elements} | {_values(each)} | {each.default} | {meaning} |\n"


def _values(each: Input) -> str:
    if each.choices:
        return ", ".join(f"`{choice}`" for choice in each.choices)
    if each.low is not None and each.high is not None:
        unit = f" `{each.unit}`" if each.unit else ""
        return f"{each.low:g} ... {each.high:g}{unit}"
    return ""


def _outputs() -> str:
    head = "\n## What is told at the end\n\n| output | element | meaning |\n|---|---|---|\n"
    return head + "".join(f"| `{each.name}` | `{each.value}` | {MEANINGS[each.name]} |\n" for each in OUTPUTS)


def _devices() -> str:
    return f"""
## Devices

A printer is a Device of type `printer`. `property` says what it can print, each with a code of `{PROPERTY}`: what it
does not say is not checked. `status` is `active`, `inactive` while its operator suspends it, or `unknown` before it was
asked; `statusReason` says `online`, `offline`, `not-ready` or `off`, and the printer's own reason (PS3.3 C.13.9).
"""


if __name__ == "__main__":
    sys.stdout.write(reference_page())
