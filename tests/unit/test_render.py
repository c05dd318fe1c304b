"""Rendering. Expected values are the formulas of PS3.3 C.11.2.1 evaluated by hand, or pydicom's own processing."""

import base64
import io
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from pydicom import dcmread
from pydicom.data import get_testdata_file
from pydicom.pixels import apply_color_lut, apply_modality_lut, apply_voi_lut, convert_color_space

from imaging.display import DisplayAttributes, LookupTable, VoiFunction, Window, expand_segments
from imaging.errors import AppError, Category
from imaging.render import Viewport, display_values, quality_from_text, reduce_levels, render


def attributes(rows=1, columns=4, **more):
    return DisplayAttributes(rows=rows, columns=columns, **more)


def shown(values, dtype=np.int16, window=None, **more):
    pixels = np.array([values], dtype)
    bits = {"bits_stored": 16, "is_signed": np.dtype(dtype).kind == "i"} | more
    return display_values(pixels, attributes(1, len(values), **bits), window=window)[0].tolist()


def table(values, first=0, bits=8):
    return LookupTable(first, bits, np.array(values, np.uint16))


def opened(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data))


# ---- windows: PS3.3 C.11.2.1.2 gives these examples as note 2 of the linear function, for c=2048 w=4096 and others


@pytest.mark.parametrize(
    ("window", "values", "expected"),
    [
        (Window(2048, 4096), [0, 4095], [0, 255]),
        (Window(2048, 1), [2047, 2048], [0, 255]),  # a threshold: below c - 0.5 black, above white
        (Window(0, 100), [-51, -50, 49, 50], [0, 0, 255, 255]),
        (Window(0, 100), [-1, 0], [126, 129]),  # ((x + 0.5) / 99 + 0.5) * 255 = 126.2 and 128.8
        (Window(0, 100, VoiFunction.LINEAR_EXACT), [-50, 0, 25, 50], [0, 128, 191, 255]),
        (Window(0, 100, VoiFunction.SIGMOID), [0, 25, -25], [128, 186, 69]),  # 255 / (1 + exp(-4 x / 100))
        (Window(0, 1, VoiFunction.SIGMOID), [-32768, 32767], [0, 255]),
    ],
)
@pytest.mark.parametrize("dtype", [np.int16, np.int32, np.float32])
def test_windows_follow_the_formulas_of_the_standard(window, values, expected, dtype):
    assert shown(values, dtype, window, bits_stored=np.dtype(dtype).itemsize * 8) == expected


def test_a_window_counts_after_rescale():
    assert shown([0, 1000, 2000], np.uint16, Window(0, 2000), slope=1, intercept=-1000) == [0, 128, 255]


def test_the_window_of_the_file_is_used_unless_one_is_asked_for():
    of_file = (Window(10, 20), Window(100, 200))

    assert shown([0, 19], windows=of_file) == [0, 255]
    assert shown([0, 19], window=Window(-100, 10), windows=of_file) == [255, 255]


@pytest.mark.parametrize(
    "how", [{"photometric_interpretation": "MONOCHROME1", "is_inverse": True}, {"is_inverse": True}]
)
def test_inverse_images_are_inverted_once(how):
    assert shown([0, 19], windows=(Window(10, 20),), **how) == [255, 0]


def test_padding_is_black_also_in_inverse_images():
    assert shown([-5, -4, 0, 19], windows=(Window(10, 20),), is_inverse=True, padding=(-5, -4)) == [0, 0, 255, 0]


# ---- what the container holds


def test_bits_above_the_high_bit_are_no_pixel_data():
    assert shown([0xF000, 0xF0FF], np.uint16, bits_stored=8, high_bit=7) == [0, 255]


def test_signed_values_are_extended_from_bits_stored():
    window = Window(0, 4096, VoiFunction.LINEAR_EXACT)

    assert shown([0x0800, 0x07FF, 0x0000], window=window, bits_stored=12, high_bit=11) == [0, 255, 128]


