"""Files of results. Expected bytes: what pydicom writes of the same dataset."""

from io import BytesIO

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.filewriter import dcmwrite
from pydicom.sequence import Sequence as Items
from pydicom.uid import ExplicitVRLittleEndian

from imaging.algorithm import Result
from imaging.derive import derive_images
from imaging.derive_files import Writer
from imaging.part10 import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME
from tests.support.volumes import image_of, slice_dataset
from tests.unit.test_derive import work


def by_pydicom(ds: Dataset) -> bytes:
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.file_meta.MediaStorageSOPClassUID, ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPClassUID, ds.SOPInstanceUID
    ds.file_meta.ImplementationClassUID = IMPLEMENTATION_CLASS_UID
    ds.file_meta.ImplementationVersionName = IMPLEMENTATION_VERSION_NAME
    out = BytesIO()
    dcmwrite(out, ds, enforce_file_format=True)
    return out.getvalue()


def dataset(**changes: object) -> Dataset:
    ds = slice_dataset((1, 2, 3), PatientName="Müller^Jürgen", SpecificCharacterSet="ISO_IR 100", **changes)
    item = Dataset()
    item.CodeValue, item.CodeMeaning = "1", "Größe"
    ds.DerivationCodeSequence = Items([item])
    ds.SmallestImagePixelValue = 3  # a VR that follows from Pixel Representation
    ds.add_new(0x00080000, "UL", 44)  # a group length, which is retired
    ds.add_new(0x7FE00010, "OW", bytes(40))
    return ds


@pytest.mark.parametrize("representation", [0, 1])
def test_a_file_has_the_bytes_that_pydicom_writes(representation):
    ds = dataset(PixelRepresentation=representation)

    assert Writer().part10(ds) == by_pydicom(ds)


def test_files_that_share_elements_are_those_that_are_written_alone():
    writer, ds = Writer(), dataset()
    others = [Dataset(dict(ds.items())) for _ in range(3)]
    for number, each in enumerate(others):
        each.add_new("InstanceNumber", "IS", number)

    assert [writer.part10(each) for each in others] == [by_pydicom(each) for each in others]


def test_an_element_that_was_given_another_value_is_written_anew():
    writer, ds = Writer(), dataset()
    writer.part10(ds)

    ds.PatientID, ds.Rows, ds.PixelSpacing = "P2", 8, [1, 1]
    again = writer.part10(ds)
    ds.SpecificCharacterSet = "ISO_IR 192"

    assert dcmread(BytesIO(again)).PatientID == "P2"
    assert dcmread(BytesIO(again)).PixelSpacing == [1, 1]
    assert writer.part10(ds) == by_pydicom(ds)


def test_images_of_unlike_kinds_in_a_series_keep_what_is_theirs():
    images = [image_of(np.full(shape, 7.0)) for shape in ((4, 5), (6, 3), (4, 5))]
    writer = Writer()

    derived = derive_images(Result(images=tuple(images)), [slice_dataset((0, 0, 0))], work(), series_number=1)
    written = [dcmread(BytesIO(writer.part10(ds))) for ds in derived]

    assert [(ds.Rows, ds.Columns, len(ds.PixelData)) for ds in written] == [(4, 5, 40), (6, 3, 36), (4, 5, 40)]
    assert len({ds.SOPInstanceUID for ds in written}) == 3
    assert [ds.InstanceNumber for ds in written] == [1, 2, 3]
