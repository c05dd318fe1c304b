"""Pictures as files that anyone can look at: one as JPEG, PNG, GIF, WebP or JPEG 2000, several as an animation.

Pillow writes them; it sees 8-bit display values only and is no part of any lossless path.
"""

import io
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from PIL import Image, ImageOps

from imaging.errors import AppError, Category

MOST_ANIMATED_PIXELS: Final = 64_000_000  # of all frames together; each takes up to three bytes until all are written
DEFAULT_QUALITY: Final = 90


class FileKind(NamedTuple):
    """One media type: Pillow's name of the format, its options, and what it can hold."""

    format: str
    options: dict[str, Any]
    has_quality: bool = False
    holds_profile: bool = True
    animates: bool = False


KINDS: Final = {
    "image/jpeg": FileKind("JPEG", {}, has_quality=True),
    "image/png": FileKind("PNG", {"compress_level": 3}),
    "image/gif": FileKind("GIF", {}, holds_profile=False, animates=True),
    "image/jp2": FileKind("JPEG2000", {"no_jp2": False}, holds_profile=False),  # JP2 can; Pillow does not
    "image/webp": FileKind("WEBP", {"method": 2}, has_quality=True, animates=True),
    "image/apng": FileKind("PNG", {"compress_level": 3}, animates=True),
}
"""The first is the default. JPEG 2000 is lossless, so that `quality` says nothing to it."""

STILL: Final = tuple(name for name in KINDS if name != "image/apng")
ANIMATED: Final = tuple(name for name, kind in KINDS.items() if kind.animates)


def kind_of(media_type: str) -> FileKind:
    """Return what is known of a media type. Raises UNSUPPORTED."""
    if media_type not in KINDS:
        available = ", ".join(KINDS)
        raise AppError(Category.UNSUPPORTED, f"cannot render as this type; available: {available}", where="Accept")
    return KINDS[media_type]


def encode(
    image: Image.Image, media_type: str, *, quality: int = DEFAULT_QUALITY, profile: bytes | None = None
) -> bytes:
    """Return one picture as a file.

    quality   1 ... 100, where the type has such a thing
    profile   ICC profile to embed

    Raises UNSUPPORTED for other media types and images beyond what the format can hold.
    """
    return _saved(image, media_type, _options(media_type, quality, profile))


def animate(
    images: Sequence[Image.Image],
    media_type: str,
    *,
    durations_ms: Sequence[int],
    quality: int = DEFAULT_QUALITY,
    profile: bytes | None = None,
) -> bytes:
    """Return pictures as an animation without end, all fitted into the size of the first; see `encode`.

    durations_ms   how long each is shown
    """
    first = images[0]
    options = _options(media_type, quality, profile)
    if len(images) > 1:
        others = [_alike(first, image) for image in images[1:]]
        options |= {"save_all": True, "append_images": others, "duration": list(durations_ms), "loop": 0}
    return _saved(first, media_type, options)


def check_animated(pixels: int) -> None:
    """Raise TOO_LARGE when an animation has more pixels, of all frames together, than are held at a time."""
    if pixels > MOST_ANIMATED_PIXELS:
        message = f"an animation of more than {MOST_ANIMATED_PIXELS} pixels; ask for a viewport, or for fewer frames"
        raise AppError(Category.TOO_LARGE, message, where="viewport")


def _alike(first: Image.Image, image: Image.Image) -> Image.Image:
    same = image if image.mode == first.mode else image.convert(first.mode)
    return same if same.size == first.size else ImageOps.pad(same, first.size)


def _options(media_type: str, quality: int, profile: bytes | None) -> dict[str, Any]:
    kind = kind_of(media_type)
    options = dict(kind.options)
    if kind.has_quality:
        options["quality"] = quality
    if profile is not None and kind.holds_profile:
        options["icc_profile"] = profile
    return options


def _saved(image: Image.Image, media_type: str, options: dict[str, Any]) -> bytes:
    file = io.BytesIO()
    try:
        image.save(file, KINDS[media_type].format, **options)
    except (ValueError, OSError) as error:
        message = f"{image.width} x {image.height} pixels cannot be written as {media_type}; ask for a viewport"
        raise AppError(Category.UNSUPPORTED, message, where="Accept") from error
    return file.getvalue()
