"""One vocabulary of errors for every door.

Code raises `AppError` where it knows what is wrong; only a door (HTTP, DIMSE, a worker) translates the category.
Messages say what, where and what to do. They never hold patient names or values.
"""

from enum import StrEnum


class Category(StrEnum):
    """What kind of failure it is; each door has one table that translates all of them."""

    INVALID = "invalid"
    UNAUTHENTICATED = "unauthenticated"
    FORBIDDEN = "forbidden"
    NOT_FOUND = "not-found"
    GONE = "gone"
    CONFLICT = "conflict"
    PRECONDITION = "precondition"
    UNSUPPORTED = "unsupported"
    TOO_LARGE = "too-large"
    BUSY = "busy"
    FAULT = "fault"


class AppError(Exception):
    """A failure that a caller can act on: its category, what happened, and where."""

    def __init__(self, category: Category, message: str, *, where: str | None = None) -> None:
        super().__init__(message)
        self.category = category
        self.message = message
        self.where = where

    def __str__(self) -> str:
        return f"{self.message} ({self.where})" if self.where else self.message
