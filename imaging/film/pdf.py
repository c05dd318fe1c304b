"""Pages as a PDF/A-3u document: pixels lossless, millimetres exact, text that can be found, the order attached.

Hides the PDF. Greys carry a profile that makes P-Values evenly spaced to the eye (`imaging.film.icc`). The pixels show
all text; the same words lie over it once more in a font without ink, so that they can be searched and copied. Pages go
to unnamed files one by one until the document is written: memory holds one of them.

Sources: ISO 32000-1 (PDF 1.7), ISO 19005-3 (PDF/A-3).
"""

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import datetime
from tempfile import TemporaryFile
from typing import Any, BinaryIO, Protocol

import imagecodecs
import numpy as np
import pikepdf
from pikepdf import Array, Dictionary, Name, Pdf

from imaging.film import lettering
from imaging.film.compose import Page, Sheets
from imaging.film.icc import colour_profile, grey_profile
from imaging.film.layout import sheet

PRODUCER = "fhir-imaging-server"
_POINT = 72 / 25.4  # points in a millimetre
_LEVEL = 3  # of deflate: half again as fast as 6 for a hundredth of the size
_CODES = 255  # of a font, from 1
_ADVANCE = 600  # of every glyph, in thousandths of the font size


class Attached(Protocol):
    """A document to be attached."""

    @property
    def name(self) -> str:
        """A file name."""

    @property
    def media_type(self) -> str:
        """Its MIME type."""

    @property
    def content(self) -> bytes:
        """Its bytes."""

    @property
    def description(self) -> str:
        """What it is, for people."""


@dataclass(frozen=True, slots=True)
class Paper:
    """How light the darkest print and the bare paper are where it is looked at, cd/m2."""

    black: float = 2.0
    white: float = 150.0


def write(
    file: BinaryIO, pages: Iterable[Page], sheets: Sheets, *, made: datetime, title: str = "Hard copy",
    attachments: Sequence[Attached] = (), paper: Paper | None = None,
) -> int:  # fmt: skip
    """Write a document of pages that were composed for `sheets`; return how many they are.

    Grey samples of 12 bits become 16 as in `Page.samples`.
    """
    paper = paper or Paper()
    with Pdf.new() as document:
        profile = colour_profile() if sheets.colour else grey_profile(black=paper.black, white=paper.white)
        shared = _Shared.of(document, profile, sheets.colour)
        count = 0
        # The document refers to its pages' files until it is written.
        with ExitStack() as spool:
            for page in pages:
                document.pages.append(_spooled(page, sheets, shared.letters, spool))
                shared.give_to(document.pages[-1])
                count += 1
            shared.letters.finish(document)
            _describe(document, shared.profile, made, title)
            _attach(document, attachments, made)
            document.save(file, min_version="1.7", object_stream_mode=pikepdf.ObjectStreamMode.generate)
    return count


def _spooled(page: Page, sheets: Sheets, letters: "_Letters", spool: ExitStack) -> pikepdf.Page:
    """Return a page of a document of its own that lies in a file of the spool."""
    with Pdf.new() as single:
        whole = sheet(sheets.film_size, sheets.orientation)
        # Rounded, as some readers make a page a pixel larger for the last bit of a number.
        width, height = round(whole.width * _POINT, 4), round(whole.height * _POINT, 4)
        single.add_blank_page(page_size=(width, height))
        scale = 72 / sheets.dots_per_inch
        down, across = page.pixels.shape[:2]
        # A page is a whole number of pixels, the sheet is not: what is left over is at its right and bottom edge.
        image = f"q {across * scale:.6f} 0 0 {down * scale:.6f} 0 {height - down * scale:.6f} cm /Page Do Q"
        text = letters.text(page, sheets, scale, height)
        only = single.pages[0].obj
        only.Contents = single.make_stream(f"{image}\n{text}".encode("ascii"))
        only.Resources = Dictionary(XObject=Dictionary(Page=_image(single, page)))
        file = spool.enter_context(TemporaryFile())  # noqa: SIM115
        single.save(file)
    file.seek(0)
    return spool.enter_context(Pdf.open(file)).pages[0]