def test_pixels_that_do_not_start_at_bit_zero_are_shifted():
    assert shown([0x0000, 0xFF00], np.uint16, bits_stored=8, high_bit=15) == [0, 255]


def test_overshoot_of_reduced_decoding_is_clipped_and_does_not_wrap():
    small = np.array([[-3, 260]], np.int16)

    assert display_values(small, attributes(8, 8, bits_stored=8, high_bit=7))[0].tolist() == [0, 255]


@pytest.mark.parametrize("order", ["<", ">"])
def test_byte_order_of_the_array_does_not_matter(order):
    assert shown([0, 100, 200], f"{order}u2", Window(100, 200, VoiFunction.LINEAR_EXACT)) == [0, 128, 255]


def test_the_whole_range_of_a_signed_word_is_shown():
    window = Window(-0.5, 65535, VoiFunction.LINEAR_EXACT)

    assert shown([-32768, 32767], window=window) == [0, 255]


# ---- defaults


def test_eight_bits_without_a_window_are_shown_as_they_are():
    assert shown([0, 1, 128, 255], np.uint8, bits_stored=8, high_bit=7) == [0, 1, 128, 255]


def test_one_bit_is_black_and_white():
    assert shown([0, 1], np.uint8, bits_stored=1, high_bit=0) == [0, 255]


def test_others_without_a_window_are_stretched_between_percentiles_without_padding():
    ramp = np.arange(1000, 2001, dtype=np.int16)
    pixels = np.concatenate([np.full(500, -2000, np.int16), ramp])[None]

    grey = display_values(pixels, attributes(1, 1501, padding=(-2000, -2000), is_signed=True))[0]

    assert grey[:500].max() == 0
    assert grey[500 + 5] == 0  # 0.5 % of the ramp
    assert grey[500 + 500] == 128
    assert grey[500 + 995] == 255


@pytest.mark.parametrize("dtype", [np.uint16, np.float32, np.int32])
def test_a_constant_image_has_a_default(dtype):
    assert shown([7, 7], dtype) == [128, 128]


def test_values_that_are_no_numbers_are_shown_as_zero():
    assert shown([np.nan, np.inf, 0.0, 1.0], np.float32, Window(0.5, 1, VoiFunction.LINEAR_EXACT)) == [0, 0, 0, 255]


# ---- tables


def test_a_voi_table_is_clamped_at_both_ends():
    assert shown([-9, 10, 11, 99], voi_lut=table([0, 10, 1023], first=10, bits=10)) == [0, 0, 2, 255]


def test_a_voi_table_with_more_in_it_than_its_bits_is_scaled_by_what_is_in_it():
    assert shown([0, 1], voi_lut=table([0, 4095], bits=8)) == [0, 255]


def test_a_modality_table_goes_before_the_window():
    window = Window(200, 200, VoiFunction.LINEAR_EXACT)

    assert shown([5, 6], modality_lut=table([100, 300], first=5, bits=16), windows=(window,)) == [0, 255]


# ---- colour


def test_palette_indices_become_colours():
    palette = (table([0, 255], first=5), table([255, 0], first=5), table([0, 65535], first=5, bits=16))
    pixels = np.array([[0, 5, 6, 250]], np.uint8)

    colours = display_values(pixels, attributes(photometric_interpretation="PALETTE COLOR", palette=palette))

    assert colours[0].tolist() == [[0, 255, 0], [0, 255, 0], [255, 0, 255], [255, 0, 255]]


@pytest.mark.parametrize("model", ["YBR_FULL", "YBR_FULL_422"])
def test_ybr_becomes_rgb_as_pydicom_does_it(model):
    rng = np.random.default_rng(1)
    ybr = rng.integers(0, 256, (8, 9, 3), np.uint8)

    rgb = display_values(ybr, attributes(8, 9, photometric_interpretation=model, bits_stored=8))

    expected = convert_color_space(ybr, "YBR_FULL", "RGB").astype(int)
    assert np.abs(rgb.astype(int) - expected).max() <= 1


