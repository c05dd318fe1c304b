"""How fast the frames of an instance follow one another. Source: PS3.3 C.7.6.5 (Cine Module), C.7.6.5.1.1."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from imaging.display import number_of, values_of

DEFAULT_MS: Final = 100.0  # where nothing is said
_SHORTEST_MS, _LONGEST_MS = 10.0, 10_000.0  # browsers show anything shorter ten times slower

_DISPLAY_RATE, _CINE_RATE, _FRAME_TIME, _FRAME_TIME_VECTOR = "00082144", "00180040", "00181063", "00181065"


def durations_ms(document: Mapping[str, Any], numbers: Sequence[int]) -> list[int]:
    """Return for how many milliseconds each of these frames (from 1) is shown.

    By Recommended Display Frame Rate, then Cine Rate (both frames a second), Frame Time Vector and Frame Time.
    """
    rate = number_of(document, _DISPLAY_RATE) or number_of(document, _CINE_RATE)
    vector = [_number(each) for each in values_of(document, _FRAME_TIME_VECTOR)]
    if rate and rate > 0:
        told = [1000 / rate] * len(numbers)
    elif len(vector) > 1:
        # Each value is the time since the frame before, so that a frame lasts for the next one's.
        lasting = [*vector[1:], vector[-1]]
        told = [lasting[number - 1] if number <= len(lasting) else DEFAULT_MS for number in numbers]
    else:
        told = [number_of(document, _FRAME_TIME) or DEFAULT_MS] * len(numbers)
    return [round(min(max(each if each > 0 else DEFAULT_MS, _SHORTEST_MS), _LONGEST_MS)) for each in told]


def _number(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        return 0.0
