"""Datasets made of DICOM JSON are those that pydicom makes, on real files."""

from pathlib import Path

import orjson
import pytest
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset

from imaging.dataset import read
from imaging.dataset_from_json import dataset_from_json, datasets_from_json
from imaging.dicom_json import dicom_json

FILES = ("CT_small.dcm", "MR_small.dcm", "eCT_Supplemental.dcm", "emri_small.dcm", "693_UNCR.dcm", "rtdose.dcm")


def assert_same(ours: Dataset, theirs: Dataset) -> None:
    assert ours.keys() == theirs.keys()
    for element in theirs:
        value = ours[element.tag].value
        if element.VR == "SQ":
            for one, other in zip(value, element.value, strict=True):
                assert_same(one, other)
        else:
            assert value == element.value or (value in ("", None) and element.value in ("", None)), element.tag


@pytest.mark.parametrize("name", FILES)
def test_a_dataset_is_the_one_that_pydicom_makes(name: str) -> None:
    text = dicom_json(read(Path(str(get_testdata_file(name))).read_bytes()))
    model = {tag: each for tag, each in orjson.loads(text).items() if "BulkDataURI" not in each}

    assert_same(dataset_from_json(text), Dataset.from_json(model))


def test_what_is_alike_in_a_series_is_read_once() -> None:
    text = dicom_json(read(Path(str(get_testdata_file("CT_small.dcm"))).read_bytes()))
    model = orjson.loads(text)
    other = orjson.dumps({**model, "00200013": {"vr": "IS", "Value": [2]}, "00080060": {"vr": "CS"}})

    found = list(datasets_from_json([text, other, text]))

    for ds, alone in zip(found, (text, other, text), strict=True):
        assert_same(ds, dataset_from_json(alone))
    assert found[0]["PatientName"] is found[1]["PatientName"] is found[2]["PatientName"]
    assert "PixelData" not in found[1]


def test_pixels_and_bulk_data_are_left_out() -> None:
    text = dicom_json(read(Path(str(get_testdata_file("CT_small.dcm"))).read_bytes()))

    assert "PixelData" not in dataset_from_json(text)
