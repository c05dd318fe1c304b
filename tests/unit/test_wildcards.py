"""Wildcards mean what they mean as regular expressions."""

import re
import time

from hypothesis import given
from hypothesis import strategies as st

from imaging.wildcards import matches


@given(st.text("ab*?", max_size=8), st.text("ab\n", max_size=10))
def test_patterns_match_as_their_regular_expressions(pattern: str, text: str) -> None:
    expression = "".join({"*": ".*", "?": "."}.get(each, re.escape(each)) for each in pattern)

    assert matches(pattern, text) == bool(re.fullmatch(expression, text, re.DOTALL))


def test_no_pattern_takes_long() -> None:
    begun = time.perf_counter()

    assert not matches("*a" * 31 + "*b", "a" * 64)

    assert time.perf_counter() - begun < 0.05
