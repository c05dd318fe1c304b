"""Each algorithm on a phantom whose result is known in closed form, and what it refuses."""

import math
from typing import Any

import numpy as np
import pytest
from pydicom.dataset import Dataset

from imaging.algorithm import Algorithm, Result, Takes
from imaging.algorithms import algorithms
from imaging.errors import AppError, Category
from imaging.geometry import Source, Volume
from tests.support.dicom_builder import instance
from tests.support.volumes import image_of, volume_of


def run(name: str, *inputs: Any, **values: Any) -> Result:
    return algorithms.get(name).build(values)(*inputs)


def refused(name: str, *inputs: Any, **values: Any) -> AppError:
    with pytest.raises(AppError) as caught:
        run(name, *inputs, **values)
    return caught.value


def ramp(volume: Volume) -> Volume:
    """The same grid with x + 2 y + 3 z at each voxel; linear interpolation must reproduce it."""
    k, j, i = np.indices(volume.array.shape)
    x, y, z, _ = np.tensordot(volume.affine, np.stack([k, j, i, np.ones_like(k)]), axes=1)
    return Volume(np.asarray(x + 2 * y + 3 * z, dtype=np.float32), volume.affine, "[hnsf'U]")


def centres_inside(volume: Volume, source: Volume) -> np.ndarray:
    """Which voxels of `volume` lie between the centres of `source`."""
    k, j, i = np.indices(volume.array.shape)
    points = np.linalg.inv(source.affine) @ volume.affine
    indices = np.tensordot(points, np.stack([k, j, i, np.ones_like(k)]), axes=1)[:3]
    last = np.reshape(source.array.shape, (3, 1, 1, 1)) - 1
    inside: np.ndarray = ((indices > -1e-6) & (indices < last + 1e-6)).all(axis=0)
    return inside