def test_partial_range_ybr_has_its_black_at_16_and_its_white_at_235():
    ybr = np.array([[[16, 128, 128], [235, 128, 128]]], np.uint8)

    rgb = display_values(ybr, attributes(1, 2, photometric_interpretation="YBR_PARTIAL_422", bits_stored=8))

    assert rgb.tolist() == [[[0, 0, 0], [255, 255, 255]]]


@pytest.mark.parametrize("model", ["RGB", "YBR_RCT", "YBR_ICT"])
def test_decoded_rgb_stays_as_it_is(model):
    pixels = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)

    assert np.array_equal(
        display_values(pixels, attributes(2, 2, photometric_interpretation=model, bits_stored=8)), pixels
    )


def test_sixteen_bit_colour_is_scaled_to_eight():
    pixels = np.array([[[0, 32768, 65535]]], np.uint16)

    assert display_values(pixels, attributes(1, 1, photometric_interpretation="RGB")).tolist() == [[[0, 128, 255]]]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([0, 3, 5, 6, 7], [5, 6, 7]),
        ([0, 1, 0, 1, 4, 100], [0, 25, 50, 75, 100]),
        # discrete (0, 10); linear to 20 in 2; then both again, by their byte offset
        ([0, 2, 0, 10, 1, 2, 20, 2, 2, 0, 0], [0, 10, 15, 20, 0, 10, 15, 20]),
    ],
)
def test_segmented_palettes_are_expanded(words, expected):
    assert expand_segments(np.array(words, np.uint16), len(expected)).tolist() == expected


@pytest.mark.parametrize("words", [[], [0, 5, 1], [1, 3], [7, 1, 1], [2, 1, 0, 0], [0, 1, 1, 2, 3, 0, 0]])
def test_broken_segments_are_invalid(words):
    with pytest.raises(AppError) as caught:
        expand_segments(np.array(words, np.uint16), 100)

    assert caught.value.category is Category.INVALID


# ---- whole files beside pydicom


@pytest.mark.parametrize("name", ["CT_small.dcm", "MR_small.dcm", "examples_overlay.dcm"])
def test_grey_images_are_rendered_as_pydicom_processes_them(name):
    ds = dcmread(get_testdata_file(name))
    display = DisplayAttributes.from_json(ds.to_json_dict())
    pixels = ds.pixel_array

    grey = display_values(pixels, replace(display, windows=(Window(600, 1600),), padding=None))

    ds.WindowCenter, ds.WindowWidth = 600, 1600
    ds.pop("VOILUTFunction", None)
    expected = apply_voi_lut(apply_modality_lut(pixels, ds), ds, prefer_lut=False)
    # pydicom's output goes over the range of the stored bits, rescaled.
    ends = (-(1 << 15), (1 << 15) - 1) if ds.PixelRepresentation else (0, (1 << ds.BitsStored) - 1)
    black, white = (end * ds.get("RescaleSlope", 1) + ds.get("RescaleIntercept", 0) for end in ends)
    assert np.abs(grey - (expected - black) / (white - black) * 255).max() <= 0.51


def test_a_palette_image_is_rendered_as_pydicom_does_it():
    ds = dcmread(get_testdata_file("examples_palette.dcm"))
    display = DisplayAttributes.from_json(ds.to_json_dict(bulk_data_threshold=1 << 30))

    colours = display_values(ds.pixel_array, display)

    expected = apply_color_lut(ds.pixel_array, ds) / 257  # 16 bits to 8
    assert np.abs(colours - expected).max() <= 1


# ---- attributes


def element(vr, *values):
    return {"vr": vr, "Value": list(values)}


PLAIN = {"00280010": element("US", 2), "00280011": element("US", 3)}


