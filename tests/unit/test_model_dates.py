from datetime import UTC, datetime

import pytest

from fhir_server.model.dates import LATEST, interval, to_instant
from imaging.errors import AppError, Category


def _utc(*parts: int) -> datetime:
    return datetime(*parts, tzinfo=UTC)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "low", "high"),
    [
        ("2012", _utc(2012, 1, 1), _utc(2013, 1, 1)),
        ("2012-02", _utc(2012, 2, 1), _utc(2012, 3, 1)),
        ("2012-12", _utc(2012, 12, 1), _utc(2013, 1, 1)),
        ("2012-02-29", _utc(2012, 2, 29), _utc(2012, 3, 1)),
        ("2012-02-29T23:59", _utc(2012, 2, 29, 23, 59), _utc(2012, 3, 1)),
        ("2012-02-29T10:00:00Z", _utc(2012, 2, 29, 10), _utc(2012, 2, 29, 10, 0, 1)),
        ("2012-02-29T01:00:00+02:00", _utc(2012, 2, 28, 23), _utc(2012, 2, 28, 23, 0, 1)),
        ("2012-02-29T23:00:00-05:30", _utc(2012, 3, 1, 4, 30), _utc(2012, 3, 1, 4, 30, 1)),
        ("2012-02-29T10:00:00.5Z", _utc(2012, 2, 29, 10, 0, 0, 500_000), _utc(2012, 2, 29, 10, 0, 0, 501_000)),
        ("2016-12-31T23:59:60Z", _utc(2016, 12, 31, 23, 59, 59), _utc(2017, 1, 1)),
        ("9999", _utc(9999, 1, 1), LATEST),
        ("0001-01-01T00:00:00+14:00", _utc(1, 1, 1), _utc(1, 1, 1, 0, 0, 1)),
    ],
)
def test_a_date_covers_what_its_precision_says(text: str, low: datetime, high: datetime) -> None:
    assert interval(text) == (low, high)


@pytest.mark.parametrize(
    "text",
    [
        *("", "12", "2012-2", "2012-13", "2012-02-30", "2012-02-29T10", "2012-02-29 10:00", "2012-02-29T25:00:00Z"),
        *("0000", "2012-02-29T10:00:00+2", "２０１２", "2012-02-29T10:00:00Z ", "now"),
    ],
)
def test_another_text_is_no_date(text: str) -> None:
    with pytest.raises(AppError) as raised:
        interval(text)

    assert raised.value.category is Category.INVALID


def test_an_instant_is_utc_with_milliseconds() -> None:
    assert to_instant(_utc(2024, 3, 1, 10, 2, 3, 4_999)) == "2024-03-01T10:02:03.004Z"
    assert to_instant(_utc(5, 3, 1)) == "0005-03-01T00:00:00.000Z"
