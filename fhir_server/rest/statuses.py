"""What HTTP calls an error, at the door and within a Bundle. Source: FHIR R4 http 3.1.0.1.5, RFC 9110."""

from http import HTTPStatus

from imaging.errors import AppError, Category

STATUS: dict[Category, HTTPStatus] = {
    Category.INVALID: HTTPStatus.BAD_REQUEST,
    Category.UNAUTHENTICATED: HTTPStatus.UNAUTHORIZED,
    Category.FORBIDDEN: HTTPStatus.FORBIDDEN,
    Category.NOT_FOUND: HTTPStatus.NOT_FOUND,
    Category.GONE: HTTPStatus.GONE,
    Category.CONFLICT: HTTPStatus.CONFLICT,
    Category.PRECONDITION: HTTPStatus.PRECONDITION_FAILED,
    Category.UNSUPPORTED: HTTPStatus.NOT_IMPLEMENTED,
    Category.TOO_LARGE: HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    Category.BUSY: HTTPStatus.SERVICE_UNAVAILABLE,
    Category.FAULT: HTTPStatus.INTERNAL_SERVER_ERROR,
}
# Where a thing is not supported, or wrong, decides what HTTP calls it.
STATUS_AT: dict[tuple[Category, str | None], HTTPStatus] = {
    (Category.UNSUPPORTED, "Accept"): HTTPStatus.NOT_ACCEPTABLE,
    (Category.UNSUPPORTED, "Content-Type"): HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
    (Category.UNSUPPORTED, "method"): HTTPStatus.METHOD_NOT_ALLOWED,
    (Category.INVALID, "Range"): HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE,
    (Category.INVALID, "slow body"): HTTPStatus.REQUEST_TIMEOUT,
    (Category.INVALID, "patch"): HTTPStatus.UNPROCESSABLE_ENTITY,  # RFC 5789 2.2
    (Category.INVALID, "meta.profile"): HTTPStatus.UNPROCESSABLE_ENTITY,  # FHIR R4 http 3.1.0.4.1: applicable profiles
}


class TooOften(AppError):
    """Something that is asked for more often than it is answered; it may be asked again after `retry_s`."""

    def __init__(self, message: str, *, retry_s: int, where: str) -> None:
        super().__init__(Category.BUSY, message, where=where)
        self.retry_s = retry_s


def status_of(error: AppError) -> HTTPStatus:
    """Return the HTTP status of an error."""
    if isinstance(error, TooOften):
        return HTTPStatus.TOO_MANY_REQUESTS
    return STATUS_AT.get((error.category, error.where), STATUS[error.category])