def test_attributes_of_the_top_level_are_read():
    document = PLAIN | {
        "00280004": element("CS", "MONOCHROME1"),
        "00280030": element("DS", 0.5, "0.25"),
        "00280101": element("US", 12),
        "00280102": element("US", 11),
        "00280103": element("US", 1),
        "00281050": element("DS", 40, 300),
        "00281051": element("DS", 400, 1500),
        "00281052": element("DS", -1024),
        "00281053": element("DS", 2),
        "00281056": element("CS", "SIGMOID"),
        "00280120": element("US", 63536),
    }

    display = DisplayAttributes.from_json(document)

    assert (display.rows, display.columns, display.pixel_size) == (2, 3, (0.5, 0.25))
    assert display.windows == (Window(40, 400, VoiFunction.SIGMOID), Window(300, 1500, VoiFunction.SIGMOID))
    assert (display.slope, display.intercept, display.bits_stored) == (2, -1024, 12)
    assert display.is_inverse
    assert display.padding == (-2000, -2000)


def test_functional_groups_of_the_frame_go_before_shared_ones():
    def transformation(slope):
        return {"00289145": element("SQ", {"00281052": element("DS", 0), "00281053": element("DS", slope)})}

    shared = transformation(9) | {"00289110": element("SQ", {"00280030": element("DS", 2, 1)})}
    window = {"00289132": element("SQ", {"00281050": element("DS", 5), "00281051": element("DS", 7)})}
    document = PLAIN | {
        "52009229": element("SQ", shared),
        "52009230": element("SQ", transformation(1), transformation(2) | window, {}),
    }

    first, second, third = (DisplayAttributes.from_json(document, frame) for frame in (1, 2, 3))

    assert (first.slope, second.slope, third.slope) == (1, 2, 9)
    assert (first.windows, second.windows) == ((), (Window(5, 7),))
    assert first.pixel_size == (2, 1)


@pytest.mark.parametrize(
    "broken", [element("DS", 0), element("DS", -5), element("DS", "x"), element("DS"), {"vr": "DS"}]
)
def test_a_useless_window_is_no_window(broken):
    assert DisplayAttributes.from_json(PLAIN | {"00281050": element("DS", 1), "00281051": broken}).windows == ()


@pytest.mark.parametrize(
    "spacing", [element("DS", 0, 1), element("DS", 1), element("DS", "a", "b"), element("DS", -1, 1)]
)
def test_a_useless_pixel_spacing_means_square_pixels(spacing):
    assert DisplayAttributes.from_json(PLAIN | {"00280030": spacing}).pixel_size == (1, 1)


LUT_BYTES = bytes([0, 0, 255, 15])


@pytest.mark.parametrize(
    "data",
    [
        {"vr": "OW", "InlineBinary": base64.b64encode(LUT_BYTES).decode()},
        element("US", 0, 4095),
        {"vr": "OW", "BulkDataURI": "@/bulkdata/00283010/0/00283006"},
    ],
)
def test_tables_are_read_in_every_form(data):
    item = {"00283002": element("US", 2, 65535, 12), "00283006": data}
    document = PLAIN | {"00283010": element("SQ", item), "00280103": element("US", 1)}

    display = DisplayAttributes.from_json(document, bulkdata={"@/bulkdata/00283010/0/00283006": LUT_BYTES}.__getitem__)

    assert display.voi_lut.entries.tolist() == [0, 4095]
    assert (display.voi_lut.first, display.voi_lut.bits) == (-1, 12)


def test_bulk_data_is_not_fetched_when_a_window_makes_it_needless():
    item = {"00283002": element("US", 2, 0, 12), "00283006": {"vr": "OW", "BulkDataURI": "@/x"}}
    document = PLAIN | {"00283010": element("SQ", item), "00281050": element("DS", 1), "00281051": element("DS", 2)}

    assert DisplayAttributes.from_json(document, bulkdata={}.__getitem__).voi_lut is None