def _image(single: Pdf, page: Page) -> pikepdf.Stream:
    pixels = page.samples
    bits = 8 * pixels.dtype.itemsize
    down, across = pixels.shape[:2]
    channels = 3 if pixels.ndim == 3 else 1
    rows = np.ascontiguousarray(pixels.astype(pixels.dtype.newbyteorder(">"))).view(np.uint8).reshape(down, -1)
    # Each row as its difference to the row above, which deflates well. Source: ISO 32000-1, 7.4.4.4 (PNG, filter Up).
    filtered = np.empty((down, rows.shape[1] + 1), dtype=np.uint8)
    filtered[:, 0] = 2
    filtered[0, 1:] = rows[0]
    np.subtract(rows[1:], rows[:-1], out=filtered[1:, 1:])
    predictor = Dictionary(Predictor=15, Colors=channels, BitsPerComponent=bits, Columns=across)
    stream = single.make_stream(b"")
    stream.write(
        bytes(imagecodecs.deflate_encode(filtered.tobytes(), level=_LEVEL)),
        filter=Name.FlateDecode,
        decode_parms=predictor,
    )
    stream.stream_dict = Dictionary(
        Type=Name.XObject, Subtype=Name.Image, Width=across, Height=down, BitsPerComponent=bits, Interpolate=False,
        ColorSpace=Name.DeviceRGB if channels == 3 else Name.DeviceGray,
        Filter=Name.FlateDecode, DecodeParms=predictor,
    )  # fmt: skip
    return stream


@dataclass(slots=True)
class _Shared:
    """What all pages refer to."""

    profile: Any
    space: Any
    letters: "_Letters"

    @classmethod
    def of(cls, document: Pdf, profile: bytes, colour: bool) -> "_Shared":
        alternate = Name.DeviceRGB if colour else Name.DeviceGray
        stream = document.make_stream(profile, {"/N": 3 if colour else 1, "/Alternate": alternate})
        return cls(stream, document.make_indirect(Array([Name.ICCBased, stream])), _Letters(document))

    def give_to(self, page: pikepdf.Page) -> None:
        resources = page.obj.Resources
        resources.XObject.Page.ColorSpace = self.space
        if self.letters.fonts:
            resources.Font = Dictionary({f"/F{n}": font for n, font in enumerate(self.letters.fonts)})


@dataclass(slots=True)
class _Letters:
    """Fonts without ink for all characters of a document; each holds up to 255 of them.

    They are Type 3 fonts: what a glyph looks like, here nothing, is a part of the document.
    """

    document: Pdf
    fonts: list[Any] = field(default_factory=list)
    _codes: dict[str, tuple[int, int]] = field(default_factory=dict)

    def text(self, page: Page, sheets: Sheets, scale: float, height: float) -> str:
        """Return the operators that lay the words of a page where they are drawn. `scale`: points in a pixel."""
        lines = ["BT"] if page.words else []
        for words in page.words:
            shown = "".join(each if each.isprintable() else " " for each in words.text)
            drawn = lettering.text_width(shown, height=words.height, font=sheets.font)
            size = words.height * scale / lettering.LINE
            stretch = 100 * min(words.width, drawn) * scale / (len(shown) * size * _ADVANCE / 1000 or 1)
            x, y = words.left * scale, height - (words.top + words.height * 0.75) * scale
            lines.append(f"{stretch:.3f} Tz 1 0 0 1 {x:.3f} {y:.3f} Tm")
            lines.extend(f"/F{font} {size:.3f} Tf <{codes}> Tj" for font, codes in self._runs(shown))
        return "\n".join([*lines, "ET"] if lines else [])

    def _runs(self, shown: str) -> list[tuple[int, str]]:
        runs: list[tuple[int, str]] = []
        for character in shown:
            font, code = self._code(character)
            if runs and runs[-1][0] == font:
                runs[-1] = (font, runs[-1][1] + f"{code:02X}")
            else:
                runs.append((font, f"{code:02X}"))
        return runs

    def _code(self, character: str) -> tuple[int, int]:
        if character not in self._codes:
            number, code = divmod(len(self._codes), _CODES)
            if number == len(self.fonts):
                self.fonts.append(self.document.make_indirect(Dictionary(Type=Name.Font, Subtype=Name.Type3)))
            self._codes[character] = number, code + 1
        return self._codes[character]

    def finish(self, document: Pdf) -> None:
        """Complete the fonts, when it is known which characters they hold."""
        glyph = document.make_stream(f"{_ADVANCE} 0 0 0 0 0 d1".encode("ascii"))
        for number, font in enumerate(self.fonts):
            held = {code: character for character, (of, code) in self._codes.items() if of == number}
            names = [Name(f"/c{code}") for code in held]
            font.update(
                Dictionary(
                    FontBBox=Array([0, 0, _ADVANCE, 1000]), FontMatrix=Array([0.001, 0, 0, 0.001, 0, 0]),
                    FirstChar=1, LastChar=len(held), Widths=Array([_ADVANCE] * len(held)), Resources=Dictionary(),
                    CharProcs=Dictionary({str(name): glyph for name in names}),
                    Encoding=Dictionary(Type=Name.Encoding, Differences=Array([1, *names])),
                    ToUnicode=document.make_stream(_to_unicode(held)),
                )
            )  # fmt: skip


