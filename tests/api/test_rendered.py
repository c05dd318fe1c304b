"""Rendered images: annotations, colour spaces, presentation states, animations. PS3.18 8.3.5, 8.7.4 and 10.4.1.1.3."""

import io
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms
from pydicom import Dataset, Sequence, dcmread
from pymongo import MongoClient

from imaging import annotations
from tests.support.dicomweb import Site, address_of, ct, parts_of, sample, site_of_a_module

STATES = "1.2.840.10008.5.1.4.1.1.11.1"
SLICES, CINE = ("/studies/1.2.3/series/1.2.3.1", "/studies/1.2.3/series/1.2.3.2/instances/1.2.3.2.1")
CHART = "/studies/1.2.3/series/1.2.3.3/instances/1.2.3.3"
IMAGE = f"{SLICES}/instances/1.2.3.1.1"
STATE = "/studies/1.2.3/series/1.2.3.4/instances/1.2.3.4.1"
UNDER = "presentationUID=1.2.3.4.1&presentationSeriesUID=1.2.3.4"
COLOUR = (199, 148, 129)  # "dark skin" of a colour chart in sRGB; in Display P3 it is 191, 150, 132


@pytest.fixture(scope="module")
def here(mongo: MongoClient[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with site_of_a_module(mongo, tmp_path_factory.mktemp("site")) as one:
        slices = [ct(number, side=64, ImageOrientationPatient=[1, 0, 0, 0, 1, 0]) for number in (1, 2, 3)]
        files = [*slices, ct(1, series=2, frames=4, side=16, FrameTime="40"), coloured(), state()]
        assert one.store(*files).status_code == 200
        yield one


def coloured() -> bytes:
    ds = dcmread(io.BytesIO(ct(1, series=3, side=16)))
    ds.SamplesPerPixel, ds.PhotometricInterpretation, ds.PlanarConfiguration = 3, "RGB", 0
    ds.BitsAllocated, ds.BitsStored, ds.HighBit = 8, 8, 7
    ds.PixelData = bytes(COLOUR) * 256
    return saved(ds)


def state(**more: Any) -> bytes:
    """Return a state for the first slice: turned by a quarter, a window, and a filled square in white."""
    ds = dcmread(io.BytesIO(ct(1, series=4)))
    for keyword in ("PixelData", "Rows", "Columns", "WindowCenter", "WindowWidth"):
        delattr(ds, keyword)
    ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = STATES
    ds.Modality = "PR"
    image = item(ReferencedSOPClassUID="1.2.840.10008.5.1.4.1.1.2", ReferencedSOPInstanceUID="1.2.3.1.1")
    ds.ReferencedSeriesSequence = Sequence(
        [item(SeriesInstanceUID="1.2.3.1", ReferencedImageSequence=Sequence([image]))]
    )
    ds.SoftcopyVOILUTSequence = Sequence([item(WindowCenter=2048, WindowWidth=4096)])
    ds.PresentationLUTShape, ds.ImageRotation, ds.ImageHorizontalFlip = "IDENTITY", 90, "N"
    square = item(
        GraphicAnnotationUnits="PIXEL", GraphicDimensions=2, NumberOfGraphicPoints=5, GraphicType="POLYLINE",
        GraphicData=[8, 8, 24, 8, 24, 24, 8, 24, 8, 8], GraphicFilled="Y",
    )  # fmt: skip
    ds.GraphicLayerSequence = Sequence(
        [item(GraphicLayer="A", GraphicLayerOrder=1, GraphicLayerRecommendedDisplayGrayscaleValue=65535)]
    )
    ds.GraphicAnnotationSequence = Sequence([item(GraphicLayer="A", GraphicObjectSequence=Sequence([square]))])
    ds.PresentationCreationDate, ds.PresentationCreationTime, ds.ContentLabel = "20260102", "101500", "A"
    for keyword, value in more.items():
        setattr(ds, keyword, value)
    return saved(ds)


def item(**values: Any) -> Dataset:
    ds = Dataset()
    for keyword, value in values.items():
        setattr(ds, keyword, value)
    return ds


def saved(ds: Dataset) -> bytes:
    out = io.BytesIO()
    ds.save_as(out, enforce_file_format=True)
    return out.getvalue()


def image_of(answer: Any) -> Image.Image:
    assert answer.status_code == 200, answer.get_data()
    return Image.open(io.BytesIO(answer.get_data()))


def greys_of(answer: Any) -> Any:
    return np.asarray(image_of(answer)).astype(int)


# ---- media types


@pytest.mark.parametrize(("accept", "kind"), [("image/webp", "WEBP"), ("image/jp2", "JPEG2000"), ("image/apng", "PNG")])
def test_further_media_types_can_be_asked(here: Site, accept: str, kind: str) -> None:
    assert image_of(here.get(f"{IMAGE}/rendered", accept)).format == kind


def test_a_picture_is_bounded(here: Site) -> None:
    assert here.get(f"{IMAGE}/rendered?viewport=16384,16384").status_code == 413
    assert here.get(f"{IMAGE}/rendered?viewport=16384,16").status_code == 200


def test_quality_makes_files_smaller(here: Site) -> None:
    sizes = [len(here.get(f"{IMAGE}/rendered?quality={quality}").get_data()) for quality in (10, 90)]

    assert sizes[0] < sizes[1]


# ---- animations


@pytest.mark.parametrize("accept", ["image/gif", "image/apng", "image/webp"])
def test_frames_move_where_the_media_type_can(here: Site, accept: str) -> None:
    image = image_of(here.get(f"{CINE}/rendered", accept))

    durations = []
    for number in range(image.n_frames):
        image.seek(number)
        image.load()
        durations.append(image.info["duration"])
    assert (image.n_frames, durations) == (4, [40] * 4)


def test_an_animation_shows_the_frames_that_stills_show(here: Site) -> None:
    moving = image_of(here.get(f"{CINE}/rendered", "image/apng"))
    stills = [greys_of(here.get(f"{CINE}/frames/{number}/rendered", "image/png")) for number in (1, 2, 3, 4)]

    for number, still in enumerate(stills):
        moving.seek(number)
        assert np.array_equal(np.asarray(moving.convert("L")), still)


def test_a_list_of_frames_and_a_series_move_too(here: Site) -> None:
    assert image_of(here.get(f"{CINE}/frames/4,2/rendered", "image/gif")).n_frames == 2
    assert image_of(here.get(f"{SLICES}/rendered", "image/gif")).n_frames == 3


def test_other_media_types_show_the_representative_frame(here: Site) -> None:
    assert getattr(image_of(here.get(f"{CINE}/rendered", "image/png")), "n_frames", 1) == 1
    assert here.get(f"{SLICES}/rendered", "image/jpeg").status_code == 406
    assert here.get(f"{CINE}/frames/1,2/rendered", "image/png").status_code == 406


def test_video_is_not_made(here: Site) -> None:
    answer = here.get(f"{CINE}/rendered", "video/mp4")

    assert answer.status_code == 406
    assert b"image/gif" in answer.get_data()


def test_an_animation_is_bounded(here: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("imaging.image_files.MOST_ANIMATED_PIXELS", 1000)

    assert here.get(f"{CINE}/rendered", "image/gif").status_code == 413
    assert here.get(f"{CINE}/rendered?viewport=8,8", "image/gif").status_code == 200


# ---- annotations


def test_annotations_are_burned_in_where_they_are_asked_for(here: Site) -> None:
    plain, left, right = (
        greys_of(here.get(f"{IMAGE}/rendered?viewport=256,256{more}", "image/png"))
        for more in ("", "&annotation=patient", "&annotation=technique")
    )

    # The lines of the patient stand in the upper left corner, the others in the upper right one and at the edges.
    assert (left != plain)[:128, :128].any()
    assert not (left != plain)[128:].any()
    assert (right != plain)[:128, 128:].any()
    assert not (right != plain)[:64, :64].any()


def test_both_annotations_together_are_both(here: Site) -> None:
    both = greys_of(here.get(f"{IMAGE}/rendered?viewport=256,256&annotation=patient,technique", "image/png"))
    left = greys_of(here.get(f"{IMAGE}/rendered?viewport=256,256&annotation=patient", "image/png"))

    assert np.array_equal(both[:60, :60], left[:60, :60])
    assert not np.array_equal(both, left)


def test_the_directions_turn_with_the_picture(here: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    told = []
    plain = annotations.annotated
    monkeypatch.setattr(annotations, "annotated", lambda image, each: told.append(each) or plain(image, each))

    for look in ("window=40,400", "viewport=64,64,0,0,-64,64", "viewport=64,64,0,0,64,-64", UNDER):
        assert here.get(f"{IMAGE}/rendered?annotation=technique&{look}").status_code == 200

    # Rows run to the patient's left, columns to the back; the state turns the image clockwise.
    assert [each.letters for each in told] == [
        ("A", "L", "P", "R"), ("A", "R", "P", "L"), ("P", "L", "A", "R"), ("R", "A", "L", "P"),
    ]  # fmt: skip
    assert told[0].right[-1] == "W 400 C 40"


# ---- colour spaces


@pytest.mark.parametrize(("name", "expected"), [("no", COLOUR), ("srgb", COLOUR), ("displayp3", (191, 150, 132))])
def test_colours_are_converted_to_the_space_that_is_asked(here: Site, name: str, expected: tuple[int, ...]) -> None:
    image = image_of(here.get(f"{CHART}.1/rendered?iccprofile={name}", "image/png"))

    assert image.getpixel((3, 3)) == expected
    assert bool(image.info.get("icc_profile")) == (name != "no")


@pytest.mark.parametrize("name", ["yes", "adobergb", "rommrgb"])
@pytest.mark.parametrize("accept", ["image/jpeg", "image/png", "image/webp"])
def test_the_profile_is_one_that_colour_management_reads(here: Site, name: str, accept: str) -> None:
    image = image_of(here.get(f"{IMAGE}/rendered?iccprofile={name}", accept))

    profile = ImageCms.ImageCmsProfile(io.BytesIO(image.info["icc_profile"]))
    assert profile.profile.xcolor_space.strip() == ("GRAY" if name == "yes" else "RGB")


def test_an_image_keeps_the_profile_of_its_own(here: Site) -> None:
    own = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    ds = dcmread(io.BytesIO(coloured()))
    ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = "1.2.3.3.2"
    ds.ICCProfile = own + bytes(len(own) % 2)
    here.store(saved(ds))

    image = image_of(here.get(f"{CHART}.2/rendered?iccprofile=yes", "image/png"))

    assert image.info["icc_profile"][: len(own)] == own


def test_a_profile_that_the_file_cannot_hold_is_not_asked_for(here: Site) -> None:
    assert here.get(f"{IMAGE}/rendered?iccprofile=yes", "image/gif").status_code == 400


# ---- presentation states


def test_a_presentation_state_is_rendered_as_what_it_shows(here: Site) -> None:
    shown = greys_of(here.get(f"{STATE}/rendered", "image/png"))

    expected = np.rot90(dcmread(io.BytesIO(ct(1, side=64))).pixel_array, -1) * (255 / 4095)
    inside = np.zeros((64, 64), bool)
    inside[6:27, 37:58] = True  # the square from 8 to 24, turned clockwise, with the width of its line
    assert np.abs(shown - expected)[~inside].max() <= 1
    assert (shown[10:22, 42:54] == 255).all()


def test_an_image_is_rendered_under_a_state(here: Site) -> None:
    asked, own = (here.get(path, "image/png") for path in (f"{IMAGE}/rendered?{UNDER}", f"{STATE}/rendered"))

    assert np.array_equal(greys_of(asked), greys_of(own))


def test_a_state_of_one_image_has_a_thumbnail_and_comes_in_parts(here: Site) -> None:
    assert image_of(here.get(f"{STATE}/thumbnail?viewport=32,32")).size == (32, 32)
    assert len(parts_of(here.get(f"{STATE}/rendered", "multipart/related; type=image/png"))) == 1


@pytest.mark.parametrize(
    ("path", "status"),
    [
        (f"{IMAGE}/rendered?{UNDER}&window=40,400", 400),
        (f"{IMAGE}/rendered?{UNDER}&viewport=10,10,1,1,5,5", 400),
        (f"{SLICES}/instances/1.2.3.1.2/rendered?{UNDER}", 400),  # not one of its images
        (f"{IMAGE}/rendered?presentationUID=1.2.3.4.1", 400),
        (f"{IMAGE}/rendered?presentationUID=1.2.3.1.2&presentationSeriesUID=1.2.3.1", 400),  # no state
        (f"{STATE}/frames/1/rendered", 404),
        (f"{IMAGE}/rendered?presentationUID=9.9&presentationSeriesUID=1.2.3.4", 404),
    ],
)
def test_what_a_state_cannot_show_is_refused(here: Site, path: str, status: int) -> None:
    assert here.get(path).status_code == status


@pytest.mark.skipif(not shutil.which("dcmp2pgm"), reason="dcmp2pgm is not installed (Debian: dcmtk)")
def test_a_state_shows_what_dcmtk_shows(here: Site, tmp_path: Path) -> None:
    image, made = tmp_path / "image.dcm", tmp_path / "state.dcm"
    image.write_bytes(sample("CT_small.dcm"))
    subprocess.run(["dcmpsmk", image, made], check=True)
    subprocess.run(["dcmp2pgm", "-p", made, image, tmp_path / "out.pgm"], check=True)
    assert here.store(image.read_bytes(), made.read_bytes()).status_code == 200

    shown = greys_of(here.get(f"{address_of(made.read_bytes())}/rendered", "image/png"))

    theirs = np.asarray(Image.open(tmp_path / "out.pgm")).astype(int)
    assert np.abs(shown - theirs).max() <= 1
