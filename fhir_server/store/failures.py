"""What the database reports, in our categories of errors."""

from collections.abc import Iterator
from contextlib import contextmanager

from pymongo import errors

from imaging.errors import AppError, Category

_PASSING = ("RetryableWriteError", "TransientTransactionError")
# Of nodes that stop or step down; source: MongoDB's error_codes.yml, category RetriableError.
_STOPPING = {6, 7, 89, 91, 134, 189, 262, 317, 358, 384, 9001, 10107, 11600, 11602, 13435, 13436}

_DUPLICATE_KEY = 11000


@contextmanager
def translated(where: str) -> Iterator[None]:
    """Turn what the driver raises inside the block into AppError; `where` names what was being worked on."""
    try:
        yield
    except errors.DuplicateKeyError:
        raise AppError(Category.CONFLICT, "another writer was first", where=where) from None
    except errors.DocumentTooLarge:
        raise AppError(Category.TOO_LARGE, "the resource is larger than the database can keep", where=where) from None
    except errors.PyMongoError as error:
        if isinstance(error, errors.BulkWriteError) and _DUPLICATE_KEY in _codes(error):
            raise AppError(Category.CONFLICT, "another writer was first", where=where) from None
        if message := unavailable(error):
            raise AppError(Category.BUSY, message, where=where) from error
        raise


def unavailable(error: BaseException) -> str:
    """Return in a sentence how an error says that the database cannot answer now; "" when it says something else."""
    if isinstance(error, (errors.ExecutionTimeout, errors.NetworkTimeout, errors.WTimeoutError)):
        return "the database did not answer in time"
    if isinstance(error, errors.ConnectionFailure):
        return "the database cannot be reached"
    if isinstance(error, errors.PyMongoError) and any(map(error.has_error_label, _PASSING)):
        return "the database is changing its primary"
    if isinstance(error, errors.OperationFailure) and _codes(error) & _STOPPING:
        return "the database is stopping"
    return ""


def _codes(error: errors.OperationFailure) -> set[int]:
    """Return the codes of an error, those within the answer to a bulk write too."""
    details = error.details or {}
    inner = [*details.get("writeErrors", []), *details.get("writeConcernErrors", [])]
    return {code for code in (error.code, *(each.get("code") for each in inner)) if code is not None}