@pytest.mark.parametrize("packed", [True, False])
def test_eight_bit_palette_entries_may_be_packed_or_not(packed):
    data = bytes([0, 100, 200, 255]) if packed else bytes([0, 0, 100, 0, 200, 0, 255, 0])
    document = PLAIN | {"00280004": element("CS", "PALETTE COLOR")}
    for number in (1, 2, 3):
        document[f"0028110{number}"] = element("US", 4, 0, 8)
        document[f"0028120{number}"] = {"vr": "OW", "InlineBinary": base64.b64encode(data).decode()}

    assert DisplayAttributes.from_json(document).palette[0].entries.tolist() == [0, 100, 200, 255]


@pytest.mark.parametrize(
    "document",
    [
        {},
        {"00280010": element("US", 0), "00280011": element("US", 3)},
        PLAIN | {"00280004": element("CS", "PALETTE COLOR")},
        PLAIN | {"00283000": element("SQ", {"00283002": element("US", 1, 2)})},
        PLAIN | {"00283000": element("SQ", {"00283002": element("US", 1, 0, 8), "00283006": {"InlineBinary": "?"}})},
    ],
)
def test_what_cannot_be_displayed_is_invalid(document):
    with pytest.raises(AppError) as caught:
        DisplayAttributes.from_json(document)

    assert caught.value.category is Category.INVALID


# ---- files and viewports


def test_png_holds_exactly_the_display_values():
    pixels = np.arange(64, dtype=np.uint8).reshape(8, 8)

    data = render(pixels, attributes(8, 8, bits_stored=8), media_type="image/png")

    assert np.array_equal(np.asarray(opened(data)), pixels)


@pytest.mark.parametrize(("media_type", "kind"), [("image/jpeg", "JPEG"), ("image/png", "PNG"), ("image/gif", "GIF")])
@pytest.mark.parametrize("shape", [(5, 7), (5, 7, 3)])
def test_each_media_type_is_written_for_grey_and_colour(media_type, kind, shape):
    model = "RGB" if len(shape) == 3 else "MONOCHROME2"
    image = opened(
        render(
            np.zeros(shape, np.uint8),
            attributes(5, 7, bits_stored=8, photometric_interpretation=model),
            media_type=media_type,
        )
    )

    assert (image.format, image.size) == (kind, (7, 5))


def test_a_lower_quality_makes_a_smaller_jpeg():
    noise = np.random.default_rng(0).integers(0, 256, (64, 64), np.uint8)
    sizes = [len(render(noise, attributes(64, 64, bits_stored=8), quality=quality)) for quality in (20, 90)]

    assert sizes[0] < sizes[1]


@pytest.mark.parametrize(
    ("viewport", "shape", "pixel_size", "expected"),
    [
        ("100,100", (50, 25), (1, 1), (50, 100)),
        ("100,100", (50, 50), (2, 1), (50, 100)),  # rows twice as far apart as columns
        ("100,100", (50, 50), (1, 3), (100, 33)),
        ("10,1000", (512, 512), (1, 1), (10, 10)),
        ("100,100,0,0,20,10", (50, 50), (1, 1), (100, 50)),
        ("100,100,,,,25", (50, 50), (1, 1), (100, 50)),
        ("1,1", (1, 1000), (1, 1), (1, 1)),
    ],
)
def test_a_viewport_is_filled_keeping_the_true_shape(viewport, shape, pixel_size, expected):
    display = attributes(*shape, bits_stored=8, pixel_size=pixel_size)

    data = render(np.zeros(shape, np.uint8), display, viewport=Viewport.from_text(viewport), media_type="image/png")

    assert opened(data).size == expected


def quarters(value=200):
    pixels = np.zeros((8, 8), np.uint8)
    pixels[:4, 4:] = value  # upper right
    return pixels


