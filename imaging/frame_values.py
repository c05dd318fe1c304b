"""The frames of an instance: where each finds its attributes, and its values in modality units.

Hides where attributes lie (classic instances, functional groups of enhanced ones), rescaling by numbers or by a table,
bits beside the sample, and padding. Sources: PS3.3 C.7.6.16.2 (functional groups), C.11.1 (modality LUT), C.8.9.1 (PET
units), C.7.5.1.1.2.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from imaging.display import LookupTable
from imaging.errors import AppError, Category
from imaging.geometry import Float32, Matrix, Source

Pixels = NDArray[Any]

EXACT: Final = 1 << 24
"""Whole numbers up to this are the same in float32."""

UNITS: Final = {
    # Rescale Type or Units  UCUM          source
    "HU": "[hnsf'U]",      # PS3.3 C.11.1.1.2
    "BQML": "Bq/ml",       # PS3.3 C.8.9.1.1.3, as are the next
    "CNTS": "{counts}",
    "PROPCNTS": "{counts}",
    "GML": "g/ml",
    "CM2ML": "cm2/ml",
    "OD": "m[OD]",         # thousandths of optical density
    "MGML": "mg/ml",
    "PCT": "%",
    "GY": "Gy",            # Dose Units, PS3.3 C.8.8.3
}  # fmt: skip
_RESCALE: Final = (("Slope", 1.0), ("Intercept", 0.0))


@dataclass(frozen=True, slots=True, eq=False)
class Padding:
    """Pixels [row, column] of a frame that are no image, and the value that is shown darkest of the others."""

    mask: NDArray[np.bool_]
    darkest: float
    is_inverse: bool


@dataclass(frozen=True, slots=True, eq=False)
class Slice:
    """A frame that is not decoded yet: number `number`, from 1, of the instance at `index`."""

    ds: Dataset
    index: int
    number: int
    source: Source
    scale: "Scale"
    unit: str
    spacing_mm: tuple[float, float] | None
    position_mm: Matrix | None
    orientation: Matrix | None
    thickness_mm: float | None

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return int(self.ds.get("Rows", 0)), int(self.ds.get("Columns", 0))

    @property
    def is_inverse(self) -> bool:
        """Whether low values are shown white."""
        return bool(self.ds.get("PhotometricInterpretation") == "MONOCHROME1")

    def write(self, pixels: Pixels, values: Float32) -> "Padding | None":
        """Write values in modality units to [row, column]; return which are padding, None where none is."""
        if pixels.shape != self.shape:
            message = f"pixels {pixels.shape} do not fit frames of {self.shape} pixels"
            raise AppError(Category.INVALID, message, where=self.source.sop_instance_uid)
        stored = _stored_values(pixels, self.ds)
        self.scale.write(stored, values)
        mask = _padding(stored, self.ds)
        if mask is None or not mask.any():
            return None
        if mask.all():
            return Padding(mask, -np.inf if self.is_inverse else np.inf, self.is_inverse)
        return Padding(mask, self.scale.darkest(stored, mask, is_inverse=self.is_inverse), self.is_inverse)


class Scale(Protocol):
    """How stored values become values in modality units."""

    def write(self, stored: Pixels, values: Float32) -> None:
        """Write the values of stored ones, [row, column]."""

    def darkest(self, stored: Pixels, mask: NDArray[np.bool_], *, is_inverse: bool) -> float:
        """Return the value that is shown darkest of those, at least one, that the mask leaves."""


@dataclass(frozen=True, slots=True)
class Linear:
    """Rescale Slope and Intercept."""

    slope: float
    intercept: float

    def write(self, stored: Pixels, values: Float32) -> None:  # noqa: D102
        if self.is_whole and stored.dtype.itemsize <= 2:  # exact in float32, and quicker
            np.copyto(values, stored)
            if self.slope != 1:
                values *= np.float32(self.slope)
            if self.intercept:
                values += np.float32(self.intercept)
        else:
            values[:] = stored * np.float64(self.slope) + self.intercept

    def darkest(self, stored: Pixels, mask: NDArray[np.bool_], *, is_inverse: bool) -> float:  # noqa: D102
        # Of whole numbers, which are quicker; a falling slope turns them round.
        found = _extreme(stored, mask, wants_high=is_inverse is not (self.slope < 0))
        return float(np.float32(found * self.slope + self.intercept))

    @property
    def is_whole(self) -> bool:
        """Whether values of 16 bits are rescaled to whole numbers that float32 holds."""
        is_integer = self.slope.is_integer() and self.intercept.is_integer()
        return is_integer and abs(self.slope) * 2**16 + abs(self.intercept) < EXACT


@dataclass(frozen=True, slots=True, eq=False)
class Tabled:
    """A Modality LUT that is a table."""

    table: LookupTable

    def write(self, stored: Pixels, values: Float32) -> None:  # noqa: D102
        values[:] = self._entries(stored)

    def darkest(self, stored: Pixels, mask: NDArray[np.bool_], *, is_inverse: bool) -> float:  # noqa: D102
        return _extreme(self._entries(stored), mask, wants_high=is_inverse)

    def _entries(self, stored: Pixels) -> NDArray[np.uint16]:
        place = np.clip(stored.astype(np.int64) - self.table.first, 0, len(self.table.entries) - 1)
        return self.table.entries[place]


def _extreme(values: Pixels, mask: NDArray[np.bool_], *, wants_high: bool) -> float:
    """Return the highest or lowest whole number that the mask leaves."""
    info = np.iinfo(values.dtype)
    shown = np.where(mask, values.dtype.type(info.min if wants_high else info.max), values)
    return float(shown.max() if wants_high else shown.min())


def frames_told(ds: Dataset) -> int:
    """Return Number of Frames, 1 without it. Raises INVALID where it is no number."""
    told = ds.get("NumberOfFrames", 1) or 1
    try:
        return int(told)
    except (TypeError, ValueError):
        raise AppError(Category.INVALID, "Number of Frames is no whole number", where="(0028,0008)") from None


def slices_of(ds: Dataset, index: int, numbers: Iterable[int] = ()) -> Iterator[Slice]:
    """Yield frames of an instance, all of them unless numbers, from 1, say which.

    Raises UNSUPPORTED for colour, INVALID where attributes that place or scale pixels are no numbers.
    """
    try:
        yield from _slices(ds, index, numbers)
    except (TypeError, ValueError):  # of pydicom and numpy, which meet values that senders wrote
        message = "an attribute of the image that has to be a number is none"
        raise AppError(Category.INVALID, message, where=str(ds.get("SOPInstanceUID", ""))) from None


def _slices(ds: Dataset, index: int, numbers: Iterable[int]) -> Iterator[Slice]:
    uid = str(ds.get("SOPInstanceUID", ""))
    if int(ds.get("SamplesPerPixel", 1) or 1) != 1 or ds.get("PhotometricInterpretation") == "PALETTE COLOR":
        raise AppError(Category.UNSUPPORTED, "colour images have no modality units", where=uid)
    count = frames_told(ds)
    is_multi_frame = "NumberOfFrames" in ds
    for number in numbers or range(1, count + 1):
        groups = _Groups(ds, number)
        scale, unit = groups.scale()
        yield Slice(
            ds=ds,
            index=index,
            number=number,
            source=Source(str(ds.get("SOPClassUID", "")), uid, number if is_multi_frame else None),
            scale=scale,
            unit=unit,
            spacing_mm=groups.spacing(),
            # One position at the top level, as in RT Dose and nuclear medicine, is not that of every frame.
            position_mm=groups.position() if groups.is_own or count == 1 else None,
            orientation=groups.numbers("PlaneOrientationSequence", "ImageOrientationPatient", 6),
            thickness_mm=groups.thickness(),
        )


class _Groups:
    """Attributes of one frame: of its functional group, of the shared one, or of the top level."""

    def __init__(self, ds: Dataset, number: int) -> None:
        per_frame = ds.get("PerFrameFunctionalGroupsSequence") or []
        shared = ds.get("SharedFunctionalGroupsSequence") or []
        self._ds = ds
        self._items = [*per_frame[number - 1 : number], *shared[:1]]

    def item(self, sequence: str) -> Dataset:
        for group in self._items:
            if group.get(sequence):
                return Dataset(group[sequence].value[0])
        return self._ds

    @property
    def is_own(self) -> bool:
        """Whether the frame has a functional group of its own."""
        return bool(self._ds.get("PerFrameFunctionalGroupsSequence"))

    def position(self) -> Matrix | None:
        return self.numbers("PlanePositionSequence", "ImagePositionPatient", 3)

    def numbers(self, sequence: str, keyword: str, count: int) -> Matrix | None:
        value = self.item(sequence).get(keyword)
        if value is None or value == "":
            return None
        found = np.atleast_1d(np.asarray(value, dtype=np.float64))
        return found if len(found) == count and np.isfinite(found).all() else None

    def spacing(self) -> tuple[float, float] | None:
        for keyword in ("PixelSpacing", "ImagerPixelSpacing"):
            found = self.numbers("PixelMeasuresSequence", keyword, 2)
            if found is not None and found.min() > 0:
                return float(found[0]), float(found[1])
        return None

    def thickness(self) -> float | None:
        found = self.numbers("PixelMeasuresSequence", "SliceThickness", 1)
        return float(found[0]) if found is not None and found[0] > 0 else None

    def scale(self) -> tuple[Scale, str]:
        if self._ds.get("ModalityLUTSequence"):
            return self._tabled(self._ds.ModalityLUTSequence[0])
        item = self.item("PixelValueTransformationSequence")
        dose = _number(self._ds, "DoseGridScaling", 0.0)
        if dose and "RescaleSlope" not in item:
            return Linear(dose, 0.0), UNITS.get(str(self._ds.get("DoseUnits") or ""), "")
        slope, intercept = (_number(item, f"Rescale{of}", default) for of, default in _RESCALE)
        if slope == 0:
            raise AppError(Category.UNSUPPORTED, "a Rescale Slope of 0 makes all values alike", where="(0028,1053)")
        kind = str(item.get("RescaleType") or self._ds.get("Units") or "")
        if not kind and self._ds.get("Modality") == "CT" and "RescaleSlope" in item:
            kind = "HU"  # PS3.3 C.8.2.1: the default of original CT images
        return Linear(slope, intercept), UNITS.get(kind, "")

    def _tabled(self, item: Dataset) -> tuple[Scale, str]:
        if (
            self._ds.get("RescaleSlope") is not None
            or "FloatPixelData" in self._ds
            or "DoubleFloatPixelData" in self._ds
        ):
            message = "a modality LUT that is a table goes neither with a Rescale Slope nor with float pixels"
            raise AppError(Category.INVALID, message, where="(0028,3000)")
        table = _table(item, is_signed=bool(self._ds.get("PixelRepresentation")))
        return Tabled(table), UNITS.get(str(item.get("ModalityLUTType") or ""), "")


def _table(item: Dataset, *, is_signed: bool) -> LookupTable:
    """Return a lookup table. Raises INVALID for one that is damaged. Source: PS3.3 C.11.1.1."""
    descriptor, data = item.get("LUTDescriptor"), item.get("LUTData")
    if descriptor is None or len(descriptor) != 3 or not data:
        raise AppError(Category.INVALID, "a modality LUT has no descriptor or no data", where="(0028,3000)")
    count, first, bits = (int(each) for each in descriptor)
    count = count % (1 << 16) or 1 << 16  # 0 says 65,536
    first = _as_stored(first, np.dtype(np.int16 if is_signed else np.uint16))
    if isinstance(data, bytes):
        is_packed = bits <= 8 and len(data) < 2 * count
        entries = np.frombuffer(data[: len(data) // 2 * 2], np.uint8 if is_packed else "<u2")
    else:
        entries = np.asarray(data, dtype=np.int64)
    if len(entries) < count:
        message = f"a modality LUT of {count} entries has {len(entries)}"
        raise AppError(Category.INVALID, message, where="(0028,3006)")
    return LookupTable(first, bits, entries[:count].astype(np.uint16))


def _number(item: Dataset, keyword: str, default: float) -> float:
    value = item.get(keyword)
    return default if value is None or value == "" else float(value)


def _padding(stored: Pixels, ds: Dataset) -> NDArray[np.bool_] | None:
    """Return which stored values are padding (PS3.3 C.7.5.1.1.2), None where none is stated."""
    value = ds.get("PixelPaddingValue")
    if value is None or stored.dtype.kind == "f":
        return None
    limit = ds.get("PixelPaddingRangeLimit")
    ends = sorted(_as_stored(int(each), stored.dtype) for each in (value, value if limit is None else limit))
    return np.asarray((stored >= ends[0]) & (stored <= ends[1]))


def _as_stored(value: int, kind: np.dtype[Any]) -> int:
    """Return a number as pixels of this type hold it: senders write -2000 as 63536 and the reverse."""
    span, info = 1 << 8 * kind.itemsize, np.iinfo(kind)
    return value - span if value > info.max else value + span if value < info.min else value


def _stored_values(pixels: Pixels, ds: Dataset) -> Pixels:
    """Return the sample values of container words: without the bits around them, sign extended."""
    if pixels.dtype.kind == "f":
        return pixels
    allocated = 8 * pixels.dtype.itemsize
    stored = int(ds.get("BitsStored", allocated) or allocated)
    high = int(ds.get("HighBit", stored - 1))
    if stored == allocated or not stored <= high + 1 <= allocated:
        return pixels
    # Left then right: drops what lies above the sample, and extends its sign where the type has one.
    return np.right_shift(np.left_shift(pixels, allocated - 1 - high), allocated - stored)