def grid(shape: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Indices counted from the middle of the grid."""
    k, j, i = np.indices(shape).astype(np.float64)
    return k - (shape[0] - 1) / 2, j - (shape[1] - 1) / 2, i - (shape[2] - 1) / 2


def turned(degrees: float, spacing: tuple[float, float, float], shape: tuple[int, int, int]) -> Volume:
    """An oblique grid: turned about x."""
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    axes = np.array([[0, 0, 1], [-sin, cos, 0], [cos, sin, 0]])
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = axes * spacing, (10, 20, 30)
    return Volume(np.zeros(shape, dtype=np.float32), affine)


@pytest.mark.parametrize("name", sorted(algorithms))
def test_an_algorithm_says_what_it_is(name: str):
    algorithm = algorithms.get(name)

    assert issubclass(algorithm, Algorithm)
    assert all((algorithm.version, algorithm.title, algorithm.source, algorithm.derivation.value))
    assert algorithm.takes in Takes
    assert algorithm.description().endswith((".", ";", ",")) or algorithm.description()
    assert all(parameter.help for parameter in algorithm.parameters())


REQUIRED: dict[str, dict[str, Any]] = {
    "window-level": {"center": 40, "width": 80},
    "bilateral": {"sigma_values": 20},
    "nonlocal-means": {"strength": 10},
    "threshold": {"low": 50},
    "region-growing": {"seed_mm": [6, 6, 6], "low": -10},
    "roi-measure": {"center_mm": [6, 6, 6], "half_size_mm": [3, 3, 3]},
    "suv": {"weight_kg": 70, "dose_bq": 1e8, "half_life_s": 6586, "elapsed_s": 60},
}


def inputs(takes: Takes) -> tuple[Any, ...]:
    """The same noise each time, positive, in Bq/ml."""
    array = np.random.default_rng(7).uniform(1, 100, (12, 13, 14))
    volume = volume_of(array, unit="Bq/ml")
    images = tuple(image_of(plane) for plane in array)
    return {
        Takes.IMAGE: images[:1],
        Takes.IMAGES: (images,),
        Takes.VOLUME: (volume,),
        Takes.PAIR: (blobs(0, (0, 0, 0)), blobs(0.05, (1, 0, 0))),
        Takes.FILES: ([instance(np.full((4, 4), number, np.uint16), number=number) for number in (1, 2)], b"k" * 16),
    }[takes]


def arrays(result: Result) -> list[np.ndarray]:
    return [
        *(each.array for each in (*result.images, *result.volumes)),
        *(each.mask for each in result.segmentations),
        *(np.frombuffer(each, np.uint8) != 0 for each in result.files),
        np.array([each.value for each in result.measurements]),
    ]


@pytest.mark.parametrize("name", sorted(algorithms))
def test_a_second_run_gives_the_same_and_the_input_stays(name: str):
    algorithm = algorithms.get(name).build(REQUIRED.get(name, {}))
    given = inputs(algorithm.takes)

    first, second = arrays(algorithm(*given)), arrays(algorithm(*given))

    assert all(np.array_equal(one, other) for one, other in zip(first, second, strict=True))
    assert all(array.dtype in (np.float32, np.bool_) for array in first[:-1])
    if algorithm.takes is Takes.FILES:
        assert given == inputs(algorithm.takes)
        return
    for one, untouched in zip(given, inputs(algorithm.takes), strict=True):
        pairs = zip(one, untouched, strict=True) if isinstance(one, tuple) else [(one, untouched)]
        assert all(np.array_equal(used.array, other.array) for used, other in pairs)


@pytest.mark.parametrize("name", sorted(name for name in algorithms if algorithms.get(name).takes is Takes.VOLUME))
def test_a_tilted_stack_is_taken_or_refused_as_told(name: str):
    algorithm = algorithms.get(name).build(REQUIRED.get(name, {}))
    (volume,) = inputs(Takes.VOLUME)
    volume.affine[1, 0] = 0.3

    if algorithm.takes_tilted:
        assert arrays(algorithm(volume))
    else:
        with pytest.raises(AppError, match="gantry tilt"):
            algorithm(volume)


def test_window_level_maps_as_the_standard_says():
    image = image_of(np.array([[-1000.0, -160, 40, 239, 3000]]))

    result = run("window-level", image, center=40, width=400)

    # PS3.3 C.11.2.1.2.1 with c - 0.5 = 39.5, w - 1 = 399
    assert np.allclose(result.images[0].array, [[0, 0, 0.5 / 399 + 0.5, 199.5 / 399 + 0.5, 1]], atol=1e-6)
    assert result.lost == 2


def test_isotropic_resampling_of_an_oblique_ramp_is_exact():
    result = run("resample-isotropic", ramp(turned(25, (3, 0.5, 0.5), (9, 21, 17))), spacing_mm=0.75)

    (volume,) = result.volumes
    assert volume.spacing_mm == pytest.approx((0.75,) * 3)
    assert volume.array.shape == (33, 14, 11)
    assert np.allclose(volume.array, ramp(volume).array, atol=1e-3)
    assert result.lost == 0


def test_isotropic_resampling_sets_a_tilted_stack_upright():
    tilted = volume_of(np.zeros((9, 30, 20)), (2, 1, 1))
    tilted.affine[1, 0] = 1.0  # each slice 1 mm further back

    result = run("resample-isotropic", ramp(tilted), spacing_mm=1.0)

    (volume,) = result.volumes
    assert not volume.is_sheared
    inside = centres_inside(volume, tilted)
    assert np.allclose(volume.array[inside], ramp(volume).array[inside], atol=1e-3)
    assert inside.sum() == (9 * 30 + 8 * 29) * 20  # between slices, rows are half a step off
    assert result.lost > 0


@pytest.mark.parametrize(
    ("plane", "row", "column"),
    [
        ("axial", (1, 0, 0), (0, 1, 0)),
        ("coronal", (1, 0, 0), (0, 0, -1)),
        ("sagittal", (0, 1, 0), (0, 0, -1)),
    ],
)
def test_orthogonal_planes_of_a_ramp_are_exact(plane: str, row: Any, column: Any):
    result = run("mpr", ramp(volume_of(np.zeros((8, 10, 12)), (2, 1, 1))), plane=plane, spacing_mm=0.5, step_mm=1)

    (volume,) = result.volumes
    assert np.allclose(volume.directions[:, 2], row)
    assert np.allclose(volume.directions[:, 1], column)
    assert np.allclose(volume.directions[:, 0], np.cross(row, column))
    assert np.allclose(volume.array, ramp(volume).array, atol=1e-3)
    assert result.lost == 0


def test_an_oblique_plane_of_a_ramp_is_exact_and_counts_what_lies_outside():
    source = ramp(volume_of(np.zeros((20, 20, 20))))
    half = math.sqrt(0.5)

    result = run("mpr", source, plane="oblique", row_direction=[half, half, 0], column_direction=[0, 0, 1])

    (volume,) = result.volumes
    inside = centres_inside(volume, source)
    assert np.allclose(volume.array[inside], ramp(volume).array[inside], atol=1e-3)
    assert inside.sum() > volume.array.size / 4
    assert 0 < result.lost < volume.array.size


def test_oblique_directions_that_are_not_at_right_angles_are_refused():
    error = refused(
        "mpr", volume_of(np.zeros((4, 4, 4))), plane="oblique", row_direction=[1, 0, 0], column_direction=[1, 1, 0]
    )

    assert (error.category, error.where) == (Category.INVALID, "row_direction, column_direction")


@pytest.mark.parametrize(("projection", "expected"), [("maximum", 3), ("minimum", 0), ("mean", 1.5)])
def test_a_slab_of_slices_numbered_upwards(projection: str, expected: float):
    volume = volume_of(np.broadcast_to(np.arange(10.0)[:, None, None], (10, 3, 3)), (2, 1, 1))

    (slab,) = run("slab", volume, projection=projection, thickness_mm=8, step_mm=4).volumes

    assert slab.array[:, 0, 0].tolist() == [expected + 2 * n for n in range(4)]
    assert np.allclose(slab.position_mm((0, 0, 0)), (0, 0, 3))  # the middle of slices at 0, 2, 4, 6 mm
    assert slab.spacing_mm[0] == 4


def test_each_projection_has_its_own_code():
    codes = {
        algorithms.get("slab").build({"projection": each}).performed().value for each in ("maximum", "minimum", "mean")
    }

    assert codes == {"113078", "113079", "113049"}  # PS3.16 CID 7203


def test_median_removes_a_speck_and_keeps_an_edge():
    edge = np.zeros((9, 9))
    edge[:, 5:] = 100
    speckled = edge.copy()
    speckled[4, 2] = 999

    (image,) = run("median", image_of(speckled), radius=1).images

    assert np.array_equal(image.array, edge.astype(np.float32))


def test_bilateral_keeps_a_strong_edge_and_averages_weak_noise():
    noise = np.random.default_rng(1).normal(0, 1, (48, 48))
    edge = np.where(np.arange(48) < 24, 0.0, 1000.0) + noise

    (image,) = run("bilateral", image_of(edge), sigma_values=20, sigma=2).images

    assert abs(image.array[:, :24].mean()) < 0.2
    assert abs(image.array[:, 24:].mean() - 1000) < 0.2
    # The mean of Gaussian weights with sigma s leaves 1 / (2 s sqrt(pi)) of independent noise.
    assert image.array[10:38, 8:16].std() == pytest.approx(1 / (4 * math.sqrt(math.pi)), rel=0.35)


def test_nonlocal_means_leaves_what_has_no_noise_and_lowers_noise():
    stripes = np.where(np.indices((40, 40))[1] // 5 % 2, 100.0, 0.0) + 50_000
    noisy = stripes + np.random.default_rng(2).normal(0, 5, stripes.shape)

    (clean,) = run("nonlocal-means", image_of(stripes), strength=1).images
    (filtered,) = run("nonlocal-means", image_of(noisy), strength=5, noise=5).images

    assert np.allclose(clean.array, stripes, atol=0.01)
    assert np.std(filtered.array - stripes) < 2.5


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1)])
def test_nonlocal_means_of_a_line_is_a_line(shape: tuple[int, int]):
    (image,) = run("nonlocal-means", image_of(np.full(shape, 7.0)), strength=1).images

    assert image.array.shape == shape
    assert (image.array == 7).all()


def test_curvature_flow_shrinks_a_cylinder_as_the_formula_says():
    _, y, x = grid((8, 65, 65))
    radius = np.hypot(x, y)

    (volume,) = run("curvature-flow", volume_of(radius), iterations=64, time_step=0.0625).volumes

    # What is at r after t = 4 mm2 came from sqrt(r^2 + 2 t).
    ring = (radius > 10) & (radius < 20)
    assert np.abs(volume.array - np.sqrt(radius**2 + 8))[ring].max() < 0.02


def test_curvature_flow_refuses_a_sheared_volume():
    volume = volume_of(np.zeros((8, 8, 8)))
    volume.affine[1, 0] = 0.3

    assert refused("curvature-flow", volume).category is Category.UNSUPPORTED


def test_clahe_leaves_equally_frequent_grey_values_where_they_are():
    values = np.random.default_rng(3).permutation(np.arange(128 * 128)).reshape(128, 128)

    (image,) = run("clahe", image_of(values), tiles=1, clip_limit=1).images

    # Equalisation maps a value to its rank; 256 grey levels are told apart.
    assert np.abs(image.array - values / (128 * 128 - 1)).max() < 0.02


def test_clahe_of_one_value_is_zero():
    assert not run("clahe", image_of(np.full((32, 32), 7.0))).images[0].array.any()


def test_unsharp_masking_amplifies_a_wave_as_the_formula_says():
    omega, sigma, amount = 2 * math.pi / 16, 1.5, 2.0
    wave = np.broadcast_to(np.sin(omega * np.arange(160)), (32, 160))

    (image,) = run("unsharp", image_of(wave), sigma=sigma, amount=amount).images

    gain = 1 + amount * (1 - math.exp(-((sigma * omega) ** 2) / 2))
    assert np.allclose(image.array[:, 16:-16], gain * wave[:, 16:-16], atol=2e-3)


def test_n4_removes_a_smooth_shading():
    z, y, x = grid((12, 48, 48))
    tissue = np.where(np.hypot(y, x) < 20, np.where(np.hypot(y, x) < 10, 200.0, 120.0), 0.0)
    field = np.exp(0.4 * x / 24 + 0.2 * (y / 24) ** 2 + 0.05 * z / 6)

    (volume,) = run("n4", volume_of(tissue * field), iterations=50, levels=3, shrink=1).volumes

    inner = np.hypot(y, x) < 8
    before, after = (tissue * field)[inner], volume.array[inner]
    assert after.std() / after.mean() < 0.4 * before.std() / before.mean()


def test_n4_refuses_negative_values():
    assert refused("n4", volume_of(np.full((8, 8, 8), -1.0))).category is Category.UNSUPPORTED


def test_subtraction_with_the_right_shift_leaves_the_contrast_alone():
    background = np.random.default_rng(4).uniform(100, 200, (32, 32))
    vessel = np.zeros((32, 32))
    vessel[10:20, 15] = -40
    moved = np.roll(background, (2, 3), axis=(0, 1)) + vessel

    result = run("dsa", (image_of(background), image_of(moved)), shift=[2, 3])

    assert np.allclose(result.images[0].array[2:, 3:], vessel[2:, 3:], atol=1e-3)


def test_logarithmic_subtraction_gives_the_attenuation_of_the_contrast_medium():
    bone = np.random.default_rng(5).uniform(0.5, 2, (16, 16))
    contrast = np.full((16, 16), 0.25)
    frames = tuple(image_of(1000 * np.exp(-total)) for total in (bone, bone, bone + contrast))

    result = run("dsa", frames, mask_last=2, logarithmic=True)

    assert np.allclose(result.images[0].array, -0.25, atol=1e-5)
    assert result.lost == 0


def test_a_mask_beyond_the_frames_is_refused():
    assert refused("dsa", (image_of(np.ones((4, 4))),)).where == "mask_last"


def test_threshold_measures_a_box_in_millilitres():
    box = np.zeros((10, 20, 20))
    box[2:7, 5:15, 5:15] = 100

    result = run("threshold", volume_of(box, (2, 1, 1)), low=100, high=100)

    assert result.measurements[0].value == pytest.approx(5 * 10 * 10 * 2 / 1000)
    assert np.array_equal(result.segmentations[0].mask, box == 100)


def test_region_growing_takes_the_ball_of_the_seed_only():
    z, y, x = grid((40, 40, 80))
    near, far = np.sqrt(z**2 + y**2 + (x + 20) ** 2) <= 12, np.sqrt(z**2 + y**2 + (x - 20) ** 2) <= 12
    volume = volume_of(np.where(near | far, 50.0, 0.0), (0.5, 0.5, 0.5))

    result = run("region-growing", volume, seed_mm=[(39.5 - 20) * 0.5, 10, 10], low=40)

    assert np.array_equal(result.segmentations[0].mask, near)
    assert result.measurements[0].value == pytest.approx(4 / 3 * math.pi * 6**3 / 1000, rel=0.02)


@pytest.mark.parametrize("seed", [(-5, 0, 0), (0, 0, 0)])
def test_a_seed_outside_is_refused(seed: tuple[float, float, float]):
    volume = volume_of(np.zeros((4, 4, 4)))

    assert refused("region-growing", volume, seed_mm=list(seed), low=1).where == "seed_mm"


def test_a_region_of_a_ramp_has_the_value_of_its_middle_as_mean():
    volume = ramp(volume_of(np.zeros((21, 21, 21))))

    result = run("roi-measure", volume, center_mm=[10, 9, 8], half_size_mm=[2, 0.1, 0.1], shape="box")

    found = {each.name: each.value for each in result.measurements}
    middle = 10 + 2 * 9 + 3 * 8
    assert found["mean"] == pytest.approx(middle)
    assert found["standard_deviation"] == pytest.approx(math.sqrt(2.5))  # of -2, -1, 0, 1, 2
    assert (found["minimum"], found["maximum"]) == (middle - 2, middle + 2)
    assert found["volume"] == pytest.approx(0.005)


def test_an_ellipsoid_has_the_volume_of_the_formula():
    volume = volume_of(np.zeros((60, 60, 60)), (0.5, 0.5, 0.5))

    result = run("roi-measure", volume, center_mm=[14.75] * 3, half_size_mm=[12, 10, 8])

    assert result.measurements[-1].value == pytest.approx(4 / 3 * math.pi * 12 * 10 * 8 / 1000, rel=0.01)


def test_a_region_without_voxels_is_refused():
    error = refused("roi-measure", volume_of(np.zeros((4, 4, 4))), center_mm=[99, 0, 0], half_size_mm=[1, 1, 1])

    assert error.where == "center_mm"


def suv_dataset(**attributes: Any) -> Dataset:
    ds, tracer = Dataset(), Dataset()
    ds.PatientWeight, ds.DecayCorrection = 70, "START"
    ds.SeriesDate, ds.SeriesTime, ds.AcquisitionDate, ds.AcquisitionTime = "20240102", "110000", "20240102", "110000"
    tracer.RadiopharmaceuticalStartTime, tracer.RadionuclideTotalDose = "100000", 3.5e8
    tracer.RadionuclideHalfLife = 3600.0
    ds.RadiopharmaceuticalInformationSequence = [tracer]
    for keyword, value in attributes.items():
        setattr(ds, keyword, value)
    return ds


def test_suv_is_one_where_the_dose_is_spread_evenly():
    values = algorithms.get("suv").presets([suv_dataset()])
    evenly = 3.5e8 / 2 / 70_000  # after one half-life, in Bq/g

    (volume,) = run("suv", volume_of(np.full((2, 2, 2), evenly), unit="Bq/ml"), **values).volumes

    assert values["elapsed_s"] == 3600
    assert np.allclose(volume.array, 1)
    assert volume.unit == "g/ml"


@pytest.mark.parametrize(
    ("attributes", "elapsed"),
    [
        ({"DecayCorrection": "ADMIN"}, 0.0),
        ({"DecayCorrection": "NONE"}, None),
        ({"SeriesTime": "113000"}, None),  # later than the acquisition: processed since
        ({"SeriesTime": "093000"}, None),  # before the administration
        ({"AcquisitionTime": ""}, None),  # whether it was processed since, nobody knows
    ],
)
def test_the_elapsed_time_is_taken_only_where_the_images_state_it(attributes: dict[str, str], elapsed: float | None):
    assert algorithms.get("suv").presets([suv_dataset(**attributes)]).get("elapsed_s") == elapsed


@pytest.mark.parametrize(
    ("administered", "zone", "elapsed"),
    [
        ("20240101235000", "", 40_200.0),  # the evening before
        ("20240102100000+0100", "+0100", 3600.0),
        ("20240102090000+0000", "+0100", 3600.0),
        ("20240102100000+0100", "", None),  # in which zone the series was begun, nobody knows
    ],
)
def test_the_date_and_zone_of_the_administration_count(administered: str, zone: str, elapsed: float | None):
    ds = suv_dataset()
    ds.RadiopharmaceuticalInformationSequence[0].RadiopharmaceuticalStartDateTime = administered
    if zone:
        ds.TimezoneOffsetFromUTC = zone

    assert algorithms.get("suv").presets([ds]).get("elapsed_s") == elapsed


def test_the_image_that_was_acquired_first_tells_whether_the_series_was_begun_later():
    datasets = [suv_dataset(AcquisitionTime=time) for time in ("110600", "110300", "110000")]
    later = [*datasets[:2], suv_dataset(AcquisitionTime="105900")]

    assert algorithms.get("suv").presets(datasets)["elapsed_s"] == 3600
    assert "elapsed_s" not in algorithms.get("suv").presets(later)


@pytest.mark.parametrize(("half_life_s", "elapsed"), [(6586.2, 3600.0), (282_276.0, None)])
def test_a_time_without_date_is_one_of_the_same_day_for_short_half_lives_only(half_life_s: float, elapsed: Any):
    ds = suv_dataset()
    ds.RadiopharmaceuticalInformationSequence[0].RadionuclideHalfLife = half_life_s  # of F-18, of Zr-89

    assert algorithms.get("suv").presets([ds]).get("elapsed_s") == elapsed


def test_of_two_tracers_none_is_taken():
    ds = suv_dataset()
    ds.RadiopharmaceuticalInformationSequence = [ds.RadiopharmaceuticalInformationSequence[0], Dataset()]

    assert algorithms.get("suv").presets([ds]) == {"weight_kg": 70}


def test_suv_refuses_counts():
    values = {"weight_kg": 70, "dose_bq": 1e8, "half_life_s": 6586, "elapsed_s": 0}

    assert refused("suv", volume_of(np.ones((2, 2, 2)), unit="{counts}"), **values).category is Category.UNSUPPORTED


def test_a_montage_lays_images_in_reading_order():
    images = tuple(image_of(np.full((2, 3), value)) for value in (1.0, 2.0, 3.0))

    (sheet,) = run("montage", images, columns=2).images

    assert sheet.array[::2, ::3].tolist() == [[1, 2], [3, 1]]  # the empty place has the lowest value
    assert sheet.affine is None


def test_a_montage_of_different_sizes_is_refused():
    images = (image_of(np.zeros((2, 2))), image_of(np.zeros((3, 2))))

    assert refused("montage", images).category is Category.INVALID


def blobs(angle: float, shift: tuple[float, float, float]) -> Volume:
    """Three balls of soft edge, turned about z and then shifted (x, y, z) in mm, about the middle of the grid."""
    z, y, x = grid((32, 48, 48))
    total = np.zeros(z.shape)
    cos, sin = math.cos(angle), math.sin(angle)
    for cx, cy, cz, weight in ((-8, -6, -4, 100), (9, -3, 3, 160), (1, 10, 0, 220)):
        px, py, pz = cos * cx - sin * cy + shift[0], sin * cx + cos * cy + shift[1], cz + shift[2]
        total += weight * np.exp(-((x - px) ** 2 + (y - py) ** 2 + (z - pz) ** 2) / (2 * 4**2))
    return volume_of(total)


@pytest.mark.parametrize("metric", ["mean-squares", "mutual-information"])
def test_registration_finds_a_known_rotation_and_shift(metric: str):
    angle, shift = math.radians(6), (2.0, -1.5, 1.0)
    fixed, moving = blobs(0, (0, 0, 0)), blobs(angle, shift)

    result = run("rigid-registration", fixed, moving, metric=metric)

    middle = np.array([23.5, 23.5, 15.5])
    turn = np.array([[math.cos(angle), -math.sin(angle), 0], [math.sin(angle), math.cos(angle), 0], [0, 0, 1]])
    assert result.transform is not None
    for point in ([15.5, 17.5, 11.5], [32.5, 20.5, 18.5], [24.5, 33.5, 15.5]):
        expected = turn @ (np.array(point) - middle) + middle + shift
        assert np.linalg.norm((result.transform @ [*point, 1])[:3] - expected) < 0.3
    inner = np.s_[4:-4, 6:-6, 6:-6]
    assert np.abs(result.volumes[0].array[inner] - fixed.array[inner]).max() < 12


def test_a_volume_that_is_too_small_is_not_registered():
    small = volume_of(np.zeros((4, 20, 20)))

    assert refused("rigid-registration", small, small).category is Category.UNSUPPORTED


def padded() -> Volume:
    """Slices of 1, 2, 3, 4; of the first one, one voxel is padding, of a corner all are."""
    array = np.broadcast_to(np.arange(1.0, 5)[:, None, None], (4, 3, 3)).copy()
    padding = np.zeros(array.shape, dtype=np.bool_)
    padding[0, 1, 1] = padding[:, 2, 2] = True
    array[padding] = 1
    return volume_of(array, padding=padding)


@pytest.mark.parametrize(("projection", "beside", "below"), [("minimum", 1, 2), ("mean", 2.5, 3), ("maximum", 4, 4)])
def test_padding_does_not_count_in_a_slab(projection: str, beside: float, below: float):
    (slab,) = run("slab", padded(), projection=projection, thickness_mm=9).volumes

    assert slab.array[0, 0, 0] == beside
    assert slab.array[0, 1, 1] == below
    assert slab.array[0, 2, 2] == 1  # there is nothing else
    assert slab.padding is None


def test_padding_is_neither_segmented_nor_measured():
    volume = padded()

    threshold = run("threshold", volume, low=0)
    grown = run("region-growing", volume, seed_mm=[0, 0, 0], low=0)
    measured = run("roi-measure", volume, center_mm=[1, 1, 1], half_size_mm=[9, 9, 9], shape="box")

    assert int(threshold.segmentations[0].mask.sum()) == int(grown.segmentations[0].mask.sum()) == 36 - 5
    found = {each.name: each.value for each in measured.measurements}
    assert found["mean"] == pytest.approx((7 * 1 + 8 * (2 + 3 + 4)) / 31)


def test_what_is_shown_white_at_low_values_is_turned_round_for_display():
    image = image_of(np.array([[0.0, 50, 100]]), is_inverse=True)

    shown = run("window-level", image, center=50.5, width=101).images[0]
    equal = run("clahe", image_of(np.arange(64.0).reshape(8, 8), is_inverse=True), tiles=1, clip_limit=1).images[0]

    assert shown.array.tolist() == [[1, 0.5, 0]]
    assert equal.array[0, 0] > equal.array[-1, -1]
    assert (shown.is_inverse, equal.is_inverse) == (False, False)
    assert run("median", image).images[0].is_inverse


def test_the_flow_is_in_millimetres_and_an_unstable_step_is_refused():
    _, y, x = grid((6, 81, 81))
    radius = np.hypot(x, y) / 2  # mm

    (volume,) = run("curvature-flow", volume_of(radius, (0.5, 0.5, 0.5)), iterations=32, time_step=0.03125).volumes
    error = refused("curvature-flow", volume_of(radius, (0.5, 0.5, 0.5)), time_step=0.0625)

    ring = (radius > 5) & (radius < 10)
    assert np.abs(volume.array - np.sqrt(radius**2 + 2))[ring].max() < 0.02
    assert (error.category, error.where) == (Category.INVALID, "time_step")


def test_the_step_of_the_flow_is_shorter_for_small_pixels_unless_it_is_ordered():
    ds = Dataset()
    ds.PixelSpacing = [0.4, 0.4]

    assert algorithms.get("curvature-flow").presets([ds]) == {"time_step": pytest.approx(0.02)}


def test_a_slab_and_a_reformatted_slice_name_the_slices_that_they_come_from():
    sources = tuple(Source("1.2", f"1.2.{n}") for n in range(8))
    volume = volume_of(np.zeros((8, 4, 4)), (2, 1, 1), sources=sources)

    (slab,) = run("slab", volume, thickness_mm=6, step_mm=4).volumes
    (axial,) = run("mpr", volume, plane="axial", step_mm=1).volumes
    (coronal,) = run("mpr", volume, plane="coronal").volumes

    assert slab.slice_sources == (sources[0:3], sources[2:5], sources[4:7])
    assert slab.thickness_mm == 6
    assert axial.slice_sources[:4] == (sources[0:1], sources[0:2], sources[1:2], sources[1:3])
    assert set(coronal.slice_sources) == {sources}


@pytest.mark.parametrize(
    ("values", "where"),
    [
        ({"clean_pixels": True, "rectangle": ["1,2,3"]}, "rectangle"),
        ({"rectangle": ["0,0,5,5"]}, "rectangle"),
        ({"safe_private": ["0042,39,VENDOR"]}, "safe_private"),
        ({"uids": True}, "uids"),  # copies with the UIDs of others would be those others
    ],
)
def test_de_identification_refuses_what_it_cannot_do_when_it_is_ordered(values: dict[str, Any], where: str):
    with pytest.raises(AppError) as caught:
        algorithms.get("de-identify").build(values)

    assert (caught.value.category, caught.value.where) == (Category.INVALID, where)
