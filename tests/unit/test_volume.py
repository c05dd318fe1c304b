"""Series become volumes in patient coordinates, or are refused with the reason. Expected: PS3.3 C.7.6.2.1.1."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence as Items

from imaging.dataset_from_json import dataset_of
from imaging.errors import AppError, Category
from imaging.volume import TOGETHER, Tilt, image_from, volume_from, volume_of
from tests.support.volumes import axial_series, enhanced, frame, slice_dataset


def refusal(*arguments: object) -> AppError:
    with pytest.raises(AppError) as caught:
        volume_from(*arguments)  # type: ignore[arg-type]
    return caught.value


def test_slices_in_any_order_become_one_volume_in_modality_units():
    datasets, frames = axial_series([0, 2, 4, 6])
    shuffled = [2, 0, 3, 1]

    volume = volume_from([datasets[index] for index in shuffled], [frames[index] for index in shuffled])

    assert volume.array.dtype == np.float32
    assert volume.array.shape == (4, 4, 5)
    assert [float(plane[0, 0]) for plane in volume.array] == [-1000, -980, -960, -940]  # 2 * stored - 1000
    assert volume.spacing_mm == (2.0, 0.5, 0.25)
    assert volume.unit == "[hnsf'U]"
    assert np.allclose(volume.position_mm((3, 2, 4)), (1 + 4 * 0.25, 2 + 2 * 0.5, 6))
    assert np.allclose(volume.index_at((2, 3, 6)), (3, 2, 4))
    assert volume.voxel_ml == pytest.approx(2 * 0.5 * 0.25 / 1000)
    assert [source.sop_instance_uid[-1] for source in volume.sources] == ["0", "1", "2", "3"]


def test_oblique_slices_advance_along_their_normal():
    cos, sin = math.cos(math.radians(30)), math.sin(math.radians(30))
    orientation = [1, 0, 0, 0, cos, sin]
    normal = np.array([0, -sin, cos])
    datasets = [slice_dataset(5 + 3 * n * normal, n, ImageOrientationPatient=orientation) for n in range(3)]

    volume = volume_from(datasets, [frame(n) for n in range(3)])

    assert np.allclose(volume.position_mm((2, 3, 1)), 5 + 6 * normal + 1.5 * np.array([0, cos, sin]) + [0.25, 0, 0])
    assert not volume.is_sheared


def test_frames_of_an_enhanced_instance_become_a_volume():
    ds = enhanced([(0, 0, 4), (0, 0, 0), (0, 0, 2)])
    pixels = np.stack([frame(4), frame(0), frame(2)])

    volume = volume_from([ds], [pixels])

    assert [float(plane[0, 0]) for plane in volume.array] == [-5, 1, 7]
    assert [source.frame for source in volume.sources] == [2, 3, 1]
    assert volume.spacing_mm == (2.0, 0.5, 0.25)


def test_of_two_acquisitions_in_one_instance_the_chosen_frames_become_a_volume():
    ds = enhanced([(1, 2, 2.0 * (n % 3)) for n in range(6)])
    stored = [frame(number) for number in range(1, 7)]

    def read(places: Sequence[tuple[int, int]]) -> list[Any]:
        return [stored[number - 1] for _, number in places]

    volume = volume_of([ds], read, frames=[4, 5, 6])

    assert [float(plane[0, 0]) for plane in volume.array] == [7, 10, 13]  # 3 * stored - 5
    assert [each.frame for each in volume.sources] == [4, 5, 6]
    with pytest.raises(AppError, match="the first two are frames 1 and 4 of one instance: choose frames"):
        volume_of([ds], read)


def test_bits_beside_the_sample_are_dropped_and_its_sign_is_extended():
    ds = slice_dataset((0, 0, 0), BitsStored=12, HighBit=11, RescaleSlope=1, RescaleIntercept=0)
    pixels = np.full((4, 5), 0x7FFF, dtype=np.int16)  # twelve ones: -1; the others are no part of it

    volume = volume_from([ds], [pixels])

    assert np.all(volume.array == -1)


@pytest.mark.parametrize(
    ("places", "words"),
    [
        ([0, 2, 4, 8, 10], "1 of 6 slices are missing, the first after slice 3"),
        ([0, 2, 6], "1 of 4 slices are missing, the first after slice 2"),
        ([0, 2, 5, 7], "distances between slices run from 2 to 3 mm"),
        ([0, 2, 2, 4], "slices lie where another one is"),
    ],
)
def test_what_is_no_regular_stack_is_refused_with_the_reason(places: list[float], words: str):
    error = refusal(*axial_series(places))

    assert error.category is Category.INVALID
    assert words in error.message


def test_rounded_positions_are_no_uneven_spacing():
    volume = volume_from(*axial_series([0.0, 1.67, 3.33, 5.0]))

    assert volume.spacing_mm[0] == pytest.approx(5 / 3)


def test_two_acquisitions_at_one_place_are_told_apart_in_the_message():
    datasets, frames = axial_series([0, 0, 2, 2])
    for number, ds in enumerate(datasets):
        ds.AcquisitionNumber = number % 2

    assert "AcquisitionNumber: give one acquisition" in refusal(datasets, frames).message


def test_gantry_tilt_is_refused_and_kept_as_shear_when_asked_for():
    degrees = 15
    datasets = [slice_dataset((0, 2 * n * math.tan(math.radians(degrees)), 2 * n), n) for n in range(4)]
    frames = [frame(n) for n in range(4)]

    error = refusal(datasets, frames)
    volume = volume_from(datasets, frames, tilt=Tilt.KEEP)

    assert error.category is Category.UNSUPPORTED
    assert "15.0 degrees" in error.message
    assert volume.is_sheared
    assert np.allclose(volume.position_mm((3, 0, 0)), (0, 6 * math.tan(math.radians(degrees)), 6))
    assert volume.voxel_ml == pytest.approx(2 * 0.5 * 0.25 / 1000)  # a shear keeps volumes


def _localizer(ds: Dataset) -> None:
    ds.ImageOrientationPatient = [0, 1, 0, 0, 0, -1]


def _no_position(ds: Dataset) -> None:
    del ds.ImagePositionPatient


def _other_spacing(ds: Dataset) -> None:
    ds.PixelSpacing = [0.6, 0.25]


def _other_frame_of_reference(ds: Dataset) -> None:
    ds.FrameOfReferenceUID = "1.2.3"


def _colour(ds: Dataset) -> None:
    ds.SamplesPerPixel = 3


def _crooked_axes(ds: Dataset) -> None:
    ds.ImageOrientationPatient = [1, 0, 0, 0.5, 0.8660254, 0]


@pytest.mark.parametrize(
    ("change", "category", "words"),
    [
        (_localizer, Category.INVALID, "2 directions"),
        (_no_position, Category.UNSUPPORTED, "without position"),
        (_other_spacing, Category.INVALID, "pixel spacing"),
        (_other_frame_of_reference, Category.INVALID, "frames of reference"),
        (_colour, Category.UNSUPPORTED, "colour"),
    ],
)
def test_a_slice_that_does_not_belong_is_refused(change, category: Category, words: str):
    datasets, frames = axial_series([0, 2, 4])
    change(datasets[1])

    error = refusal(datasets, frames)

    assert (error.category, words in error.message) == (category, True)


def test_axes_that_are_not_at_right_angles_are_refused():
    datasets, frames = axial_series([0, 2])
    for ds in datasets:
        _crooked_axes(ds)

    assert "right angles" in refusal(datasets, frames).message


def test_slices_that_leave_a_straight_line_are_refused():
    datasets = [slice_dataset((x, 0, 2 * n), n) for n, x in enumerate([0, 1, 0])]

    assert "straight line" in refusal(datasets, [frame(n) for n in range(3)]).message


def test_one_position_for_all_frames_is_not_the_place_of_each():
    ds = slice_dataset((0, 0, 0), NumberOfFrames=2)

    error = refusal([ds], [np.stack([frame(0), frame(1)])])

    assert (error.category, "without position" in error.message) == (Category.UNSUPPORTED, True)


def test_a_real_enhanced_ct_becomes_a_volume():
    ds = dcmread(str(get_testdata_file("eCT_Supplemental.dcm")))

    volume = volume_from([ds], [ds.pixel_array])

    positions = [group.PlanePositionSequence[0].ImagePositionPatient for group in ds.PerFrameFunctionalGroupsSequence]
    order = [(source.frame or 0) - 1 for source in volume.sources]
    assert volume.array.shape == (2, 512, 512)
    assert all(np.allclose(volume.position_mm((k, 0, 0)), positions[frame]) for k, frame in enumerate(order))


def test_one_slice_is_as_thick_as_it_says():
    assert volume_from(*axial_series([7])).spacing_mm == (3.0, 0.5, 0.25)


def test_an_image_has_its_place_and_units():
    image = image_from(slice_dataset((1, 2, 3)), frame(500))

    assert np.all(image.array == 0)
    assert image.spacing_mm == (0.5, 0.25)
    assert image.affine is not None
    assert np.allclose(image.affine @ [0, 2, 4, 1], (2, 3, 3, 1))


def test_a_frame_that_does_not_exist_is_refused():
    with pytest.raises(AppError, match="frame 4 asked, the instance has 3"):
        image_from(enhanced([(0, 0, 0)] * 3), np.stack([frame(0)] * 3), frame=4)


def test_a_colour_image_is_refused_as_one():
    ds = slice_dataset((0, 0, 0), SamplesPerPixel=3, PhotometricInterpretation="RGB")

    with pytest.raises(AppError, match="colour images have no modality units"):
        image_from(ds, np.zeros((4, 5, 3), np.uint8))


@pytest.mark.parametrize(
    "model",
    [{"00280008": {"vr": "IS", "Value": ["1A"]}}, {"00280030": {"vr": "DS", "Value": ["wide", 0.5]}}],
    ids=["Number of Frames", "Pixel Spacing"],
)
def test_what_should_be_a_number_and_is_none_is_told(model: dict[str, Any]):
    ds = slice_dataset((0, 0, 0))
    ds.update(dataset_of(model))

    with pytest.raises(AppError, match="number") as caught:
        image_from(ds, frame(0))

    assert caught.value.category is Category.INVALID


def test_each_slice_and_each_frame_is_rescaled_by_its_own_numbers():
    datasets, frames = axial_series([0, 2, 4])
    for number, ds in enumerate(datasets):
        ds.RescaleSlope, ds.RescaleIntercept = 1.5 + number, 0.25
    ds = enhanced([(0, 0, 0), (0, 0, 2)])
    for number, group in enumerate(ds.PerFrameFunctionalGroupsSequence):
        transform = Dataset()
        transform.RescaleSlope, transform.RescaleIntercept, transform.RescaleType = 10 * (number + 1), number, "HU"
        group.PixelValueTransformationSequence = Items([transform])
    del ds.SharedFunctionalGroupsSequence[0].PixelValueTransformationSequence

    classic = volume_from(datasets, frames)
    multi_frame = volume_from([ds], [np.stack([frame(7), frame(7)])])

    assert [float(plane[0, 0]) for plane in classic.array] == [0.25, 10 * 2.5 + 0.25, 20 * 3.5 + 0.25]
    assert [float(plane[0, 0]) for plane in multi_frame.array] == [70, 141]


def with_table(descriptor: list[int], data: Any, **changes: Any) -> Dataset:
    """Return a slice whose modality LUT is a table in place of a rescale."""
    ds = slice_dataset((0, 0, 0), **changes)
    del ds.RescaleSlope, ds.RescaleIntercept
    item = Dataset()
    item.LUTDescriptor, item.ModalityLUTType = descriptor, "OD"
    item.add_new("LUTData", "US" if isinstance(data, list) else "OW", data)
    ds.ModalityLUTSequence = Items([item])
    return ds


@pytest.mark.parametrize(
    ("descriptor", "data"),
    [
        ([3, 65534, 16], np.array([100, 200, 400], "<u2").tobytes()),  # first value -2, written as unsigned
        ([3, -2, 16], [100, 200, 400]),
        ([3, -2, 8], bytes([100, 200, 250, 0])),  # two entries in a word
        ([3, -2, 8], np.array([100, 200, 250], "<u2").tobytes()),  # one entry in a word
    ],
)
def test_a_modality_lut_that_is_a_table_gives_its_entries(descriptor, data):
    # PS3.3 C.11.1.1: values below the first mapped get the first entry, those beyond the last the last.
    last = 400.0 if descriptor[2] == 16 else 250.0
    pixels = np.zeros((4, 5), np.int16)
    pixels[0] = [-9, -2, -1, 0, 9]

    image = image_from(with_table(descriptor, data), pixels)

    assert image.array[0].tolist() == [100, 100, 200, last, last]
    assert image.unit == "m[OD]"


def test_what_is_padding_under_a_table_is_as_dark_as_the_darkest_image():
    pixels = np.zeros((4, 5), np.int16)
    pixels[0, 0] = 7
    ds = with_table([8, 0, 16], list(range(80, 0, -10)), PixelPaddingValue=7)
    inverse = with_table(
        [8, 0, 16], list(range(80, 0, -10)), PixelPaddingValue=7, PhotometricInterpretation="MONOCHROME1"
    )
    pixels[1, 1] = 3

    assert [float(image_from(each, pixels).array[0, 0]) for each in (ds, inverse)] == [50, 80]


@pytest.mark.parametrize(
    ("ds", "words"),
    [
        (with_table([4, 0, 16], [1, 2, 3]), "a modality LUT of 4 entries has 3"),
        (with_table([4, 0], [1, 2, 3, 4]), "no descriptor"),
        (with_table([4, 0, 16], None), "no data"),
    ],
)
def test_a_table_that_is_damaged_is_refused(ds, words):
    with pytest.raises(AppError, match=words):
        image_from(ds, np.zeros((4, 5), np.int16))


def test_a_table_beside_a_rescale_is_refused():
    ds = with_table([1, 0, 16], [5])
    ds.RescaleSlope = 2

    with pytest.raises(AppError, match="neither with a Rescale Slope"):
        image_from(ds, np.zeros((4, 5), np.int16))


def test_doses_are_scaled_as_their_grid_says():
    ds = slice_dataset((0, 0, 0), Modality="RTDOSE", DoseGridScaling="0.25", DoseUnits="GY")
    del ds.RescaleSlope, ds.RescaleIntercept

    image = image_from(ds, frame(8))

    assert (float(image.array[0, 0]), image.unit) == (2, "Gy")


def test_a_slope_of_zero_is_refused():
    datasets, frames = axial_series([0, 2])
    datasets[1].RescaleSlope = 0

    assert refusal(datasets, frames).category is Category.UNSUPPORTED


@pytest.mark.parametrize(
    ("attributes", "padded"),
    [
        ({"PixelPaddingValue": -2000}, {-2000}),
        ({"PixelPaddingValue": 63536}, {-2000}),  # the same 16 bits
        ({"PixelPaddingValue": -2000, "PixelPaddingRangeLimit": -1990}, {-2000, -1995}),
        ({}, set()),
    ],
)
def test_padding_gets_the_darkest_of_the_other_values(attributes: dict[str, int], padded: set[int]):
    pixels = np.arange(20, dtype=np.int16).reshape(4, 5)
    pixels[0, :2] = -2000, -1995
    ds = slice_dataset((0, 0, 0), RescaleSlope=1, RescaleIntercept=0, **attributes)

    volume, image = volume_from([ds], [pixels]), image_from(ds, pixels)

    darkest = min(set(pixels.ravel().tolist()) - padded)
    expected = np.where(np.isin(pixels, list(padded)), darkest, pixels)
    assert np.array_equal(volume.array[0], expected)
    assert np.array_equal(image.array, expected)
    assert (set() if volume.padding is None else set(pixels[volume.padding[0]].tolist())) == padded


def test_what_is_shown_white_at_low_values_is_padded_with_the_highest():
    pixels = np.array([[0, 1, 2, 3, 4]] * 4, dtype=np.int16)
    attributes = {"PixelPaddingValue": 0, "PhotometricInterpretation": "MONOCHROME1"}
    ds = slice_dataset((0, 0, 0), RescaleSlope=1, RescaleIntercept=0, **attributes)

    image = image_from(ds, pixels)

    assert image.is_inverse
    assert image.array[0].tolist() == [4, 1, 2, 3, 4]


def test_frames_are_read_some_at_a_time_when_all_else_is_right():
    count = 2 * TOGETHER + 3
    datasets, frames = axial_series([2 * n for n in range(count)])
    asked: list[list[tuple[int, int]]] = []

    def read(places: Sequence[tuple[int, int]]) -> list[np.ndarray]:
        asked.append(list(places))
        return [frames[index] for index, _ in places]

    volume = volume_of(datasets[::-1], read)
    with pytest.raises(AppError):
        volume_of([datasets[0], datasets[2], datasets[1], datasets[0]], read)

    assert sorted(place for places in asked for place in places) == [(index, 1) for index in range(count)]
    assert sorted(map(len, asked)) == [3, TOGETHER, TOGETHER]
    # The first slice is the last dataset, whose frame `read` was to find at the first place.
    assert np.array_equal(volume.array, volume_from(datasets, frames[::-1]).array)
