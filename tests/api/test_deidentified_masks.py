"""Text that is burned into images of known devices, given without names. PS3.15 E.3.1.

The oracle: copies for which somebody ordered the same rectangles to be burned out, given by name.
"""

import io
from collections.abc import Iterator
from typing import Any

import imagecodecs
import numpy as np
import pytest
from PIL import Image
from pydicom import Dataset, dcmread
from pydicom.encaps import encapsulate, generate_frames
from pymongo import MongoClient

from fhir_server.deidentified import secret_name
from imaging.deidentify import Options, Rectangle, deidentify
from tests.support.deidentified import SCANNED, Recipient, named_in, secrets_of, value
from tests.support.deidentified_forms import BYTES, FORMS, PIXELS, address, content, everything
from tests.support.dicomweb import EXPLICIT_LE, Site, ct, parts_of, site_of_a_module

ULTRASOUND, CAPTURE = "1.2.840.10008.5.1.4.1.1.3.1", "1.2.840.10008.5.1.4.1.1.7"
JPEG_BASELINE = "1.2.840.10008.1.2.4.50"
SIDE = 32
MASKS = """
[[mask]]
about = "name and date in the top bar"
Modality = "US"
Manufacturer = "Maker"
ManufacturerModelName = "Model 9"
Rows = 32
Columns = 32
burn-out = ["0,0,32,5"]
"""
DEVICE = {**SCANNED, "Modality": "US", "Manufacturer": "Maker", "ManufacturerModelName": "Model 9"}


def saved(ds: Any) -> bytes:
    out = io.BytesIO()
    ds.save_as(out, enforce_file_format=True)
    return out.getvalue()


def film() -> bytes:
    """Three frames of colours, planes apart."""
    ds = dcmread(io.BytesIO(ct(1, frames=3, **{**DEVICE, "SOPClassUID": ULTRASOUND})))
    ds.SamplesPerPixel, ds.PhotometricInterpretation, ds.PlanarConfiguration = 3, "RGB", 1
    ds.BitsAllocated, ds.BitsStored, ds.HighBit = 8, 8, 7
    ds.PixelData = (np.arange(3 * 3 * SIDE * SIDE) % 251 + 1).astype("u1").tobytes()
    ds.file_meta.MediaStorageSOPClassUID = ULTRASOUND
    return saved(ds)


def photograph() -> bytes:
    """Colours in a lossy codestream, which is kept as it came."""
    ds = dcmread(io.BytesIO(ct(1, series=3, **{**DEVICE, "SOPClassUID": ULTRASOUND})))
    ds.SamplesPerPixel, ds.PhotometricInterpretation, ds.PlanarConfiguration = 3, "YBR_FULL_422", 0
    ds.BitsAllocated, ds.BitsStored, ds.HighBit = 8, 8, 7
    colours = np.add.outer(np.arange(SIDE) * 4, np.arange(SIDE) * 3)[..., None] + np.array([20, 0, 10])
    ds.PixelData = encapsulate([imagecodecs.jpeg8_encode(colours.astype("u1"), subsampling="422")])
    ds["PixelData"].VR, ds["PixelData"].is_undefined_length = "OB", True
    ds.file_meta.TransferSyntaxUID, ds.file_meta.MediaStorageSOPClassUID = JPEG_BASELINE, ULTRASOUND
    return saved(ds)


FILES = {
    "1.2.3.1.1": film(),
    "1.2.3.2.1": ct(1, series=2, BurnedInAnnotation="YES", SOPClassUID=CAPTURE, **DEVICE),
    "1.2.3.3.1": photograph(),
}
UNKNOWN = ct(1, series=4, SOPClassUID=ULTRASOUND, **{**DEVICE, "ManufacturerModelName": "Model 10"})
SECRETS = secrets_of(*FILES.values(), UNKNOWN)


