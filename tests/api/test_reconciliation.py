"""Patients that are one person, and studies that are another's. Source: FHIR R5 Patient-merge."""

import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from threading import Event, Thread
from typing import Any

import pytest
from pydicom.uid import generate_uid

from fhir_server.access.contracts import Limits, Right
from fhir_server.work.maintenance import Maintenance
from imaging.errors import AppError
from tests.support.doors import FHIR, Caller, Doors, dicom, new_study, opened

Json = dict[str, Any]
PAGE = Path(__file__).parents[2] / "docs/howto/reconcile-patients.md"


@pytest.fixture(scope="module")
def doors(module_db) -> Iterator[Doors]:
    with opened(module_db) as made:
        yield made


@pytest.fixture(scope="module")
def both(doors: Doors) -> Caller:
    return doors.caller(Right.REGISTER_IMAGES, Right.RECEIVE_IMAGES, name="both")


def study_of(doors: Doors, number: str, *, name: str = "both", **more: Any) -> tuple[str, str]:
    """Return a new study of a Patient ID and the reference of its Patient."""
    uid, files = new_study(PatientID=number, **more)
    doors.ingest(*files, name=name)
    doors.server.studies.project(uid)
    return uid, subject(doors, uid)


def subject(doors: Doors, uid: str) -> str:
    return str(doors.server.own.read("ImagingStudy", uid).json()["subject"]["reference"])


def patient(doors: Doors, reference: str) -> Json:
    return doors.server.own.read("Patient", reference.partition("/")[2]).json()


def parameters(**values: Any) -> Json:
    kinds = {str: "valueString", bool: "valueBoolean"}
    rows = []
    for name, value in values.items():
        key = name.replace("_", "-")
        if isinstance(value, dict):
            rows.append({"name": key, "resource" if "resourceType" in value else "valueIdentifier": value})
        elif isinstance(value, str) and value.startswith(("Patient/", FHIR)):
            rows.append({"name": key, "valueReference": {"reference": value}})
        else:
            rows.append({"name": key, kinds[type(value)]: value})
    return {"resourceType": "Parameters", "parameter": rows}


def merge(caller: Caller, source: str, target: str, **more: Any) -> Any:
    return caller.post("/fhir/Patient/$merge", parameters(source_patient=source, target_patient=target, **more))


def part(answer: Any, name: str) -> Json:
    assert answer.status_code == 200, answer.text
    (found,) = [each["resource"] for each in answer.json["parameter"] if each["name"] == name]
    return dict(found)