def _to_unicode(held: dict[int, str]) -> bytes:
    """Return the map from codes to characters. Source: ISO 32000-1, 9.10.3."""
    pairs = [f"<{code:02X}> <{character.encode('utf-16-be').hex().upper()}>" for code, character in held.items()]
    blocks = [pairs[n : n + 100] for n in range(0, len(pairs), 100)]
    listed = "\n".join(f"{len(block)} beginbfchar\n" + "\n".join(block) + "\nendbfchar" for block in blocks)
    return (
        "/CIDInit /ProcSet findresource begin\n12 dict begin\nbegincmap\n"
        "/CIDSystemInfo << /Registry (Adobe) /Ordering (UCS) /Supplement 0 >> def\n"
        "/CMapName /Adobe-Identity-UCS def\n/CMapType 2 def\n"
        f"1 begincodespacerange\n<01> <FF>\nendcodespacerange\n{listed}\n"
        "endcmap\nCMapName currentdict /CMap defineresource pop\nend\nend\n"
    ).encode("ascii")


def _describe(document: Pdf, profile: Any, made: datetime, title: str) -> None:
    document.Root.OutputIntents = Array(
        [
            Dictionary(
                Type=Name.OutputIntent, S=Name.GTS_PDFA1, OutputConditionIdentifier="Custom",
                Info="the document's own profile", DestOutputProfile=profile,
            )
        ]
    )  # fmt: skip
    stamp = made.isoformat(timespec="seconds")
    with document.open_metadata(set_pikepdf_as_editor=False) as metadata:
        metadata["dc:title"] = title
        metadata["pdf:Producer"] = PRODUCER
        metadata["xmp:CreateDate"] = stamp
        metadata["xmp:ModifyDate"] = stamp
        metadata["pdfaid:part"] = "3"
        metadata["pdfaid:conformance"] = "U"
    document.docinfo["/Title"] = title
    document.docinfo["/Producer"] = PRODUCER
    document.docinfo["/CreationDate"] = document.docinfo["/ModDate"] = _date(made)


def _attach(document: Pdf, attachments: Sequence[Attached], made: datetime) -> None:
    """Attach documents as the source of this one. Source: ISO 19005-3, 6.8."""
    for each in attachments:
        document.attachments[each.name] = pikepdf.AttachedFileSpec(
            document, each.content, filename=each.name, description=each.description, mime_type=each.media_type,
            creation_date=_date(made), mod_date=_date(made), relationship=Name.Source,
        )  # fmt: skip
    if attachments:
        document.Root.AF = Array([document.attachments[each.name].obj for each in attachments])


def _date(moment: datetime) -> str:
    """Return a date as PDF writes it, with its offset from UTC. Source: ISO 32000-1, 7.9.4."""
    offset = moment.strftime("%z") or "+0000"
    return f"D:{moment:%Y%m%d%H%M%S}{offset[:3]}'{offset[3:5]}"
