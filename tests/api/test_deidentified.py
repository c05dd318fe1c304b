"""Images without names, as a right of its own. Expected values: PS3.15 annex E, PS3.18 9 and 10.4 to 10.6."""

import io
from collections.abc import Iterator
from datetime import date, timedelta
from typing import Any

import orjson
import pytest
from PIL import Image
from pydicom import dcmread
from pymongo import MongoClient

from fhir_server.access.contracts import Limits, Right
from fhir_server.access.grants import Grant
from fhir_server.access.scopes import Scopes
from fhir_server.deidentified import secret_name
from fhir_server.store.filters import Act
from imaging.deidentify import Options, deidentify
from imaging.errors import AppError, Category
from tests.support.deidentified import BASE, SCANNED, Recipient, named_in, secrets_of, told, value
from tests.support.dicomweb import (
    EXPLICIT_LE,
    Site,
    bearer,
    ct,
    files_of,
    parts_of,
    sample,
    site_of_a_module,
)

CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
DICOM = 'multipart/related; type="application/dicom"'


@pytest.fixture(scope="module")
def here(mongo: MongoClient[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with site_of_a_module(mongo, tmp_path_factory.mktemp("site")) as one:
        files = [
            *(ct(n, **SCANNED) for n in (1, 2)), ct(1, series=2, **SCANNED),
            ct(1, study="1.2.4", StudyDate="20260112", Modality="MR", **SCANNED),
            ct(1, study="1.2.5", **SCANNED), ct(2, study="1.2.5", BurnedInAnnotation="YES", **SCANNED),
            ct(3, study="1.2.5", SOPClassUID=CAPTURE, **SCANNED),
            ct(4, study="1.2.5", SOPClassUID=CAPTURE, BurnedInAnnotation="NO", **SCANNED),
            ct(1, study="1.2.6", BurnedInAnnotation="YES", **SCANNED),
            sample("CT_small.dcm"), sample("MR_small_jp2klossless.dcm"), sample("test-SR.dcm"),
        ]  # fmt: skip
        assert one.store(*files).status_code == 200
        yield one


@pytest.fixture(scope="module")
def registry(here: Site) -> Recipient:
    return Recipient(here, "registry")


# ---- what identifies


@pytest.mark.parametrize("options", [frozenset(), frozenset({"patient_characteristics"})], ids=["plain", "kept"])
def test_nothing_that_identifies_is_in_any_answer(here: Site, options: frozenset[str]) -> None:
    recipient = Recipient(here, f"searched {len(options)}", keeps=options)
    files = [
        ct(1, **SCANNED),
        ct(1, study="1.2.4", **{**SCANNED, "StudyDate": "20260112"}),
        sample("CT_small.dcm"),
        sample("test-SR.dcm"),
    ]
    files += [ct(n, study="1.2.5", **SCANNED) for n in (1, 2, 3, 4)] + [sample("MR_small_jp2klossless.dcm")]
    secrets = secrets_of(*files)
    assert {b"Grey", b"Quimby", b"Seattle Grace", b"1.2.3", b"19700101", b"CompressedSamples", b"ACC-1"} <= secrets
    paths = ["/studies", "/studies?limit=1", "/studies?PatientName=x"]
    for study, series, sop in told(recipient):
        paths += [f"/studies/{study}", f"/studies/{study}/series", f"/studies/{study}/instances"]
        paths += [f"/studies/{study}/metadata", f"/studies/{study}/series/{series}/metadata"]
        paths += [f"/studies/{study}/series/{series}/instances/{sop}{end}" for end in ("", "/metadata")]
        uids = f"studyUID={study}&seriesUID={series}&objectUID={sop}"
        paths += [f"/dicom-web/wado?requestType=WADO&{uids}&anonymize=yes", f"/studies/{study}/series/{sop}"]
        paths += [f"/studies/{study}/series/{series}/instances/{series}"]

    for path in dict.fromkeys(paths):
        answer = recipient.get(path)
        sent = str(answer.headers).encode() + answer.get_data()
        found = named_in(sent, secrets)
        assert not found, (path, answer.status_code)


# ---- what comes


def test_studies_are_found_without_names(registry: Recipient) -> None:
    registry.found("/studies")

    (row,) = registry.found(f"/studies?StudyInstanceUID={registry.alias('1.2.3')}")

    assert value(row, "00201208") == 3
    assert row["00080020"] == {"vr": "DA"}
    assert value(row, "00100010")["Alphabetic"] == value(row, "00100020")
    assert value(row, "00081190").endswith(f"/dicom-web/deidentified/studies/{registry.alias('1.2.3')}")


def test_a_kind_of_images_may_be_searched_for(registry: Recipient) -> None:
    rows = registry.found("/studies?ModalitiesInStudy=MR")

    assert registry.alias("1.2.4") in {value(each, "0020000D") for each in rows}
    assert {"MR"} == {modality for each in rows for modality in each["00080061"]["Value"]}


def test_results_come_in_pages(registry: Recipient) -> None:
    every = [value(each, "0020000D") for each in registry.found("/studies")]

    first, second = registry.get("/studies?limit=2"), registry.found("/studies?limit=2&offset=2")

    assert [value(each, "0020000D") for each in [*first.json, *second]] == every[:4]
    assert first.headers["Warning"].startswith("299")


@pytest.mark.parametrize("key", ["PatientID=PAT-1", "PatientName=Test*", "StudyDate=20260102", "AccessionNumber=ACC-1"])
def test_what_identifies_cannot_be_searched_for(registry: Recipient, key: str) -> None:
    answer = registry.get(f"/studies?{key}")

    assert answer.status_code == 400
    assert "without names" in answer.json["issue"][0]["diagnostics"]


def test_a_study_comes_in_reading_order_as_it_would_be_ordered(here: Site, registry: Recipient) -> None:
    key = here.server.secret(secret_name(registry.organization))
    expected = [deidentify(each, key, Options()) for each in (ct(1, **SCANNED), ct(2, **SCANNED))]

    answer = registry.get(f"/studies/{registry.alias('1.2.3')}", DICOM)

    files = files_of(answer)
    assert [each.to_json_dict() for each in files[:2]] == [
        dcmread(io.BytesIO(each)).to_json_dict() for each in expected
    ]
    assert len(files) == 3
    assert len({each.SeriesInstanceUID for each in files}) == 2
    assert {(each.PatientIdentityRemoved, each.file_meta.TransferSyntaxUID) for each in files} == {("YES", EXPLICIT_LE)}
    assert {each.DeidentificationMethodCodeSequence[0].CodeValue for each in files} == {"113100"}


def test_a_series_and_an_instance_come_by_themselves(registry: Recipient) -> None:
    study, series, sop = next(each for each in told(registry) if each[0] == registry.alias("1.2.3"))

    of_series = files_of(registry.get(f"/studies/{study}/series/{series}", DICOM))
    alone = registry.get(f"/studies/{study}/series/{series}/instances/{sop}", "application/dicom")

    assert {each.SeriesInstanceUID for each in of_series} == {series}
    assert len(of_series) == 2
    assert dcmread(io.BytesIO(alone.get_data())).SOPInstanceUID == sop
    assert registry.get(
        f"/studies/{study}/series/{series}/instances/{sop}",
        "application/dicom",
        **{"If-None-Match": alone.headers["ETag"]},
    ).status_code == 304  # fmt: skip


def test_metadata_is_that_of_the_files(registry: Recipient) -> None:
    path = f"/studies/{registry.alias('1.2.3')}"

    files = files_of(registry.get(path, DICOM))

    documents = registry.get(f"{path}/metadata").json
    for each, document in zip(files, documents, strict=True):
        del each.PixelData
        assert document.pop("7FE00010")["BulkDataURI"].endswith(f"/instances/{each.SOPInstanceUID}/bulkdata/7FE00010")
    assert documents == [orjson.loads(orjson.dumps(each.to_json_dict())) for each in files]
    assert len(parts_of(registry.get(f"{path}/metadata", 'multipart/related; type="application/dicom+xml"'))) == 3


def test_compressed_images_stay_so_where_that_is_wanted(registry: Recipient) -> None:
    lossless = "1.2.840.10008.1.2.4.90"
    name = str(dcmread(io.BytesIO(sample("MR_small_jp2klossless.dcm"))).StudyInstanceUID)

    compressed = files_of(registry.get(f"/studies/{registry.alias(name)}", f"{DICOM}; transfer-syntax={lossless}"))
    native = files_of(registry.get(f"/studies/{registry.alias(name)}"))

    assert {each.file_meta.TransferSyntaxUID for each in compressed} == {lossless}
    assert {each.file_meta.TransferSyntaxUID for each in native} == {EXPLICIT_LE}
    assert registry.get(f"/studies/{registry.alias(name)}", f"{DICOM}; transfer-syntax=1.2.3").status_code == 406


def test_wado_uri_gives_files_without_names(here: Site, registry: Recipient) -> None:
    study, series, sop = next(each for each in told(registry) if each[0] == registry.alias("1.2.3"))
    uids = f"requestType=WADO&studyUID={study}&seriesUID={series}&objectUID={sop}"

    answer = registry.get(f"/dicom-web/wado?{uids}&anonymize=yes", "application/dicom")

    assert dcmread(io.BytesIO(answer.get_data())).SOPInstanceUID == sop
    assert registry.get(f"/dicom-web/wado?{uids}").status_code == 403
    assert registry.get(f"/dicom-web/wado?{uids}&anonymize=no").status_code == 400
    assert registry.get(f"/dicom-web/wado?{uids}&anonymize=yes&contentType=text/html").status_code == 406
    picture = registry.get(f"/dicom-web/wado?{uids}&anonymize=yes&contentType=image/png&rows=10")
    assert Image.open(io.BytesIO(picture.get_data())).size == (10, 10)


# ---- options of the contract


def test_dates_are_moved_alike_and_characteristics_kept_where_the_contract_says_so(here: Site) -> None:
    recipient = Recipient(here, "longitudinal", keeps=frozenset({"modified_dates", "patient_characteristics"}))

    recipient.found("/studies")

    files = [files_of(recipient.get(f"/studies/{recipient.alias(each)}"))[0] for each in ("1.2.3", "1.2.4")]
    (row,) = recipient.found(f"/studies?StudyInstanceUID={recipient.alias('1.2.3')}")

    first, second = (date.fromisoformat(each.StudyDate) for each in files)
    assert second - first == timedelta(days=10)
    assert first < date(2026, 1, 2)
    assert value(row, "00080020") == files[0].StudyDate
    assert files[0].PatientSex == value(row, "00100040") == "O"
    codes = {each.CodeValue for each in files[0].DeidentificationMethodCodeSequence}
    assert codes == {"113100", "113107", "113108"}
    assert files[0].LongitudinalTemporalInformationModified == "MODIFIED"


def test_two_recipients_know_a_study_by_different_names(here: Site, registry: Recipient) -> None:
    other = Recipient(here, "another registry")

    assert other.alias("1.2.3") in {value(each, "0020000D") for each in other.found("/studies")}
    assert registry.alias("1.2.3") != other.alias("1.2.3")
    assert registry.get(f"/studies/{other.alias('1.2.3')}").status_code == 404


# ---- what is not given


def test_nothing_else_opens(registry: Recipient) -> None:
    for path in ("/fhir/Patient", "/fhir/ImagingStudy/1.2.3", "/dicom-web/studies", "/dicom-web/studies/1.2.3"):
        assert registry.here.web.get(path, headers=registry.headers).status_code in (403, 404), path


def test_identified_access_is_not_access_to_pseudonyms(here: Site) -> None:
    assert here.web.get(f"{BASE}/studies", headers=here.clinic).status_code == 403


@pytest.mark.parametrize("uid", ["1.2.3", "9.9"])
def test_original_uids_lead_nowhere(registry: Recipient, uid: str) -> None:
    registry.found("/studies")

    assert registry.get(f"/studies/{uid}").status_code == 404
    assert registry.found(f"/studies?StudyInstanceUID={uid}") == []
    assert registry.get(f"/studies/{registry.alias('1.2.3')}/series/1.2.3.1").status_code == 404
    assert registry.get(f"/studies/{registry.alias('1.2.3')}/series/1.2.3.1/instances/1.2.3.1.1").status_code == 404


def test_what_may_have_text_burned_in_is_left_out_and_refused(registry: Recipient) -> None:
    study = registry.alias("1.2.5")
    answer = registry.get(f"/studies/{study}")
    rows = registry.found(f"/studies/{study}/instances")
    path = f"/studies/{study}/series/{value(rows[1], '0020000E')}/instances/{value(rows[1], '00080018')}"

    assert [each.InstanceNumber for each in files_of(answer)] == [1, 4]
    assert "2 instances are left out" in answer.headers["Warning"]
    assert [each["00200013"]["Value"] for each in registry.get(f"/studies/{study}/metadata").json] == [[1], [4]]
    assert registry.get(path).status_code == 403
    assert "burned in" in registry.get(f"{path}/metadata").json["issue"][0]["diagnostics"]


def test_a_study_of_which_nothing_can_be_cleaned_is_refused(registry: Recipient) -> None:
    report = str(dcmread(io.BytesIO(sample("test-SR.dcm"))).StudyInstanceUID)

    assert {registry.get(f"/studies/{registry.alias(each)}").status_code for each in (report, "1.2.6")} == {403}


def test_the_limits_of_the_contract_hold(here: Site) -> None:
    here.server.studies.catch_up()
    recipient = Recipient(here, "mr only", limits=Limits(None, frozenset({"MR"})))
    before = {value(each, "0020000D") for each in recipient.found("/studies")}

    here.server.principals.add("mr only", [Right.RECEIVE_DEIDENTIFIED], limits=Limits(None, frozenset({"CT"})))
    narrowed = Recipient(here, "mr only", limits=Limits(None, frozenset({"CT"})))

    assert recipient.alias("1.2.4") in before
    assert recipient.alias("1.2.3") not in before
    assert narrowed.get(f"/studies/{recipient.alias('1.2.4')}").status_code == 404


def test_a_token_about_one_patient_is_refused(here: Site) -> None:
    recipient = Recipient(here, "with apps")
    client = here.server.principals.subscribers()
    (ours,) = [each.clients[0] for each in client if each.organization == recipient.organization]
    until = here.server.clock() + timedelta(minutes=5)
    narrow, wide = (
        here.server.principals.issue(Grant(ours, Scopes.parse(scopes), until))
        for scopes in ("system/ImagingStudy.rs?patient=Patient/1", "system/ImagingStudy.rs")
    )

    for token, status in ((narrow, 403), (wide, 200)):
        recipient.headers = {"Authorization": f"Bearer {token}"}
        assert recipient.get("/studies").status_code == status


def test_what_comes_later_is_found_as_well(here: Site) -> None:
    recipient = Recipient(here, "early")
    assert here.store(ct(1, study="1.2.9")).status_code == 200
    first = [each for each in told(recipient) if each[0] == recipient.alias("1.2.9")]
    assert recipient.get("/studies/{}/series/{}/instances/{}".format(*first[0])).status_code == 200

    here.store(ct(2, study="1.2.9"), ct(1, study="1.2.9", series=2))

    every = [each for each in told(recipient) if each[0] == recipient.alias("1.2.9")]
    assert len(every) == 3
    assert {recipient.get("/studies/{}/series/{}/instances/{}".format(*each)).status_code for each in every} == {200}
    assert {recipient.get("/studies/{}/series/{}".format(*each)).status_code for each in every} == {200}


def test_what_goes_away_meanwhile_is_named_by_no_original_uid(here: Site) -> None:
    recipient = Recipient(here, "late")
    assert here.store(ct(1, study="1.2.10"), ct(2, study="1.2.10")).status_code == 200
    recipient.found("/studies")
    principal = here.server.principals.authenticate(recipient.headers["Authorization"].removeprefix("Bearer "))
    images, _ = here.server.deidentified.view(principal, Act.READ).images(recipient.alias("1.2.10"))
    contents = images.contents(recipient.alias("1.2.10"))
    begun = images.each(contents.sop_uids)
    here.server.archive.delete("1.2.10", "1.2.10.1", "1.2.10.1.2")

    for given in (begun, images.documents(contents.sop_uids)):
        with pytest.raises(AppError) as gone:
            list(given)
        assert gone.value.category is Category.NOT_FOUND
        assert gone.value.where in (recipient.alias("1.2.10"), contents.sop_uids[1])


def test_every_retrieval_is_on_record_by_the_original_study(here: Site) -> None:
    recipient = Recipient(here, "recorded")
    recipient.found("/studies")
    assert recipient.get(f"/studies/{recipient.alias('1.2.3')}").status_code == 200

    auditor = bearer(here.server, "auditor", Right.AUDIT)
    found = here.web.get("/fhir/AuditEvent?_count=5&_sort=-_lastUpdated", headers=auditor).json["entry"]

    events = [orjson.dumps(each["resource"]).decode() for each in found]
    assert any("RAD-107" in each and '1.2.3"' in each and recipient.organization in each for each in events)


def test_instances_of_one_series_are_found(registry: Recipient) -> None:
    study, series, _ = next(each for each in told(registry) if each[0] == registry.alias("1.2.3"))

    rows = registry.found(f"/studies/{study}/series/{series}/instances?SOPClassUID=1.2.840.10008.5.1.4.1.1.2")

    assert [value(each, "00200013") for each in rows] == [1, 2]
    assert {value(each, "0020000E") for each in rows} == {series}
    assert registry.get(f"/studies/{study}/series/{series}/instances?SOPClassUID={CAPTURE}").status_code == 204