class TestMerge:
    def test_the_source_is_replaced_and_its_images_are_the_targets_also_those_that_come_later(self, doors, both):
        old, source = study_of(doors, "merge-1", PatientName="Doe^J")
        new, target = study_of(doors, "merge-2", PatientName="Doe^John")
        (numbers,) = patient(doors, source)["identifier"]

        answer = merge(both, source, target, reason="registered twice")

        result = part(answer, "result")
        assert result == patient(doors, target)
        assert {"other": {"reference": source}, "type": "replaces"} in result["link"]
        assert {**numbers, "use": "old"} in result["identifier"]
        replaced = patient(doors, source)
        assert replaced["active"] is False
        assert replaced["link"] == [{"other": {"reference": target}, "type": "replaced-by"}]
        assert (subject(doors, old), subject(doors, new)) == (target, target)
        later, _ = study_of(doors, "merge-1", PatientName="Doe^J")
        assert subject(doors, later) == target
        found = both.get(f"/fhir/ImagingStudy?patient={target}").json["entry"]
        assert {each["resource"]["id"] for each in found} == {old, new, later}
        assert part(answer, "input")["parameter"][0] == {
            "name": "source-patient", "valueReference": {"reference": source},
        }  # fmt: skip

    def test_it_is_on_record_who_decided_why_and_what_was_there_before(self, doors, both):
        _, source = study_of(doors, "record-1")
        _, target = study_of(doors, "record-2")
        before = {each: patient(doors, each)["meta"]["versionId"] for each in (source, target)}

        assert merge(both, source, target, reason="two cards").status_code == 200

        (entry,) = both.get(f"/fhir/Provenance?target={source}").json["entry"]
        told = entry["resource"]
        assert [each["reference"] for each in told["target"]] == [source, target]
        assert told["reason"] == [{"text": "two cards"}]
        assert told["agent"][0]["who"]["reference"] == doors.server.principals.named("both")
        assert [each["what"]["reference"] for each in told["entity"]] == [
            f"{each}/_history/{version}" for each, version in before.items()
        ]
        assert told["activity"]["coding"][0]["code"] == "merge"
        auditor = doors.caller(Right.AUDIT, name="auditor")
        events = auditor.get(f"/fhir/AuditEvent?entity={source}&action=U").json["entry"]
        named = {each["what"].get("reference") for each in events[0]["resource"]["entity"]}
        assert {source, target} <= named

    def test_what_was_received_stays_byte_for_byte(self, doors, both):
        uid, files = new_study(PatientID="bytes-1")
        doors.ingest(*files, name="both")
        doors.server.studies.project(uid)
        _, target = study_of(doors, "bytes-2")

        assert merge(both, subject(doors, uid), target).status_code == 200

        accept = 'multipart/related; type="application/dicom"; transfer-syntax=*'
        body = both.get(f"/dicom-web/studies/{uid}", headers={"Accept": accept}).data
        assert subject(doors, uid) == target
        (instance,) = doors.server.archive.instances(uid)
        kept = b"".join(doors.server.archive.file(instance, "received"))
        assert hashlib.sha256(kept).digest() == hashlib.sha256(files[0]).digest()
        assert b"bytes-1" in body

    def test_again_it_changes_nothing(self, doors, both):
        _, source = study_of(doors, "again-1")
        _, target = study_of(doors, "again-2")
        merge(both, source, target)
        versions = [patient(doors, each)["meta"]["versionId"] for each in (source, target)]

        answer = merge(both, source, target)

        assert "before" in part(answer, "outcome")["issue"][0]["diagnostics"]
        assert [patient(doors, each)["meta"]["versionId"] for each in (source, target)] == versions

    def test_a_preview_writes_nothing(self, doors, both):
        uid, source = study_of(doors, "preview-1")
        _, target = study_of(doors, "preview-2")

        made = part(merge(both, source, target, preview=True), "result")

        assert made["link"] == [{"other": {"reference": source}, "type": "replaces"}]
        assert "link" not in patient(doors, target)
        assert subject(doors, uid) == source

    def test_patients_are_named_by_identifiers_and_the_result_may_be_given(self, doors, both):
        _, source = study_of(doors, "named-1")
        _, target = study_of(doors, "named-2")
        numbers = [patient(doors, each)["identifier"][0] for each in (source, target)]
        result = {**patient(doors, target), "gender": "other", "name": [{"family": "Chosen"}]}

        answer = both.post(
            "/fhir/Patient/$merge",
            parameters(
                source_patient_identifier=numbers[0], target_patient_identifier=numbers[1], result_patient=result
            ),
        )

        made = part(answer, "result")
        assert (made["id"], made["name"]) == (target.partition("/")[2], [{"family": "Chosen"}])
        assert made["link"] == [{"other": {"reference": source}, "type": "replaces"}]

    def test_chains_end_at_the_last_and_circles_are_refused(self, doors, both):
        uid, first = study_of(doors, "chain-1")
        _, second = study_of(doors, "chain-2")
        _, third = study_of(doors, "chain-3")

        assert merge(both, first, second).status_code == 200
        assert merge(both, second, third).status_code == 200

        assert subject(doors, uid) == third
        assert merge(both, third, first).status_code == 409
        assert merge(both, first, third).status_code == 409
        later, _ = study_of(doors, "chain-1")
        assert subject(doors, later) == third

    @pytest.mark.parametrize(
        ("change", "status"),
        [
            ({"source_patient": "Patient/nobody"}, 404),
            ({"source_patient": ""}, 400),
            ({"preview": "perhaps"}, 400),
            ({"reason": "x" * 501}, 400),
            ({"result_patient": {"resourceType": "Patient", "id": "another"}}, 400),
            ({"result_patient": {"resourceType": "Patient", "gender": 7}}, 400),
            ({"source_patient_identifier": {"system": "urn:x", "value": "not there"}}, 409),
            ({"colour": "red"}, 400),
        ],
    )
    def test_what_is_wrong_is_refused(self, doors, both, change, status):
        _, source = study_of(doors, "wrong-1")
        _, target = study_of(doors, "wrong-2")

        answer = both.post(
            "/fhir/Patient/$merge", parameters(**{"source_patient": source, "target_patient": target, **change})
        )

        assert answer.status_code == status, answer.text
        assert answer.json["resourceType"] == "OperationOutcome"
        assert "link" not in patient(doors, source)

    def test_into_itself_or_within_a_transaction_is_refused(self, doors, both):
        _, source = study_of(doors, "self-1")
        _, target = study_of(doors, "self-2")
        asked = parameters(source_patient=source, target_patient=target)
        entry = {"request": {"method": "POST", "url": "Patient/$merge"}, "resource": asked}

        alone = merge(both, source, source)
        within = both.post("/fhir", {"resourceType": "Bundle", "type": "transaction", "entry": [entry]})

        assert alone.status_code == 400
        assert within.status_code >= 400
        assert "link" not in patient(doors, source)

    def test_a_taken_back_merge_leaves_the_patients_as_they_were(self, doors, both):
        old, source = study_of(doors, "back-1")
        new, target = study_of(doors, "back-2")
        before = {each: {**patient(doors, each), "meta": None} for each in (source, target)}
        merge(both, source, target)

        answer = both.post(f"/fhir/{source}/$unmerge", parameters(reason="two persons after all"))

        assert answer.status_code == 200, answer.text
        assert {each: {**patient(doors, each), "meta": None} for each in (source, target)} == before
        assert (subject(doors, old), subject(doors, new)) == (source, target)
        assert both.post(f"/fhir/{source}/$unmerge", parameters()).status_code == 409
        assert merge(both, source, target).status_code == 200
        assert subject(doors, old) == target


