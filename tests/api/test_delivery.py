"""Delivery orders: what arrives at a receiver, what it may answer, and when a delivery ends."""

from collections.abc import Iterator
from datetime import timedelta
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from pydicom import dcmread

from fhir_server.access.contracts import Right
from fhir_server.delivery import value
from fhir_server.model.peer import Form
from fhir_server.work.handlers import Later
from fhir_server.work.kinds import handlers
from imaging.archive import STORED
from tests.support.deliveries import LOOPBACK, ORDERER, SERIES, STUDY, attempt, done, order, outputs, placed, register
from tests.support.doors import Caller, Doors, dicom, opened
from tests.support.receivers import (
    Receiver,
    closes,
    hangs,
    keeps_and_closes,
    receiving,
    refuses,
    said,
    status,
    takes,
    takes_half,
    takes_plain,
    takes_up_to,
)
from tests.support.volumes import ct_files


@pytest.fixture
def doors(db: Any) -> Iterator[Doors]:
    with opened(db, **LOOPBACK) as made:
        yield made


@pytest.fixture
def orderer(doors: Doors) -> Caller:
    return doors.caller(*ORDERER, name="orderer")


def uids(count: int = 6) -> set[str]:
    return {f"{SERIES}.{n + 1}" for n in range(count)}


def used_by(doors, caller):
    """Return what was counted for a subscriber under its Contract."""
    server = doors.server
    server.usage.write()
    principal, day = server.principals.authenticate(caller.token), doors.clock().date()
    rows = server.usage.between(day, day, subscriber=principal.subscriber, by_contract=True)
    return [each.counts for each in rows if each.contract == principal.sources[0].contract]


