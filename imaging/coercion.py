"""Attributes that are changed on the way in: what they were stays in the data set, with who changed them and when.

Source: PS3.3 C.12.1 (Original Attributes Sequence) and C.12.1.1.9.
"""

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final

ORIGINAL_ATTRIBUTES: Final = "04000561"
COERCE: Final = "COERCE"  # Reason for the Attribute Modification (0400,0565), a defined term


def original_attributes(
    told: Mapping[str, Any], original: Mapping[str, Any], *, at: datetime, system: str
) -> dict[str, Any]:
    """Return the Original Attributes Sequence with one more item, as DICOM JSON.

    told      the data set, which may have a sequence already: its items stay
    original  what was changed, as it was; an attribute that was absent is without value
    """
    earlier = told.get(ORIGINAL_ATTRIBUTES, {}).get("Value", [])
    item = {
        "04000550": {"vr": "SQ", "Value": [dict(sorted(original.items()))]},  # Modified Attributes Sequence
        "04000562": {"vr": "DT", "Value": [f"{at:%Y%m%d%H%M%S.%f%z}"]},  # Attribute Modification DateTime
        "04000563": {"vr": "LO", "Value": [system[:64]]},  # Modifying System
        "04000564": {"vr": "LO"},  # Source of Previous Values
        "04000565": {"vr": "CS", "Value": [COERCE]},
    }
    return {ORIGINAL_ATTRIBUTES: {"vr": "SQ", "Value": [*earlier, item]}}