class TestMove:
    def test_a_study_is_given_to_another_patient_and_back(self, doors, both):
        uid, mistaken = study_of(doors, "move-1")
        other, right = study_of(doors, "move-2")

        answer = both.post(f"/fhir/ImagingStudy/{uid}/$move", parameters(patient=right, reason="wrong worklist entry"))

        assert answer.status_code == 200, answer.text
        assert answer.json["subject"] == {"reference": right}
        more = dicom(
            PatientID="move-1", StudyInstanceUID=uid, SeriesInstanceUID=generate_uid(), SOPInstanceUID=generate_uid()
        )
        doors.ingest(more, name="both")
        doors.server.studies.project(uid)
        assert subject(doors, uid) == right
        doors.server.archive.mark_all()
        doors.server.studies.catch_up(500)
        assert (subject(doors, uid), subject(doors, other)) == (right, right)
        (entry,) = both.get(f"/fhir/Provenance?target=ImagingStudy/{uid}").json["entry"]
        assert entry["resource"]["entity"][0]["what"]["reference"].startswith(f"ImagingStudy/{uid}/_history/")
        back = both.post(f"/fhir/ImagingStudy/{uid}/$move", parameters(patient=f"{FHIR}/{mistaken}"))
        assert back.json["subject"] == {"reference": mistaken}

    def test_a_moved_study_follows_its_patient_into_a_merge(self, doors, both):
        uid, _ = study_of(doors, "follow-1")
        _, right = study_of(doors, "follow-2")
        _, last = study_of(doors, "follow-3")
        both.post(f"/fhir/ImagingStudy/{uid}/$move", parameters(patient=right))

        assert merge(both, right, last).status_code == 200

        assert subject(doors, uid) == last
        refused = both.post(f"/fhir/ImagingStudy/{uid}/$move", parameters(patient=right))
        assert refused.status_code == 409

    def test_a_study_without_images_here_is_moved_by_an_update(self, both):
        created = both.post("/fhir/Patient", {"resourceType": "Patient"}).json["id"]
        study = {"resourceType": "ImagingStudy", "status": "available", "subject": {"reference": f"Patient/{created}"}}
        uid = both.post("/fhir/ImagingStudy", study).json["id"]

        assert both.post(f"/fhir/ImagingStudy/{uid}/$move", parameters(patient=f"Patient/{created}")).status_code == 409


class TestRights:
    def test_who_may_not_change_both_patients_and_all_studies_changes_nothing(self, doors, both):
        uid, source = study_of(doors, "rights-1")
        foreign_uid, foreign = study_of(doors, "rights-2", name="elsewhere")
        _, own = study_of(doors, "rights-3")
        principals = doors.server.principals
        principals.add(
            "narrow",
            [Right.REGISTER_IMAGES, Right.RECEIVE_IMAGES],
            limits=Limits(frozenset([principals.named("both")])),
        )
        narrow = Caller(doors.flask, principals.mint("narrow"), doors.clock)
        reader = doors.caller(Right.RECEIVE_IMAGES, name="reader")

        assert merge(reader, source, own).status_code == 403
        assert reader.post(f"/fhir/ImagingStudy/{uid}/$move", parameters(patient=own)).status_code == 403
        assert merge(narrow, source, foreign).status_code == 404
        assert merge(narrow, foreign, source).status_code == 404
        assert narrow.post(f"/fhir/ImagingStudy/{uid}/$move", parameters(patient=foreign)).status_code == 404
        assert narrow.post(f"/fhir/ImagingStudy/{foreign_uid}/$move", parameters(patient=own)).status_code == 404
        assert merge(doors.stranger, source, own).status_code == 401
        assert (subject(doors, uid), subject(doors, foreign_uid)) == (source, foreign)
        assert "link" not in patient(doors, source)

    def test_a_study_that_belongs_to_others_keeps_its_patient_from_being_merged(self, doors, both):
        _, source = study_of(doors, "shared", IssuerOfPatientID="1.2.3.4.5")
        theirs, same = study_of(doors, "shared", name="elsewhere", IssuerOfPatientID="1.2.3.4.5")
        assert same == source
        _, target = study_of(doors, "shared-too")
        principals = doors.server.principals
        principals.add(
            "owner", [Right.REGISTER_IMAGES, Right.RECEIVE_IMAGES], limits=Limits(frozenset([principals.named("both")]))
        )
        owner = Caller(doors.flask, principals.mint("owner"), doors.clock)

        assert merge(owner, source, target).status_code == 403
        assert subject(doors, theirs) == source


