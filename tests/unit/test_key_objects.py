"""Key object selections: which images somebody picked, in which order, and with which presentation state."""

import pytest
from highdicom import UID
from highdicom.ko import KeyObjectSelection, KeyObjectSelectionDocument
from pydicom import Dataset, dcmread
from pydicom.data import get_testdata_file
from pydicom.sr.codedict import codes

from imaging.errors import AppError, Category
from imaging.key_objects import Picked, selected
from tests.unit.test_pictures import item


def test_the_images_of_a_document_that_highdicom_made_are_those_that_were_picked():
    ct, mr = (dcmread(get_testdata_file(name)) for name in ("CT_small.dcm", "MR_small.dcm"))
    mr.StudyInstanceUID = ct.StudyInstanceUID
    mr.PatientID, mr.PatientName = ct.PatientID, ct.PatientName
    content = KeyObjectSelection(document_title=codes.DCM.ForPrinting, referenced_objects=[mr, ct])
    made = KeyObjectSelectionDocument(
        evidence=[ct, mr], content=content, series_instance_uid=UID(), series_number=1, sop_instance_uid=UID(),
        instance_number=1, manufacturer="us",
    )  # fmt: skip

    assert selected(made.to_json_dict()) == [Picked(mr.SOPInstanceUID), Picked(ct.SOPInstanceUID)]


def document(*children: Dataset, class_uid: str = "1.2.840.10008.5.1.4.1.1.88.59") -> dict:
    return item(SOPClassUID=class_uid, ContentSequence=list(children)).to_json_dict()


def test_frames_and_the_presentation_state_come_along():
    named = item(
        ReferencedSOPInstanceUID="1.2.3",
        ReferencedFrameNumber=[2, 5],
        ReferencedSOPSequence=[item(ReferencedSOPInstanceUID="1.2.9")],
    )
    image = item(ValueType="IMAGE", ReferencedSOPSequence=[named])

    assert selected(document(item(ValueType="TEXT"), image)) == [Picked("1.2.3", (2, 5), "1.2.9")]


@pytest.mark.parametrize(
    ("wrong", "category"),
    [
        (document(), Category.INVALID),
        (document(item(ValueType="TEXT")), Category.INVALID),
        (document(class_uid="1.2.840.10008.5.1.4.1.1.88.11"), Category.UNSUPPORTED),
    ],
)
def test_what_selects_nothing_is_refused(wrong, category):
    with pytest.raises(AppError) as caught:
        selected(wrong)
    assert caught.value.category is category
