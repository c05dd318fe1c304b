"""What other servers are told and what they answer: signatures of webhooks, and the answers of STOW-RS."""

import json

import pytest

from fhir_server.outbound.dicomweb import NOT_MENTIONED, is_temporary, receipt, words_of
from fhir_server.outbound.remote import Answer
from fhir_server.outbound.webhook import new_secret, signature
from imaging.errors import AppError, Category
from tests.support.receivers import said

A, B, C = "1.2.3.1", "1.2.3.2", "1.2.3.3"


def test_a_signature_is_that_of_the_specification():
    # The example that the libraries of Standard Webhooks test themselves with.
    made = signature(
        "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}'
    )

    assert made == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def test_a_secret_is_new_each_time_and_as_long_as_the_digest():
    first, second = new_secret(), new_secret()

    assert first != second
    assert len(first) == len("whsec_") + 44  # 32 bytes in base64
    assert signature(first, "a", 1, b"") != signature(second, "a", 1, b"")


def test_a_secret_that_is_none_is_told_without_it():
    with pytest.raises(AppError) as caught:
        signature("whsec_!no-base64!", "a", 1, b"")

    assert caught.value.category is Category.INVALID
    assert "no-base64" not in str(caught.value)


def answered(status, stored, failed=None):
    made = said(status, stored, failed)
    return Answer(made.status, {}, made.body)


def test_an_answer_says_of_each_instance_whether_it_is_there():
    got = receipt(answered(202, [A], {B: 0xA700}), [A, B, C], "peer")

    assert got.stored == {A}
    assert got.refused == {B: 0xA700, C: NOT_MENTIONED}


def test_what_was_not_sent_is_nobodys_business():
    got = receipt(answered(200, [A, "9.9.9"], {"9.9.8": 1}), [A], "peer")

    assert (got.stored, got.refused) == ({A}, {})


@pytest.mark.parametrize(
    ("answer", "category"),
    [
        (Answer(200, {}, b""), Category.BUSY),
        (Answer(200, {}, b"<html>"), Category.BUSY),
        (Answer(200, {}, b"[]"), Category.BUSY),
        (Answer(200, {}, b"{}"), Category.BUSY),
        (answered(200, ["9.9.9"]), Category.BUSY),
        (Answer(503, {}, b"<html>"), Category.BUSY),
        (Answer(400, {}, b"{}"), Category.UNSUPPORTED),
        (Answer(401, {}, json.dumps({"error": "x"}).encode()), Category.FORBIDDEN),
        (Answer(200, {}, b'{"00081199": {"vr": "SQ", "Value": [1, {}, {"00081155": 2}]}}'), Category.BUSY),
    ],
)
def test_what_is_no_answer_of_stow_rs_acknowledges_nothing(answer, category):
    with pytest.raises(AppError) as caught:
        receipt(answer, [A], "peer")

    assert caught.value.category is category


@pytest.mark.parametrize(
    ("reason", "words", "temporary"),
    [
        (0xA700, "failure reason A700H, out of resources", True),
        (0xA7FE, "failure reason A7FEH, out of resources", True),
        (0x0213, "failure reason 0213H, resource limitation", True),
        (0xA9AB, "failure reason A9ABH, the data set does not match the SOP class", False),
        (0xC122, "failure reason C122H, transfer syntax not supported", False),
        (0xC305, "failure reason C305H, cannot be understood", False),
        (0x4711, "failure reason 4711H", False),
        (NOT_MENTIONED, "the answer does not mention it", False),
    ],
)
def test_failure_reasons_are_told_in_words(reason, words, temporary):
    assert (words_of(reason), is_temporary(reason)) == (words, temporary)