# ---- a crash


class Died(BaseException):
    """The process is no more."""


DECISION_KEPT, TARGET_WRITTEN, PATIENTS_WRITTEN, PROVENANCE_WRITTEN, STUDIES_MARKED = (
    "fhir_server.reconciliation.Reconciliation._patient",
    "fhir_server.reconciliation._replaced",
    "fhir_server.reconciliation._provenance",
    "imaging.archive.Archive.mark",
    "fhir_server.store.reconciliations.Reconciliations.done",
)


@pytest.mark.parametrize(
    "next_step", [DECISION_KEPT, TARGET_WRITTEN, PATIENTS_WRITTEN, PROVENANCE_WRITTEN, STUDIES_MARKED]
)
def test_what_a_crash_leaves_undone_is_done_by_the_maintenance_worker(doors, both, monkeypatch, next_step):
    number = next_step.rpartition(".")[2]
    uid, source = study_of(doors, f"{number}-1")
    _, target = study_of(doors, f"{number}-2")

    def dies(*_: Any) -> Any:
        raise Died

    with monkeypatch.context() as dying:
        dying.setattr(next_step, dies)
        with pytest.raises(Died):
            merge(both, source, target)
    assert subject(doors, uid) == source
    worker = Maintenance(doors.server)
    worker._swept -= 3_600
    worker.round(Event())
    doors.server.studies.catch_up()

    assert subject(doors, uid) == target
    assert patient(doors, source)["link"] == [{"other": {"reference": target}, "type": "replaced-by"}]
    assert patient(doors, target)["link"] == [{"other": {"reference": source}, "type": "replaces"}]
    assert len(both.get(f"/fhir/Provenance?target={source}").json["entry"]) == 1
    assert doors.server.reconciliation.finish() == 0


def test_two_that_merge_a_patient_at_the_same_moment_agree_on_one(doors, both):
    _, source = study_of(doors, "race-1")
    targets = [study_of(doors, f"race-{number}")[1] for number in (2, 3)]
    principal = doors.server.principals.authenticate(both.token)
    tell: dict[str, str] = {}

    def act(target: str) -> None:
        repository = doors.server.repository_for(principal)
        versions = [repository.read("Patient", each.partition("/")[2]) for each in (source, target)]
        try:
            doors.server.reconciliation.merge(repository, *versions)
            tell[target] = "done"
        except AppError as error:
            tell[target] = error.category.value

    threads = [Thread(target=act, args=(each,)) for each in targets]
    for each in threads:
        each.start()
    for each in threads:
        each.join()

    assert sorted(tell.values()) == ["conflict", "done"]
    (link,) = patient(doors, source)["link"]
    assert tell[link["other"]["reference"]] == "done"


# ---- the page


def test_the_examples_of_the_page_do_what_it_says(doors, both):
    uid, source = study_of(doors, "page-1")
    _, target = study_of(doors, "page-2")
    blocks = [json.loads(each) for each in re.findall(r"```json\n(.*?)```", PAGE.read_text(), re.S)]
    paths = re.findall(r"^POST (/fhir/\S+)$", PAGE.read_text(), re.M)
    names = {"Patient/old": source, "Patient/new": target, "1.2.840.1": uid}

    def here(text: str) -> str:
        for name, actual in names.items():
            text = text.replace(name, actual)
        return text

    assert [each.rpartition("/")[2] for each in paths] == ["$merge", "$unmerge", "$move"]
    seen = []
    for path, body in zip(paths, blocks, strict=True):
        assert both.post(here(path), json.loads(here(json.dumps(body)))).status_code == 200
        seen.append(subject(doors, uid))
    assert seen == [target, source, target]
