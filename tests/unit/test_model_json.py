from decimal import Decimal

import pytest

from fhir_server.model import json
from imaging.errors import AppError, Category


@pytest.mark.parametrize(
    "text", ["1.50", "0.00000001", "1e2", "-0.0", "123456789012345678901234567890", "1.0E-10", "7"]
)
def test_a_number_is_written_back_as_it_came(text: str) -> None:
    body = f'{{"value":{text}}}'.encode()

    assert json.dumps(json.loads(body)) == body


def test_a_decimal_computes_like_its_value() -> None:
    assert json.loads("[0.10]")[0] + 1 == Decimal("1.10")


def test_the_order_of_keys_is_kept() -> None:
    body = b'{"b":1,"a":{"z":[],"y":"\xc3\xa9"}}'

    assert json.dumps(json.loads(body)) == body


def test_what_the_server_wrote_is_read_back_with_its_digits() -> None:
    body = b'{"a":"urn:oid:1.2.3","b":2.500,"c":[1,1.10]}'

    assert json.dumps(json.loads_trusted(body)) == body


@pytest.mark.parametrize(
    "body",
    [
        b'{"a":NaN}',
        b'{"a":Infinity}',
        b'{"a":1e400}',
        b'{"a":1e-401}',
        b'{"a":-1e-99999999999999999999}',
        b'{"a":1,"a":2}',
        b'{"a":{"b":1,"b":1}}',
        b'"\xff\xfe"',
        rb'"\ud800"',
        b"{",
        b"",
        b"[" * 100_000,
        b'{"a":01}',
        b'{"a":1,}',
        b"\x00",
    ],
)
def test_what_is_not_strict_json_is_refused(body: bytes) -> None:
    with pytest.raises(AppError) as raised:
        json.loads(body)

    assert raised.value.category is Category.INVALID


def test_an_error_does_not_repeat_the_content() -> None:
    with pytest.raises(AppError) as raised:
        json.loads(b'{"name": "Secret^Name" "x"}')

    assert "Secret" not in str(raised.value)
