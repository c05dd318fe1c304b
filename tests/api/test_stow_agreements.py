"""What is agreed with a subscriber about its images: flags, refusals, changes. Codes: PS3.18 tables I.2-1 and I.2-2."""

import io
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson
import pytest
from pydicom import Dataset, dcmread
from pydicom.sequence import Sequence
from pydicom.uid import ImplicitVRLittleEndian
from pymongo import MongoClient

from fhir_server.access.agreements import Agreement, Verdict, agreed, agreement_contract
from fhir_server.access.contracts import Right
from fhir_server.projection import FLAGS
from fhir_server.storage_checks import CHECKS, checked
from imaging.errors import AppError
from tests.support.dicomweb import Site, address_of, bearer, ct, site_of_a_module

FLAG, REJECT = Verdict.FLAG, Verdict.REJECT
NOW = datetime(2026, 1, 2, tzinfo=UTC)


@pytest.fixture(scope="module")
def made(mongo: MongoClient[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with site_of_a_module(mongo, tmp_path_factory.mktemp("site"), access__cache_s="0") as one:
        yield one


@pytest.fixture
def here(made: Site) -> Iterator[Site]:
    yield made
    made.forget_images()


def agree(here: Site, **said: Any) -> None:
    here.server.principals.agree("Hospital", Agreement(**said))


FAILING = {
    # check              an image that does not pass                                   Failure Reason
    "patient-id":        ({"PatientID": ""},                                           0xA900),
    "patient-name":      ({"PatientName": "^^"},                                       0xA900),
    "study-date":        ({"StudyDate": ""},                                           0xA900),
    "accession-number":  ({"AccessionNumber": ""},                                     0xA900),
    "sop-class":         ({"SOPClassUID": "1.2.826.0.1.3680043.10.1"},                 0x0122),
    "same-patient":      ({"PatientID": "SOMEBODY-ELSE"},                              0xC40A),
}  # fmt: skip


@pytest.mark.parametrize("check", CHECKS)
def test_what_does_not_pass_is_rejected_with_its_reason(here: Site, check: str) -> None:
    here.store(ct(9))
    agree(here, checks={check: REJECT})
    changes, reason = FAILING[check]

    answer = here.store(ct(1, **changes), ct(2))

    assert answer.status_code == 202
    (failed,) = answer.json["00081198"]["Value"]
    assert failed["00081197"]["Value"] == [reason]
    assert failed["00081155"]["Value"] == ["1.2.3.1.1"]
    assert here.server.archive.count() == 2


@pytest.mark.parametrize("check", CHECKS)
def test_what_does_not_pass_is_stored_with_a_warning_where_that_is_agreed(here: Site, check: str) -> None:
    here.store(ct(9))
    agree(here, checks={check: FLAG})

    answer = here.store(ct(1, **FAILING[check][0]), ct(2))

    assert answer.status_code == 202
    warnings = [item.get("00081196", {}).get("Value") for item in answer.json["00081199"]["Value"]]
    assert warnings == [[0xB007], None]
    assert here.server.archive.count() == 3


MENDED = {
    "patient-id": "1CT1", "patient-name": "Some^Body", "study-date": "20040119", "accession-number": "A1",
    "same-patient": "1CT1",
}  # fmt: skip
"""Values of the images of `ct` where a check asks for them."""


@pytest.mark.parametrize("check", MENDED)
def test_a_flagged_study_is_found_until_it_is_mended(here: Site, check: str) -> None:
    here.store(ct(9))
    agree(here, checks={check: FLAG})
    here.store(ct(1, **FAILING[check][0]))
    (keyword,) = FAILING[check][0]

    found = fhir(here, "GET", f"ImagingStudy?_tag={FLAGS}|{check}").json["entry"]

    (study,) = [each["resource"] for each in found]
    assert study["meta"]["tag"] == [{"system": FLAGS, "code": check, "display": CHECKS[check].message}]
    changed = {**study, "meta": {**study["meta"], "tag": [{"system": "urn:mine", "code": "seen"}]}}
    kept = fhir(here, "PUT", f"ImagingStudy/{study['id']}", changed).json["meta"]["tag"]
    assert [each["code"] for each in kept] == [check, "seen"]
    value = [{"name": "keyword", "valueCode": keyword}, {"name": "value", "valueString": MENDED[check]}]
    correction = {"resourceType": "Parameters", "parameter": [{"name": "attribute", "part": value}]}
    assert fhir(here, "POST", f"ImagingStudy/{study['id']}/$correct", correction).status_code == 200
    assert fhir(here, "GET", f"ImagingStudy?_tag={FLAGS}|").json["total"] == 0
    assert fhir(here, "GET", f"ImagingStudy/{study['id']}").json["meta"]["tag"] == kept[1:]
    answer = fhir(here, "POST", f"ImagingStudy/{study['id']}/$uncorrect", {"resourceType": "Parameters"})
    assert answer.status_code == 200, answer.text
    assert fhir(here, "GET", f"ImagingStudy?_tag={FLAGS}|").json["total"] == 1


def fhir(here: Site, method: str, path: str, resource: Any = None) -> Any:
    headers = {**bearer(here.server, "Both", Right.REGISTER_IMAGES, Right.RECEIVE_IMAGES)}
    data = None if resource is None else orjson.dumps(resource)
    return here.web.open(
        f"/fhir/{path}", method=method, data=data, headers=headers, content_type="application/fhir+json"
    )


def test_without_an_agreement_nothing_is_checked(here: Site) -> None:
    agree(here)

    assert here.store(ct(1, PatientID=""), ct(2, PatientID="OTHER")).status_code == 200


def test_the_patient_is_also_that_of_the_images_before_in_the_request(here: Site) -> None:
    agree(here, checks={"same-patient": REJECT})

    answer = here.store(ct(1), ct(2, PatientBirthDate="19710101"))

    assert [item["00081155"]["Value"] for item in answer.json["00081198"]["Value"]] == [["1.2.3.1.2"]]


def implicit(data: bytes) -> bytes:
    ds = dcmread(io.BytesIO(data))
    ds.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    out = io.BytesIO()
    ds.save_as(out, implicit_vr=True, little_endian=True)
    return out.getvalue()


def earlier() -> Sequence:
    item, before = Dataset(), Dataset()
    before.PatientName = "Müller^Anna"
    item.ModifiedAttributesSequence = Sequence([before])
    item.ReasonForTheAttributeModification = "CORRECT"
    return Sequence([item])


@pytest.mark.parametrize("form", [bytes, implicit])
@pytest.mark.parametrize("more", [{}, {"OriginalAttributesSequence": earlier(), "SpecificCharacterSet": "ISO_IR 100"}])
def test_an_issuer_that_is_agreed_on_is_filled_in_and_told(here: Site, form: Any, more: dict[str, Any]) -> None:
    agree(here, issuer="St. Mary")
    data = form(ct(1, **more))

    answer = here.store(data)

    assert answer.status_code == 202, answer.get_data()
    (item,) = answer.json["00081199"]["Value"]
    assert item["00081196"]["Value"] == [0xB000]
    (original,) = item["04000561"]["Value"]
    assert original["04000550"]["Value"] == [{"00100021": {"vr": "LO"}}]
    ds = dcmread(io.BytesIO(here.get(f"{address_of(data)}/received").get_data()))
    assert ds.IssuerOfPatientID == "St. Mary"
    assert len(ds.OriginalAttributesSequence) == 1 + bool(more)
    last = ds.OriginalAttributesSequence[-1]
    assert "IssuerOfPatientID" in last.ModifiedAttributesSequence[0]
    assert (last.ModifyingSystem, last.ReasonForTheAttributeModification) == ("fhir-imaging-server", "COERCE")
    if more:
        assert str(ds.OriginalAttributesSequence[0].ModifiedAttributesSequence[0].PatientName) == "Müller^Anna"
    assert ds.PixelData == dcmread(io.BytesIO(data)).PixelData


def test_a_changed_image_may_be_sent_again(here: Site) -> None:
    agree(here, issuer="St. Mary")
    here.store(ct(1))

    again = here.store(ct(1))

    assert again.status_code == 202
    assert "00081198" not in again.json
    assert here.server.archive.count() == 1


def test_an_issuer_that_is_told_stays(here: Site) -> None:
    agree(here, issuer="St. Mary")

    assert here.store(ct(1, IssuerOfPatientID="Elsewhere")).status_code == 200


def test_agreements_are_read_from_contracts_strictly() -> None:
    first = Agreement({"patient-id": FLAG, "sop-class": REJECT}, NOW + timedelta(days=10), "A")
    second = Agreement({"patient-id": REJECT}, NOW + timedelta(days=5))
    contracts = [agreement_contract("Organization/1", each, issued=NOW) for each in (first, second)]

    found = agreed(contracts, "Organization/1", NOW)

    assert found.checks == {"patient-id": REJECT, "sop-class": REJECT}
    assert found.keep_until is not None
    assert found.keep_until >= NOW + timedelta(days=10)
    assert agreed(contracts, "Organization/2", NOW) == Agreement()
    assert agreed([{**each, "status": "terminated"} for each in contracts], "Organization/1", NOW) == Agreement()


def test_a_check_that_is_not_known_is_refused() -> None:
    with pytest.raises(AppError):
        checked({"nonsense": FLAG})
