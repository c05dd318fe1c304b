"""Bodies that come compressed (Content-Encoding), read as a stream with bounded memory.

The limits of a body count what is inflated, so that a small request cannot become a large one. Source: RFC 9110 8.4.
"""

import zlib
from collections.abc import Callable

from imaging.errors import AppError, Category

Read = Callable[[int], bytes]
_BLOCK_BYTES = 256 << 10
_WINDOWS = {"gzip": 31, "x-gzip": 31, "deflate": 47}  # of zlib; 47 tells gzip and zlib apart by itself
TAKEN = ("gzip", "deflate")


def decoded(read: Read, content_encoding: str) -> Read:
    """Return `read` for what a body holds. Raises UNSUPPORTED for encodings other than gzip, deflate and identity.

    Reading raises INVALID where the body is damaged or ends too early.
    """
    codings = [each.strip().lower() for each in content_encoding.split(",") if each.strip()]
    for coding in reversed(codings):
        if coding == "identity":
            continue
        if coding not in _WINDOWS or len(codings) > 2:
            message = f"the body has to come as it is, or with Content-Encoding {' or '.join(TAKEN)}"
            raise AppError(Category.UNSUPPORTED, message, where="Content-Type")
        read = _Inflated(read, _WINDOWS[coding]).read
    return read


class _Inflated:
    def __init__(self, read: Read, window: int) -> None:
        self._read = read
        self._window = window
        self._inflater = zlib.decompressobj(window)
        self._rest = b""
        self._began = False

    def read(self, size: int) -> bytes:
        """Return up to `size` bytes, b"" at the end."""
        while True:
            if not self._rest:
                self._rest = self._read(_BLOCK_BYTES)
                if not self._rest:
                    return self._finish(size)
            self._began = True
            if self._inflater.eof:  # a gzip file may have several members
                self._inflater = zlib.decompressobj(self._window)
            try:
                data = self._inflater.decompress(self._rest, size)
            except zlib.error:
                raise AppError(Category.INVALID, "the compressed body is damaged", where="body") from None
            self._rest = self._inflater.unused_data or self._inflater.unconsumed_tail
            if data:
                return data

    def _finish(self, size: int) -> bytes:
        if self._began and not self._inflater.eof:
            data = self._inflater.decompress(b"", size)
            if data:
                return data
            raise AppError(Category.INVALID, "the compressed body ends too early", where="body")
        return b""