class TestWhatArrives:
    def test_the_study_arrives_with_the_pixels_that_were_registered(self, doors, orderer):
        files = ct_files()
        doors.ingest(*files)
        with receiving() as receiver:
            task = placed(orderer, order(register(doors, receiver, authorization="Bearer let-me-in")))

            ended = done(doors, task)

        assert ended["failure"] == ""
        assert outputs(ended, "delivered") == [6]
        assert set(receiver.kept) == uids()
        (counts,) = used_by(doors, orderer)
        assert (counts["instances-out"], counts["bytes-out"]) == (6, sum(map(len, receiver.kept.values())))
        sent = {each.SOPInstanceUID: each.pixel_array for each in map(dcmread, map(BytesIO, files))}
        got = {uid: dcmread(BytesIO(file)).pixel_array for uid, file in receiver.kept.items()}
        assert all(np.array_equal(got[uid], sent[uid]) for uid in sent)
        (request,) = receiver.came
        assert request.path == "/dicom-web/studies"
        assert request.headers["authorization"] == "Bearer let-me-in"
        assert request.headers["content-type"].startswith('multipart/related; type="application/dicom"')

    @pytest.mark.parametrize(
        ("form", "syntax"),
        [
            (Form.NATIVE, "1.2.840.10008.1.2.1"),
            (Form.STORED, "1.2.840.10008.1.2.4.202"),
            (Form.RECEIVED, "1.2.840.10008.1.2.4.80"),
        ],
    )
    def test_it_arrives_in_the_form_that_the_peer_has(self, doors, orderer, form, syntax):
        file = dicom("MR_small_jpeg_ls_lossless.dcm")
        (stored,) = doors.ingest(file)
        study = value("imaging-study", "valueReference", {"reference": f"ImagingStudy/{stored.summary.study_uid}"})
        with receiving() as receiver:
            done(doors, placed(orderer, order(register(doors, receiver, form=form), study)))

        (got,) = receiver.kept.values()
        ds = dcmread(BytesIO(got))
        assert ds.file_meta.TransferSyntaxUID == syntax
        assert (got == file) is (form is Form.RECEIVED)
        if form is Form.STORED:
            (instance,) = doors.server.archive.instances(stored.summary.study_uid)
            assert got == b"".join(doors.server.archive.file(instance, STORED))
        else:
            assert np.array_equal(ds.pixel_array, dcmread(BytesIO(file)).pixel_array)

    def test_a_receiver_that_does_not_take_the_stored_form_gets_it_uncompressed(self, doors, orderer):
        doors.ingest(*ct_files())
        with receiving(takes_plain) as receiver:
            ended = done(doors, placed(orderer, order(register(doors, receiver, form=Form.STORED))))

        assert outputs(ended, "delivered") == [6]
        assert set(receiver.kept) == uids()

    def test_one_that_refuses_the_request_for_it_too(self, doors, orderer):
        doors.ingest(*ct_files())
        with receiving(status(415), takes) as receiver:
            ended = done(doors, placed(orderer, order(register(doors, receiver, form=Form.STORED))))

        assert outputs(ended, "delivered") == [6]

    def test_images_without_pixels_go_along(self, doors, orderer):
        doors.ingest(*ct_files(1))
        report = dicom("test-SR.dcm", StudyInstanceUID=STUDY, SeriesInstanceUID="1.2.3.4.9", SOPInstanceUID="1.2.3.9")
        doors.ingest(report)
        with receiving() as receiver:
            done(doors, placed(orderer, order(register(doors, receiver))))

        assert set(receiver.kept) == {f"{SERIES}.1", "1.2.3.9"}

    def test_a_part_that_is_named_arrives_alone(self, doors, orderer):
        doors.ingest(*ct_files(), *ct_files(2, series="1.2.3.4.6"))
        with receiving() as receiver:
            done(doors, placed(orderer, order(register(doors, receiver), value("series", "valueId", "1.2.3.4.6"))))

        assert set(receiver.kept) == {"1.2.3.4.6.1", "1.2.3.4.6.2"}

    def test_everything_that_a_search_finds_arrives(self, doors, orderer):
        doors.ingest(*ct_files(1), *ct_files(1, study="1.2.3.5", series="1.2.3.5.1"))
        with receiving() as receiver:
            search = value("search", "valueString", "ImagingStudy?modality=CT")
            done(doors, placed(orderer, order(register(doors, receiver), search)))

        assert set(receiver.kept) == {f"{SERIES}.1", "1.2.3.5.1.1"}

    def test_many_go_in_batches_and_too_large_ones_in_smaller_ones(self, doors, orderer, monkeypatch):
        monkeypatch.setattr("fhir_server.work.sending.BATCH_INSTANCES", 4)
        doors.ingest(*ct_files(9))
        with receiving(takes_up_to(2)) as receiver:
            ended = done(doors, placed(orderer, order(register(doors, receiver))))

        assert outputs(ended, "delivered") == [9]
        assert sorted(receiver.deliveries) == sorted(uids(9))
        assert {len(each.files()) for each in receiver.came} == {4, 2, 1}

    def test_an_instance_that_is_too_large_by_itself_is_told_and_the_others_arrive(self, doors, orderer):
        doors.ingest(*ct_files(2))

        def takes_the_first(receiver: Receiver, came: Any) -> Any:
            first = len(came.files()) == 1 and not receiver.kept
            return takes(receiver, came) if first else status(413)(receiver, came)

        with receiving(takes_the_first) as receiver:
            ended = done(doors, placed(orderer, order(register(doors, receiver))))

        assert outputs(ended, "delivered") == [1]
        assert outputs(ended, "refused") == [f"{SERIES}.2: too large for the receiver"]
        assert "1 of 2 instances were refused" in ended["failure"]


