"""The DICOM conformance page of printing, written from the tables that the code uses.

`python -m imaging.dimse.print_page > docs/reference/print-conformance.md` writes it anew; a test compares the two.
"""

import sys

from pydicom.datadict import tag_for_keyword
from pydicom.tag import Tag
from pydicom.uid import UID

from imaging.dimse import print_job, print_scp, print_session
from imaging.dimse import print_terms as terms
from imaging.dimse.print_attributes import ATTRIBUTES, Attribute

_SCU = (
    (terms.GREY_META, "required of a grey printer"),
    (terms.COLOUR_META, "required of a colour printer"),
    (terms.PRESENTATION_LUT, "asked for; without it, what a grey becomes is the printer's own matter"),
    (terms.ANNOTATION_BOX, "asked for where an annotation format is configured"),
    (terms.PRINT_JOB, "asked for; without it, or without a job in the answer, a print counts when it is accepted"),
)
_SCP = (
    (terms.GREY_META, "N-CREATE, N-SET, N-ACTION, N-DELETE, N-GET"),
    (terms.COLOUR_META, "as above, 8 bits, RGB"),
    (terms.PRESENTATION_LUT, "N-CREATE (IDENTITY, LIN OD, or a table of 256 or 4096 entries), N-DELETE"),
    (terms.ANNOTATION_BOX, f"N-SET; {print_session.ANNOTATION_BOXES} boxes where a film box names a format"),
    (terms.PRINT_JOB, "N-GET, N-EVENT-REPORT while the modality is there"),
    (print_scp.VERIFICATION, "C-ECHO"),
)
_SERVICES = """| service | on | when |
|---|---|---|
| N-GET | Printer | first; a printer in FAILURE is sent nothing |
| N-CREATE | Basic Film Session | copies, priority, medium, destination, label (the key of the job) |
| N-CREATE | Presentation LUT | shape IDENTITY, or a table that maps every value to itself |
| N-CREATE | Basic Film Box | for each page: format, size, orientation, densities, light, trim and so on |
| N-SET | Basic Grayscale or Color Image Box | a composed page, or image by image |
| N-SET | Basic Annotation Box | banner and footer, where the printer places images |
| N-ACTION | Basic Film Box, or Basic Film Session | after the ticket says so |
| N-GET | Print Job | until it is DONE or FAILURE, or the time is over; later in another association |
| N-EVENT-REPORT | Printer, Print Job | heard at any time |
| N-DELETE | Basic Film Box, Basic Film Session | at the end |
"""


_HEAD = """# DICOM print conformance

Printing on film printers, and being one for modalities. This page is written from `imaging/dimse/` by
`python -m imaging.dimse.print_page`.

## As a user (SCU)

The kind [`dicom`](printers.md#dicom) of printers. Tested on DCMTK's `dcmprscp`, whose stored prints are compared pixel
by pixel, and on a printer with many a weakness: `tests/conformance/test_film_printing.py`.
Over TLS: `tests/conformance/test_print_tls.py`.
"""

_RULES_OF_SCU = f"""
* UIDs of film sessions, film boxes and presentation LUTs are ours; one that the printer answers with instead is used.
* Transfer syntaxes: Explicit and Implicit VR Little Endian; Implicit only where configured.
* A job has at most {print_job.MOST_PAGES} pages.
* Warnings are tolerated. But nothing is printed in another size than a true size that was ordered, nor, unless the
  printer may substitute, with another film, medium, format, polarity or number of copies than ordered.
"""

_SCP_HEAD = """## As a provider (SCP)

What a modality sees of `imaging/dimse/print_scp.py`. Tested with DCMTK's `dcmpsprt` and `dcmprscu`, with our own SCU,
and with modalities of bad manners: `tests/conformance/test_print_scp.py`, `tests/unit/test_print_session.py`. Through a
whole server onto `dcmprscp`, pixel by pixel: `tests/system/test_film_desk.py`. Over TLS:
`tests/conformance/test_print_tls.py`.
"""

_RULES_OF_SCP = f"""
* One film session at a time in an association; all of it goes when the association ends. What was accepted for printing
  stays.
* An attribute that a class does not have is passed over, with the warning `0x0107`. In place of a defined term that is
  not known, and of a number out of its range, what is taken stands in the answer, with `0x0116`. Another enumerated
  value is the failure `0x0106`.
* At most {print_session.MOST_FILM_BOXES} film boxes in a session, {print_scp.MOST_MESSAGE >> 20} MiB in a message,
  {print_session.MOST_BYTES >> 20} MiB of pixels waiting in an association.
* Pixels: 8 bits, or 9 to 16 bits in 16; MONOCHROME1, MONOCHROME2; RGB by pixel or by plane.
"""


_TLS = """
## Security

Both sides speak DICOM over TLS 1.2 or 1.3 where configured, with cipher suites of the BCP 195 profile (PS3.15 B.9).

* As a user: `tls` of the printer. Its certificate has to be signed by an authority that is believed, and to name the
  `host`; otherwise nothing is sent. Our own certificate is shown where one is configured.
* As a provider: `dimse.tls_certificate`. With `dimse.tls_clients`, modalities that show no certificate of these
  authorities get no association. Titles and addresses are checked besides.
* Certificates are read at each association as a user, and at the start as a provider: after a new one, start
  `fhir-imaging dimse` again.
"""


def conformance_page() -> str:
    """Return the page in Markdown."""
    resized = (f"| `{status:#06x}` | {said} |" for status, said in terms.RESIZED.items())
    attributes = (line for uid, each in ATTRIBUTES.items() for line in ("", *_attributes(uid, each)))
    lines = [
        _HEAD,
        *_classes(_SCU),
        "",
        _SERVICES + _RULES_OF_SCU,
        *("| warning | means for the image |", "|---|---|", *resized),
        "",
        *_failures(),
        "",
        _SCP_HEAD,
        *_classes(_SCP),
        _RULES_OF_SCP.rstrip(),
        *attributes,
        _TLS,
    ]
    return "\n".join(lines)


def _classes(classes: tuple[tuple[str, str], ...]) -> list[str]:
    head = ["| SOP class | UID | |", "|---|---|---|"]
    return [*head, *(f"| {UID(uid).name.removesuffix(' SOP Class')} | `{uid}` | {said} |" for uid, said in classes)]


def _failures() -> list[str]:
    head = ["| failure | means | category |", "|---|---|---|"]
    rows = terms.FAILURES.items()
    return [*head, *(f"| `{status:#06x}` | {said} | {category} |" for status, (said, category) in rows)]


def _attributes(uid: str, attributes: tuple[Attribute, ...]) -> list[str]:
    name = UID(uid).name.removesuffix(" SOP Class").replace("Grayscale Image", "Grayscale or Color Image")
    head = ["| attribute | tag | values | taken where none is given |", "|---|---|---|---|"]
    return [f"### {name}", "", *head, *map(_row, attributes)]


def _row(attribute: Attribute) -> str:
    tag = Tag(tag_for_keyword(attribute.keyword) or 0)
    values = ", ".join(f"`{each}`" for each in attribute.enumerated or attribute.defined)
    if attribute.range:
        values = f"{attribute.range[0]:g} ... {attribute.range[1]:g}"
    default = "required" if attribute.is_required else f"`{attribute.default}`" if attribute.default is not None else ""
    return f"| {attribute.keyword} | {tag} | {values} | {default} |"


if __name__ == "__main__":
    sys.stdout.write(conformance_page())
