"""How images are asked to look, and how they are made to: from a stored frame to a picture of it.

The parameters of WADO-RS and of WADO-URI end in one `Look`; `Pictures` makes pictures for it, decoding no finer than
the viewport shows. Sources: PS3.18 8.3.5 and 9.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import orjson
from PIL import Image

from fhir_server.web.dicom_answers import decoding
from fhir_server.web.dicom_door import Images
from imaging import annotations, colour, image_files
from imaging.archive import Instance
from imaging.cine import durations_ms
from imaging.display import DisplayAttributes, FrameSource, Window
from imaging.errors import AppError, Category
from imaging.image_files import DEFAULT_QUALITY
from imaging.pictures import Letters, letters_of
from imaging.presentation import presentation_of, references
from imaging.render import Viewport, picture, quality_from_text, reduce_levels
from imaging.softcopy import softcopy

Document = Mapping[str, Any]
Seen = tuple[Image.Image, Letters, Window | None]  # a picture, the directions at its edges, its window

REPRESENTATIVE_FRAME = "00286010"
VERSION = 3  # of how images look: to be raised when the same request gives another picture


@dataclass(frozen=True, slots=True)
class Look:
    """How an image is asked to look; `state` is a presentation state, of the same study."""

    window: Window | None = None
    viewport: Viewport | None = None
    quality: int = DEFAULT_QUALITY
    annotation: frozenset[str] = frozenset()
    icc_profile: str = colour.NO
    state: Instance | None = None

    @property
    def words(self) -> tuple[object, ...]:
        """What tells this look from others."""
        state = self.state.sha256_stored if self.state else ""
        return VERSION, self.window, self.viewport, self.quality, *sorted(self.annotation), self.icc_profile, state

    def check(self) -> None:
        """Raise INVALID for what contradicts a presentation state. Source: PS3.18 9.1.2.2.4 (Presentation UID)."""
        if self.state is not None and (self.window or (self.viewport and self.viewport.has_region)):
            message = "a presentation state says which greys and which part are shown; ask for no window and no region"
            raise AppError(Category.INVALID, message, where="presentationUID")


def look_from(texts: Mapping[str, str], *, viewport: Viewport | None = None) -> Look:
    """Read a look from the parameters of WADO-RS; `viewport` is the one where none is given. Raises INVALID."""
    window, view, quality = (texts.get(name) for name in ("window", "viewport", "quality"))
    return Look(
        Window.from_text(window) if window else None,
        Viewport.from_text(view) if view else viewport,
        quality_from_text(quality) if quality else DEFAULT_QUALITY,
        annotation_from(texts.get("annotation", "")),
        icc_profile_from(texts.get("iccprofile", "")),
    )


def annotation_from(text: str) -> frozenset[str]:
    """Read what is to be burned in, in any order. Raises INVALID. Source: PS3.18 8.3.5.1.1."""
    words = frozenset(word.strip().lower() for word in text.split(",") if word.strip())
    if not words <= frozenset(annotations.KEYWORDS):
        message = f"one or more of {', '.join(annotations.KEYWORDS)} expected"
        raise AppError(Category.INVALID, message, where="annotation")
    return words


def icc_profile_from(text: str) -> str:
    """Read in which colour space images are asked for. Raises INVALID. Source: PS3.18 8.3.5.1.5."""
    name = text.strip().lower() or colour.NO
    if name not in colour.VALUES:
        raise AppError(Category.INVALID, f"one of {', '.join(colour.VALUES)} expected", where="iccprofile")
    return name


class Shown(NamedTuple):
    """An instance, its frames to show (none: the representative one), and the state they are shown under.

    json   the DICOM JSON of the instance, where it is known already
    """

    instance: Instance
    numbers: Sequence[int] = ()
    state: Instance | None = None
    json: bytes | None = None


class Pictures:
    """Pictures of stored frames under one look."""

    def __init__(self, images: Images, look: Look, media_type: str) -> None:
        """Prepare. Raises INVALID where a profile is asked for that the media type cannot hold."""
        self._images = images
        self._look = look
        self._media_type = media_type
        kind = image_files.kind_of(media_type)
        if look.icc_profile != colour.NO and not kind.holds_profile:
            message = f"{media_type} holds no ICC profile; ask for iccprofile=no or for another media type"
            raise AppError(Category.INVALID, message, where="iccprofile")

    def files(self, every: Iterable[Shown]) -> Iterator[bytes]:
        """Yield each picture as a file."""
        for image, profile, _ in self._pictures(every):
            yield image_files.encode(image, self._media_type, quality=self._look.quality, profile=profile)

    def animation(self, every: Iterable[Shown]) -> bytes:
        """Return all pictures as one animation. Raises TOO_LARGE."""
        images, durations, profiles, pixels = [], [], [], 0
        for image, profile, duration in self._pictures(every):
            pixels += image.width * image.height
            image_files.check_animated(pixels)
            images.append(image)
            durations.append(duration)
            profiles.append(profile)
        return image_files.animate(
            images, self._media_type, durations_ms=durations, quality=self._look.quality, profile=profiles[0]
        )

    def _pictures(self, every: Iterable[Shown]) -> Iterator[tuple[Image.Image, bytes | None, int]]:
        """Yield pictures with the profile to embed and the milliseconds for which they are shown."""
        for shown in every:
            document = orjson.loads(shown.json or next(self._images.documents([shown.instance.sop_uid])))
            fetch = partial(_fetched, self._images, shown.instance)
            own = colour.profile_of(document, fetch) if self._look.icc_profile != colour.NO else None
            state = self._state(shown.state or self._look.state)
            numbers = shown.numbers or [_representative(document, shown.instance)]
            for number, duration in zip(numbers, durations_ms(document, numbers), strict=True):
                if state is None:
                    image, letters, window = self._plain(shown.instance, document, number, fetch)
                else:
                    image, letters = self._under(state, shown.instance, document, number, fetch)
                    window = None
                if self._look.annotation:
                    frames, words = shown.instance.number_of_frames, self._look.annotation
                    told = annotations.annotation_of(document, number, frames, words, letters=letters, window=window)
                    image = annotations.annotated(image, told)
                image, profile = colour.in_space(image, own, self._look.icc_profile)
                yield image, profile, duration

    def _plain(self, instance: Instance, document: Document, number: int, fetch: Any) -> Seen:
        look = self._look
        attributes = DisplayAttributes.from_json(document, number, bulkdata=fetch)
        levels = reduce_levels(attributes, look.viewport)
        with decoding():
            decoded = self._images.pixels(instance, number, reduce_levels=levels)
        # Decoding may have turned luma and chroma into RGB.
        attributes = replace(attributes, photometric_interpretation=decoded.photometric_interpretation)
        image = picture(decoded.pixels, attributes, window=look.window, viewport=look.viewport)
        letters = _flipped(letters_of(document, number), look.viewport) if look.annotation else _NO_LETTERS
        return image, letters, look.window or next(iter(attributes.windows), None)

    def _under(
        self, state: tuple[Instance, Document], instance: Instance, document: Document, number: int, fetch: Any
    ) -> tuple[Image.Image, Letters]:
        source, told = state
        if not any(each.holds(instance.sop_uid, number) for each in references(told)):
            message = "the presentation state does not refer to this image"
            raise AppError(Category.INVALID, message, where="presentationUID")
        tables = partial(_fetched, self._images, source)
        presentation = presentation_of(
            told, instance.sop_uid, number, bulkdata=tables, image=FrameSource(document, number, fetch)
        )
        with decoding():
            decoded = self._images.pixels(instance, number)
        photometric = decoded.photometric_interpretation
        return softcopy(
            decoded.pixels, document, number, presentation,
            photometric=photometric, viewport=self._look.viewport, bulkdata=fetch,
        )  # fmt: skip

    def _state(self, instance: Instance | None) -> tuple[Instance, Document] | None:
        if instance is None:
            return None
        (json,) = self._images.documents([instance.sop_uid])
        return instance, orjson.loads(json)


_NO_LETTERS: Letters = ("", "", "", "")


def _flipped(letters: Letters, viewport: Viewport | None) -> Letters:
    """Return the directions at the edges of what a viewport shows."""
    top, right, bottom, left = letters
    if viewport and (viewport.region_width or 0) < 0:
        right, left = left, right
    if viewport and (viewport.region_height or 0) < 0:
        top, bottom = bottom, top
    return top, right, bottom, left


def _fetched(images: Images, instance: Instance, uri: str) -> bytes:
    return bytes(images.bulkdata(instance, uri.removeprefix("@/")))


def _representative(document: Document, instance: Instance) -> int:
    told = document.get(REPRESENTATIVE_FRAME, {}).get("Value") or [1]
    is_frame = isinstance(told[0], int) and 1 <= told[0] <= instance.number_of_frames
    return int(told[0]) if is_frame else 1