@pytest.fixture(scope="module")
def here(mongo: MongoClient[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    directory = tmp_path_factory.mktemp("site")
    (directory / "masks.toml").write_text(MASKS)
    with site_of_a_module(mongo, directory, archive__masks=str(directory / "masks.toml")) as one:
        assert one.store(*FILES.values(), UNKNOWN).status_code == 200
        yield one


@pytest.fixture(scope="module")
def registry(here: Site) -> Recipient:
    recipient = Recipient(here, "registry")
    recipient.found("/studies")
    key = here.server.secret(secret_name(recipient.organization))
    bar, options = Rectangle(0, 0, SIDE, 5), Options(clean_pixels=True)
    copies = {uid: deidentify(each, key, options, rectangles=[bar]) for uid, each in FILES.items()}
    recipient.copies = {uid: dcmread(io.BytesIO(each)) for uid, each in copies.items()}
    assert here.store(*copies.values()).status_code == 200
    return recipient


@pytest.mark.parametrize("uid", FILES)
def test_every_form_is_that_of_a_copy_with_the_same_rectangles(here: Site, registry: Recipient, uid: str) -> None:
    compared = 0
    for level, end, offer in [each for each in [*FORMS, *PIXELS] if each[0] > 1 or uid == "1.2.3.1.1"]:
        path = f"{address(registry, uid, level=min(level, 3))}{end}"
        by_name, unnamed = here.get(path, str(offer)), registry.get(path, str(offer))
        assert unnamed.status_code == by_name.status_code, (path, str(offer))
        assert not named_in(everything(unnamed), SECRETS), (path, str(offer))
        if by_name.status_code == 200 and level > 1:
            assert content(unnamed) == content(by_name), (path, str(offer))
            compared += 1

    assert compared > 30


def frames_of(ds: Dataset) -> Any:
    return ds.pixel_array.reshape(int(ds.get("NumberOfFrames", 1)), SIDE, SIDE, -1)


@pytest.mark.parametrize("uid", FILES)
def test_the_rectangle_is_black_and_the_rest_is_as_it_was(registry: Recipient, uid: str) -> None:
    path = address(registry, uid)
    # What is lossy is compared with what the codec that is used here makes of it.
    (frame,) = generate_frames(dcmread(io.BytesIO(FILES["1.2.3.3.1"])).PixelData, number_of_frames=1)
    photographed = imagecodecs.jpeg8_decode(frame)[None]
    original = photographed if uid == "1.2.3.3.1" else frames_of(dcmread(io.BytesIO(FILES[uid])))
    native = f"multipart/related; type={BYTES}; transfer-syntax={EXPLICIT_LE}"
    frames = [np.frombuffer(body, original.dtype) for _, body in parts_of(registry.get(f"{path}/pixeldata", native))]
    picture = np.asarray(Image.open(io.BytesIO(registry.get(f"{path}/rendered", "image/png").get_data())))

    assert len(frames) == len(original)
    for frame, was in zip(frames, original, strict=True):
        assert not frame.reshape(was.shape)[:5].any()
        assert np.array_equal(frame.reshape(was.shape)[5:], was[5:])
    assert not picture[:5].any()
    assert picture[5:].any()


def test_the_codestreams_that_are_stored_are_not_given(here: Site, registry: Recipient) -> None:
    path = address(registry, "1.2.3.2.1")

    answer = registry.get(f"{path}/frames/1", f"{BYTES}; transfer-syntax=*")

    assert answer.headers["Content-Type"].endswith(EXPLICIT_LE)
    assert not np.frombuffer(answer.get_data(), "<u2").reshape(SIDE, SIDE)[:5].any()


def test_metadata_and_files_say_that_pixels_were_cleaned(registry: Recipient) -> None:
    (document,) = registry.get(f"{address(registry, '1.2.3.2.1')}/metadata").json

    codes = {each["00080100"]["Value"][0] for each in document["00120064"]["Value"]}
    assert codes == {"113100", "113101"}
    assert value(document, "00280301") == "NO"


def test_images_of_other_devices_are_left_out_as_ever(registry: Recipient) -> None:
    study = address(registry, "1.2.3.1.1", level=1)

    answer = registry.get(f"{study}/metadata")

    assert len(answer.json) == len(FILES)
    assert "1 instances are left out" in answer.headers["Warning"]
