"""What the database reports, in our categories of errors."""

from collections.abc import Iterator
from contextlib import contextmanager

from pymongo import errors

from imaging.errors import AppError, Category


@contextmanager
def translated(where: str) -> Iterator[None]:
    """Turn what the driver raises inside the block into AppError; `where` names what was being worked on."""
    try:
        yield
    except errors.DuplicateKeyError:
        raise AppError(Category.CONFLICT, "another writer was first", where=where) from None
    except errors.DocumentTooLarge:
        raise AppError(Category.TOO_LARGE, "the resource is larger than the database can keep", where=where) from None
    except (errors.ExecutionTimeout, errors.NetworkTimeout, errors.WTimeoutError) as error:
        raise AppError(Category.BUSY, "the database did not answer in time", where=where) from error
    except (errors.ServerSelectionTimeoutError, errors.AutoReconnect) as error:
        raise AppError(Category.BUSY, "the database cannot be reached", where=where) from error