class TestWhatIsAnswered:
    def test_what_is_there_already_counts_as_had(self, doors, orderer):
        doors.ingest(*ct_files())
        with receiving(takes_half(0x0111)) as receiver:
            ended = done(doors, placed(orderer, order(register(doors, receiver))))

        assert (ended["failure"], outputs(ended, "delivered")) == ("", [6])

    def test_what_is_refused_for_good_fails_the_order_and_the_record_says_what_is_there(self, doors, orderer):
        doors.ingest(*ct_files())
        with receiving(takes_half(0xA900)) as receiver:
            ended = done(doors, placed(orderer, order(register(doors, receiver))))

        assert outputs(ended, "delivered") == [3]
        told = f"{SERIES}.4: failure reason A900H, the data set does not match the SOP class"
        assert outputs(ended, "refused")[0] == told
        assert "3 of 6 instances were refused" in ended["failure"]
        (reference,) = outputs(ended, "provenance")
        told = orderer.get(f"/fhir/{reference['reference']}").json
        named = [each["identifier"]["value"] for each in told["target"] if "identifier" in each]
        assert named == [f"urn:oid:{SERIES}.{n}" for n in (1, 2, 3)]

    def test_what_is_put_off_is_tried_again_without_what_was_acknowledged(self, doors, orderer):
        doors.ingest(*ct_files())
        with receiving(takes_half(0xA700), takes) as receiver:
            task = placed(orderer, order(register(doors, receiver)))

            first = attempt(doors, task)
            doors.clock.forward(seconds=10)
            ended = done(doors, task)

        assert isinstance(first, Later)
        assert "3 instances were not taken this time: failure reason A700H, out of resources" in first.reason
        assert outputs(ended, "delivered") == [6]
        assert sorted(receiver.deliveries) == sorted(uids())

    def test_a_reason_that_may_mean_anything_is_believed_in_the_end(self, doors, orderer):
        doors.ingest(*ct_files(1))
        with receiving(refuses(0x0110)) as receiver:
            task = placed(orderer, order(register(doors, receiver)))
            for _ in range(4):
                assert isinstance(attempt(doors, task), Later)
                doors.clock.forward(hours=1)

            ended = done(doors, task)

        assert outputs(ended, "refused") == [f"{SERIES}.1: failure reason 0110H, processing failure"]
        assert len(receiver.came) == 5

    @pytest.mark.parametrize(
        ("behaviour", "words"),
        [
            (status(503), "HTTP 503"),
            (status(429), "HTTP 429"),
            (status(401), "HTTP 401"),
            (status(404), "HTTP 404"),
            (closes, "does not answer"),
            (lambda receiver, came: said(200, []), "names none of the instances"),
            (status(200), "not one of STOW-RS"),
        ],
        ids=["503", "429", "401", "404", "closes", "empty", "not-stow"],
    )
    def test_an_answer_that_may_be_better_later_is_waited_for(self, doors, orderer, behaviour, words):
        doors.ingest(*ct_files(1))
        with receiving(behaviour, takes) as receiver:
            task = placed(orderer, order(register(doors, receiver)))

            first = attempt(doors, task)
            assert isinstance(attempt(doors, task), Later)  # the peer rests: nothing is sent
            tried = len(receiver.came)
            doors.clock.forward(seconds=10)
            ended = done(doors, task)

        assert isinstance(first, Later)
        assert words in first.reason
        assert "Endpoint/peer-pacs" in first.reason
        assert 5 <= first.seconds <= 6.25
        assert tried == 1
        assert outputs(ended, "delivered") == [1]

    @pytest.mark.parametrize(
        ("behaviour", "words"),
        [
            (status(302, Location="http://127.0.0.1:1/"), "redirect"),
            (status(400), "HTTP 400"),
            (status(501), "HTTP 501"),
        ],
        ids=["redirect", "400", "501"],
    )
    def test_an_answer_that_stays_so_fails_the_order_at_once(self, doors, orderer, behaviour, words):
        doors.ingest(*ct_files(1))
        with receiving(behaviour) as receiver:
            ended = done(doors, placed(orderer, order(register(doors, receiver))))

        assert words in ended["failure"]
        assert outputs(ended, "delivered") == [0]
        assert len(receiver.came) == 1

    def test_pauses_grow_with_each_failure_in_a_row_and_hold_for_all_deliveries_to_the_peer(self, doors, orderer):
        doors.ingest(*ct_files(1))
        with receiving(status(503)) as receiver:
            endpoint = register(doors, receiver)
            first, second = placed(orderer, order(endpoint)), placed(orderer, order(endpoint))
            pauses = []
            for _ in range(9):
                outcome = attempt(doors, first)
                assert isinstance(outcome, Later)
                pauses.append(outcome.seconds)
                assert isinstance(attempt(doors, second), Later)
                doors.clock.forward(seconds=outcome.seconds)

        assert len(receiver.came) == 9
        nominal = [min(5 * 2**n, 600) for n in range(9)]
        assert all(low <= pause <= 1.25 * low for low, pause in zip(nominal, pauses, strict=True))

    @pytest.mark.parametrize(("asked", "least", "most"), [("60", 60, 75), ("100000", 600, 750), ("1", 5, 6.25)])
    def test_a_receiver_that_asks_for_a_pause_gets_it_within_the_longest(self, doors, orderer, asked, least, most):
        doors.ingest(*ct_files(1))
        with receiving(status(503, Retry_After=asked)) as receiver:
            outcome = attempt(doors, placed(orderer, order(register(doors, receiver))))

        assert isinstance(outcome, Later)
        assert least <= outcome.seconds <= most

    def test_a_silent_receiver_is_given_up(self, db):
        with opened(db, **LOOPBACK, outbound__silence_s="0.3") as doors, receiving(hangs) as receiver:
            orderer = doors.caller(*ORDERER, name="orderer")
            doors.ingest(*ct_files(1))

            outcome = attempt(doors, placed(orderer, order(register(doors, receiver))))

        assert isinstance(outcome, Later)
        assert "no answer" in outcome.reason

    def test_a_receiver_that_takes_images_too_slowly_is_given_up_for_now(self, doors, orderer, monkeypatch):
        monkeypatch.setattr("fhir_server.work.sending.PATIENCE_S", -1.0)
        monkeypatch.setattr("fhir_server.work.sending.SLOWEST_BYTES_PER_S", 1e9)
        doors.ingest(*ct_files(1))
        with receiving() as receiver:
            outcome = attempt(doors, placed(orderer, order(register(doors, receiver))))

        assert isinstance(outcome, Later)
        assert "too slowly" in outcome.reason
        assert receiver.kept == {}

    def test_an_instance_that_was_kept_without_an_answer_is_sent_again_and_single_there(self, doors, orderer):
        doors.ingest(*ct_files())
        with receiving(keeps_and_closes, takes) as receiver:
            task = placed(orderer, order(register(doors, receiver)))
            attempt(doors, task)
            doors.clock.forward(seconds=10)

            ended = done(doors, task)

        assert outputs(ended, "delivered") == [6]
        assert set(receiver.kept) == uids()
        assert len(receiver.deliveries) == 12


