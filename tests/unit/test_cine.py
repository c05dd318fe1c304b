"""How long frames are shown. Expected values follow from PS3.3 C.7.6.5.1."""

from typing import Any

import pytest

from imaging.cine import durations_ms


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ({}, [100, 100, 100]),
        ({"00181063": 40}, [40, 40, 40]),  # Frame Time, ms
        ({"00180040": 25, "00181063": 10}, [40, 40, 40]),  # Cine Rate, frames a second, goes first
        ({"00082144": 50, "00180040": 25}, [20, 20, 20]),  # Recommended Display Frame Rate before it
        ({"00181065": [0, 30, 50]}, [30, 50, 50]),  # Frame Time Vector: since the frame before
        ({"00181063": 0}, [100, 100, 100]),
        ({"00180040": 1000}, [10, 10, 10]),
        ({"00181063": "soon"}, [100, 100, 100]),
    ],
)
def test_frames_last_as_the_instance_says(told: dict[str, Any], expected: list[int]) -> None:
    document = {tag: {"Value": value if isinstance(value, list) else [value]} for tag, value in told.items()}

    assert durations_ms(document, [1, 2, 3]) == expected
