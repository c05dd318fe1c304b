"""Key sets of others: how long they are believed, and what is no key set. Source: RFC 9111 5.2.2, RFC 7517 5."""

from typing import Any

import pytest

from fhir_server.outbound import jwks
from fhir_server.outbound.remote import Rules
from imaging.errors import AppError, Category


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("", jwks.DEFAULT_S),
        ("max-age=60", 60),
        ("public, max-age=60", 60),
        ('max-age="60"', 60),
        ("max-age=999999999", jwks.LONGEST_S),
        ("no-store", 0),
        ("max-age=60, no-cache", 0),
        ("max-age=-1", jwks.DEFAULT_S),
        ("max-age=soon", jwks.DEFAULT_S),
        ("s-maxage=7", jwks.DEFAULT_S),
    ],
)
def test_life_is_what_the_other_side_says_within_bounds(header: str, seconds: float) -> None:
    assert jwks.life_s(header) == seconds


@pytest.mark.parametrize("text", [b"", b"[]", b'{"keys": 1}', b'{"keys": ["x"]}', b"{", b'{"key": []}'])
def test_what_is_no_key_set_is_refused(text: bytes) -> None:
    with pytest.raises(AppError) as caught:
        jwks.parsed(text)

    assert caught.value.category is Category.INVALID


def test_huge_key_sets_are_refused() -> None:
    with pytest.raises(AppError, match="at most"):
        jwks.parsed(b'{"keys": [' + b",".join([b"{}"] * 101) + b"]}")
    with pytest.raises(AppError, match="at most"):
        jwks.parsed(b" " * (jwks.MOST_BYTES + 1))


@pytest.mark.parametrize(
    "url",
    ["http://127.0.0.1/jwks", "https://127.0.0.1/jwks", "https://169.254.169.254/", "https://[::1]/", "file:///x"],
)
def test_addresses_inside_are_not_asked(url: str) -> None:
    with pytest.raises(AppError) as caught:
        jwks.KeySets(Rules).get(url)

    assert caught.value.category in (Category.FORBIDDEN, Category.INVALID)


class Fetches:
    """Counts what is fetched."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, life_s: float) -> None:
        self.count, self.now = 0, 0.0
        monkeypatch.setattr(jwks, "_fetched", lambda url, rules: self._fetch(life_s))
        self.keys = jwks.KeySets(Rules, clock_s=lambda: self.now)

    def _fetch(self, life_s: float) -> tuple[dict[str, Any], float]:
        self.count += 1
        return {"keys": [{"kid": str(self.count)}]}, life_s


def test_key_set_is_kept_as_long_as_it_may(monkeypatch: pytest.MonkeyPatch) -> None:
    fetches = Fetches(monkeypatch, 60)
    for fetches.now in (0, 30, 59):
        fetches.keys.get("https://a.example.org/jwks")
    assert fetches.count == 1

    fetches.now = 60
    fetches.keys.get("https://a.example.org/jwks")

    assert fetches.count == 2


def test_address_that_failed_is_left_alone_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[float] = []

    def fail(url: str, rules: Rules) -> tuple[dict[str, Any], float]:
        tried.append(now)
        raise AppError(Category.BUSY, "it does not answer", where="jwks_uri")

    monkeypatch.setattr(jwks, "_fetched", fail)
    keys = jwks.KeySets(Rules, clock_s=lambda: now)

    for now in (0.0, 1.0, 9.0, 10.0):  # noqa: B007 -- the clock
        with pytest.raises(AppError, match="does not answer"):
            keys.get("https://a.example.org/jwks", refresh=True)

    assert tried == [0.0, 10.0]


def test_unknown_key_makes_it_be_fetched_again_but_not_all_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    fetches = Fetches(monkeypatch, 3600)
    for fetches.now in (0, 1, 5, 11, 12):
        fetches.keys.get("https://a.example.org/jwks", refresh=True)

    assert fetches.count == 2
