"""Media types: the grammar of Content-Type and Accept, as clients really write it.

`type=application/dicom` without quotes is no token (it has a slash), but most clients send it so; it is read like the
quoted form. Sources: RFC 9110 8.3.1 and 12.5.1, RFC 2387, PS3.18 8.7.1.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from imaging.errors import AppError, Category

MAX_HEADER_CHARS = 16_384
MAX_PARAMETERS = 32

_PARAMETER = re.compile(r'\s*([^\s;,="]+)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^;,"]*))\s*')
_MEDIA_RANGE = re.compile(r"\s*([!#$%&'*+.^_`|~0-9A-Za-z-]+)/([!#$%&'*+.^_`|~0-9A-Za-z-]+)\s*")


@dataclass(frozen=True, slots=True)
class ContentType:
    """A media type or range in lower case, with its parameters (names in lower case, values unquoted)."""

    media_type: str
    parameters: Mapping[str, str] = field(default_factory=dict)

    @property
    def related_type(self) -> str:
        """The media type of the parts of a multipart/related body, in lower case; "" when not said."""
        return self.parameters.get("type", "").lower()


def parse_content_type(value: str) -> ContentType:
    """Return the media type of a Content-Type header. Raises INVALID when it is empty or malformed."""
    types = list(parse_media_ranges(value, where="Content-Type"))
    if len(types) != 1:
        raise AppError(Category.INVALID, f"one media type expected, {len(types)} found", where="Content-Type")
    return types[0]


def parse_media_ranges(value: str, *, where: str) -> Iterator[ContentType]:
    """Yield the media ranges of a comma-separated header, in order. Raises INVALID on anything else."""
    if len(value) > MAX_HEADER_CHARS:
        raise AppError(Category.INVALID, f"longer than {MAX_HEADER_CHARS} characters", where=where)
    position = 0
    while position < len(value):
        if value[position] in ", \t":
            position += 1
            continue
        found = _MEDIA_RANGE.match(value, position)
        if not found:
            raise AppError(Category.INVALID, f"no media type at character {position}", where=where)
        parameters, position = _parameters(value, found.end(), where)
        yield ContentType(f"{found[1]}/{found[2]}".lower(), parameters)


def _parameters(value: str, position: int, where: str) -> tuple[dict[str, str], int]:
    parameters: dict[str, str] = {}
    while position < len(value) and value[position] == ";":
        found = _PARAMETER.match(value, position + 1)
        if found:
            text = re.sub(r"\\(.)", r"\1", found[2]) if found[2] is not None else found[3].strip()
            parameters.setdefault(found[1].lower(), text)
            position = found.end()
        else:  # an empty parameter, as in "a/b;" or "a/b;;c=d", means nothing
            position += 1
            while position < len(value) and value[position] in " \t":
                position += 1
        if len(parameters) > MAX_PARAMETERS:
            raise AppError(Category.INVALID, f"more than {MAX_PARAMETERS} parameters", where=where)
    if position < len(value) and value[position] != ",":
        raise AppError(Category.INVALID, f"unexpected character at {position}", where=where)
    return parameters, position