@pytest.mark.parametrize(
    ("viewport", "expected"),
    [
        ("4,4,4,0,4,4", [200, 200]),
        ("4,4,0,0,4,4", [0, 0]),
        ("8,8", [0, 200]),
        ("8,8,0,0,-8,8", [200, 0]),
        ("8,8,0,0,8,-8", [0, 0]),
    ],
)
@pytest.mark.parametrize("reduction", [1, 2])
def test_a_region_is_cut_and_flipped_also_of_a_smaller_decoded_frame(viewport, expected, reduction):
    pixels = quarters()[::reduction, ::reduction]

    data = render(
        pixels, attributes(8, 8, bits_stored=8), viewport=Viewport.from_text(viewport), media_type="image/png"
    )

    upper_row = np.asarray(opened(data))[0]
    assert [upper_row[0], upper_row[-1]] == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "100",
        "0,5",
        "5,-1",
        "20000,5",
        "5,5,a",
        "5,5,1,1,0,5",
        "5,5,-1",
        "5,5,1,1,1,1,1",
        "5,5,nan",
        "1e3,5",
        "5.5,5",
    ],
)
def test_an_unreadable_viewport_is_invalid(text):
    with pytest.raises(AppError) as caught:
        Viewport.from_text(text)

    assert (caught.value.category, caught.value.where) == (Category.INVALID, "viewport")


def test_a_region_outside_of_the_image_is_invalid():
    with pytest.raises(AppError) as caught:
        render(quarters(), attributes(8, 8), viewport=Viewport.from_text("5,5,8,0"))

    assert caught.value.category is Category.INVALID


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("40,400", Window(40, 400)),
        ("-600.5,1500,linear", Window(-600.5, 1500)),
        ("1,0.5,linear-exact", Window(1, 0.5, VoiFunction.LINEAR_EXACT)),
        ("1, 2 ,SIGMOID", Window(1, 2, VoiFunction.SIGMOID)),
    ],
)
def test_windows_are_read_from_a_url(text, expected):
    assert Window.from_text(text) == expected


@pytest.mark.parametrize("text", ["", "40", "40,0", "40,0.5", "a,b", "1,2,cubic", "1,2,linear,3", "nan,1", "1,inf"])
def test_an_unreadable_window_is_invalid(text):
    with pytest.raises(AppError) as caught:
        Window.from_text(text)

    assert (caught.value.category, caught.value.where) == (Category.INVALID, "window")


def test_quality_is_read_from_a_url():
    assert quality_from_text("75") == 75
    for text in ("0", "101", "x", "", "1.5", "²"):
        with pytest.raises(AppError):
            quality_from_text(text)


@pytest.mark.parametrize(
    ("viewport", "shape", "levels"),
    [
        (None, (512, 512), 0),
        ("512,512", (512, 512), 0),
        ("257,257", (512, 512), 0),
        ("256,256", (512, 512), 1),
        ("128,128", (3072, 2614), 4),
        ("1,1", (3072, 2614), 5),
        ("128,128,0,0,256,256", (3072, 2614), 1),
        ("1024,1024", (512, 512), 0),
    ],
)
def test_decoding_is_reduced_as_far_as_the_viewport_allows(viewport, shape, levels):
    assert reduce_levels(attributes(*shape), viewport and Viewport.from_text(viewport)) == levels


def test_palette_indices_are_never_averaged():
    palette = attributes(512, 512, photometric_interpretation="PALETTE COLOR")

    assert reduce_levels(palette, Viewport(64, 64)) == 0


@pytest.mark.parametrize(
    ("pixels", "more", "options", "category"),
    [
        (np.zeros((2, 2, 4), np.uint8), {}, {}, Category.INVALID),
        (np.zeros((0, 2), np.uint8), {}, {}, Category.INVALID),
        (np.zeros((2, 2, 3), np.uint8), {"photometric_interpretation": "HSV"}, {}, Category.UNSUPPORTED),
        (np.zeros((2, 2), np.uint8), {}, {"media_type": "image/tiff"}, Category.UNSUPPORTED),
        (np.zeros((1, 70_000), np.uint8), {}, {}, Category.UNSUPPORTED),
    ],
)
def test_what_cannot_be_rendered_is_refused(pixels, more, options, category):
    with pytest.raises(AppError) as caught:
        render(pixels, attributes(*pixels.shape[:2], **more), **options)

    assert caught.value.category is category