class TestWhenItEnds:
    def test_the_window_closes_and_the_record_says_why_and_what_is_there(self, doors, orderer):
        doors.ingest(*ct_files())
        with receiving(takes_half(0xA700), status(503)) as receiver:
            task = placed(orderer, order(register(doors, receiver)))
            attempt(doors, task)
            doors.clock.forward(hours=71, minutes=59)
            last = attempt(doors, task)
            doors.clock.forward(minutes=1)

            ended = done(doors, task)

        assert isinstance(last, Later)
        assert last.seconds < 60
        assert (
            "the time for it is over; the last try: the other server refuses the request (HTTP 503)" in ended["failure"]
        )
        assert outputs(ended, "delivered") == [3]

    def test_so_does_the_period_of_the_order(self, doors, orderer):
        doors.ingest(*ct_files())
        end = doors.clock.now + timedelta(hours=1)
        with receiving(status(503)) as receiver:
            period = {"period": {"end": end.isoformat()}}
            task = placed(orderer, order(register(doors, receiver), restriction=period))
            assert isinstance(attempt(doors, task), Later)
            doors.clock.forward(hours=1)

            ended = done(doors, task)

        assert "HTTP 503" in ended["failure"]
        assert handlers.get("deliver").ends_late

    def test_what_all_arrived_before_the_window_closed_is_no_failure(self, doors, orderer):
        doors.ingest(*ct_files())
        with receiving() as receiver:
            task = placed(orderer, order(register(doors, receiver)))
            subscriber = doors.server.principals.named("orderer")
            doors.server.peers.begin(f"{task['id']}/pacs", subscriber, doors.clock())
            doors.server.peers.acknowledge(f"{task['id']}/pacs", uids(), {}, doors.clock())
            doors.clock.forward(hours=100)

            ended = done(doors, task)

        assert (ended["failure"], receiver.came) == ("", [])

    def test_a_suspended_endpoint_is_waited_for_and_nothing_is_sent(self, doors, orderer):
        doors.ingest(*ct_files())
        with receiving() as receiver:
            task = placed(orderer, order(register(doors, receiver)))
            doors.server.endpoints.suspend("pacs")
            outcome = attempt(doors, task)
            assert receiver.came == []
            doors.server.endpoints.resume("pacs")

            ended = done(doors, task)

        assert isinstance(outcome, Later)
        assert outcome.reason == "Endpoint/peer-pacs is suspended"
        assert outputs(ended, "delivered") == [6]

    def test_images_that_were_deleted_meanwhile_fail_it_and_what_arrived_is_on_record(self, doors):
        owner = doors.caller(*Right, name="orderer")
        doors.ingest(*ct_files(), name="orderer")
        with receiving(takes_half(0xA700)) as receiver:
            task = placed(owner, order(register(doors, receiver)))
            attempt(doors, task)
            assert owner.delete(f"/dicom-web/studies/{STUDY}").status_code == 204
            doors.clock.forward(seconds=10)

            ended = done(doors, task)

        assert "no such study" in ended["failure"].lower() or "no instance" in ended["failure"].lower()
        assert outputs(ended, "delivered") == [3]

    def test_an_endpoint_that_was_removed_fails_it(self, doors, orderer):
        doors.ingest(*ct_files())
        with receiving() as receiver:
            task = placed(orderer, order(register(doors, receiver)))
            doors.server.endpoints.remove("pacs")

            with pytest.raises(Exception, match="no endpoint 'pacs'"):
                attempt(doors, task)

    def test_one_that_was_given_to_another_subscriber_meanwhile_gets_nothing_of_it(self, doors, orderer):
        doors.server.principals.add("other", [Right.RECEIVE_IMAGES])
        doors.ingest(*ct_files())
        with receiving(status(503), takes) as receiver:
            task = placed(orderer, order(register(doors, receiver)))
            attempt(doors, task)
            doors.server.endpoints.remove("pacs")
            register(doors, receiver, subscriber="other")

            ended = done(doors, task)

        assert "another subscriber's now" in ended["failure"]
        assert len(receiver.came) == 1

    def test_a_long_delivery_stands_aside_now_and_then_and_goes_on_where_it_was(self, doors, orderer, monkeypatch):
        monkeypatch.setattr("fhir_server.work.sending.BATCH_INSTANCES", 2)
        monkeypatch.setattr("fhir_server.work.kinds.deliver.TURN_S", 0.0)
        doors.ingest(*ct_files())
        with receiving() as receiver:
            task = placed(orderer, order(register(doors, receiver)))
            first, second = attempt(doors, task), attempt(doors, task)
            ended = done(doors, task)

        assert isinstance(first, Later)
        assert isinstance(second, Later)
        assert "other orders go first" in first.reason
        assert outputs(ended, "delivered") == [6]
        assert len(receiver.deliveries) == 6
