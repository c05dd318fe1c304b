"""What results keep of the images that they are made from: what all sources agree on and what stays true.

What describes pixels, their place, the instance, or how its frames are arranged is left out and written anew. So are
private elements, since nobody can say whether they still hold. Sources: PS3.3 C.7.6.1 (General Image), C.12.1.
"""

from collections.abc import Sequence
from copy import deepcopy
from typing import Final

from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset

CT_IMAGE: Final = "1.2.840.10008.5.1.4.1.1.2"
MR_IMAGE: Final = "1.2.840.10008.5.1.4.1.1.4"
PET_IMAGE: Final = "1.2.840.10008.5.1.4.1.1.128"
SECONDARY_CAPTURE: Final = "1.2.840.10008.5.1.4.1.1.7"

CLASSES: Final = {
    # SOP class of all sources          of results with a place in the patient
    CT_IMAGE:                         CT_IMAGE,
    "1.2.840.10008.5.1.4.1.1.2.1":    CT_IMAGE,   # enhanced
    "1.2.840.10008.5.1.4.1.1.2.2":    CT_IMAGE,   # legacy converted enhanced
    MR_IMAGE:                         MR_IMAGE,
    "1.2.840.10008.5.1.4.1.1.4.1":    MR_IMAGE,   # enhanced
    "1.2.840.10008.5.1.4.1.1.4.4":    MR_IMAGE,   # legacy converted enhanced
    PET_IMAGE:                        PET_IMAGE,
}  # fmt: skip
"""Everything else becomes Secondary Capture, which promises nothing about acquisition or units."""

REQUIRED: Final[dict[str, dict[str, str | None]]] = {
    # SOP class  what it must have though sources may not: empty, or the value that says nothing
    CT_IMAGE: {"KVP": None, "AcquisitionNumber": None},
    MR_IMAGE: {
        "ScanningSequence": "RM", "SequenceVariant": "NONE", "ScanOptions": None, "MRAcquisitionType": None,
        "RepetitionTime": None, "EchoTime": None, "EchoTrainLength": None,
    },
    PET_IMAGE: {"CorrectedImage": None},
    SECONDARY_CAPTURE: {"ConversionType": "WSD"},
}  # fmt: skip

_KEPT_OF_PIXELS: Final = frozenset({0x00280051, 0x00280301, 0x00282110, 0x00282112, 0x00282114})
"""Corrected Image (of PET), Burned In Annotation and Lossy Image Compression: true whatever is computed of pixels."""
_DROPPED: Final = frozenset({
    # the instance, its series, and what it refers to
    0x00080008, 0x00080012, 0x00080013, 0x00080014, 0x00080016, 0x00080018, 0x00080023, 0x00080033, 0x0008002A,
    0x0008103E, 0x0008103F, 0x00080021, 0x00080031, 0x00081115, 0x00081140, 0x00082111, 0x00082112, 0x00089092,
    0x00089121, 0x00089124, 0x00089154, 0x00089215, 0x0018A001, 0x0020000E, 0x00200011, 0x00200013, 0x00204000,
    0x00420013,
    # how frames are arranged and shown
    0x00089205, 0x00089206, 0x00089207, 0x00089208, 0x00181063, 0x00181065, 0x00182142, 0x00186011, 0x00200242,
    0x00209161, 0x00209162, 0x00209163, 0x00209164, 0x00209228, 0x00209221, 0x00209222, 0x00209311,
    # the place of its pixels, and what their values stand for
    0x00180050, 0x00180088, 0x00181100, 0x00181120, 0x00181164, 0x00181312, 0x00182010, 0x00200020, 0x00200032,
    0x00200037, 0x00201040, 0x00201041, 0x00409096, 0x3004000C, 0x3004000E,
})  # fmt: skip
_SHUTTERS: Final = range(0x00181600, 0x00181800)  # and collimators: edges in pixels
_DROPPED_GROUPS: Final = frozenset({0x0028, 0x0088, 0x2050, 0x4FFE, 0x5200, 0x7FE0, 0xFFFA})
"""Pixels and their description, icons, presentation, functional groups, signatures; overlays (60xx) as well."""
_OF_THE_FIRST: Final = frozenset({
    0x00080005, 0x00080020, 0x00080030, 0x00080050, 0x00080051, 0x00080090, 0x00081030, 0x0020000D, 0x00200010,
})  # fmt: skip
"""Identity of the study, and the character set that texts are written in, whatever the others use."""


def kept(sources: Sequence[Dataset]) -> Dataset:
    """Return a copy of what all sources agree on and that stays true of results."""
    first, common = sources[0], Dataset()
    for element in first:
        tag = int(element.tag)
        if not _is_dropped(tag) and (tag in _OF_THE_FIRST or all(_has(ds, element) for ds in sources[1:])):
            common[tag] = deepcopy(element)
    return common


def _has(ds: Dataset, element: DataElement) -> bool:
    """Say whether a dataset has an equal element; those of a series are often the same objects, which is quick."""
    return ds.get_item(element.tag) is element or (element.tag in ds and ds[element.tag] == element)


def class_of(sources: Sequence[Dataset], *, is_placed: bool, is_pet_unit: bool) -> str:
    """Return the SOP class of a result: that of the sources where its promises still hold, else Secondary Capture."""
    uids = {str(ds.get("SOPClassUID", "")) for ds in sources}
    uid = CLASSES.get(uids.pop(), SECONDARY_CAPTURE) if len(uids) == 1 else SECONDARY_CAPTURE
    return SECONDARY_CAPTURE if not is_placed or (uid == PET_IMAGE and not is_pet_unit) else uid


def _is_dropped(tag: int) -> bool:
    group = tag >> 16
    is_gone = tag in _DROPPED or group in _DROPPED_GROUPS or group % 2 == 1 or 0x6000 <= group <= 0x60FF
    return (is_gone or tag in _SHUTTERS) and tag not in _KEPT_OF_PIXELS
