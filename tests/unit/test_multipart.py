"""multipart/related bodies. Expected parts follow from RFC 2046 5.1; the e-mail package gives a second opinion."""

import email
import email.policy
import mmap

import pytest

from imaging.dicomweb import (
    MultipartLimits,
    MultipartReader,
    iter_parts,
    multipart_related,
    parse_content_type,
    read_body,
)
from imaging.errors import AppError, Category


def parts_of(body: bytes, boundary: str = "B", block: int | None = None, **options):
    view = memoryview(body)
    position = 0

    def read(size: int) -> bytes:
        nonlocal position
        size = min(size, block or size)
        position += size
        return bytes(view[position - size : position])

    return [(dict(part.headers), bytes(part.body)) for part in iter_parts(read, boundary, **options)]


def failure(body: bytes, **options) -> AppError:
    with pytest.raises(AppError) as caught:
        parts_of(body, **options)
    return caught.value


TWO = b"--B\r\nContent-Type: application/dicom\r\n\r\nfirst\r\n--B\r\nX-A: 1\r\n\r\nsecond\r\n--B--\r\n"
TWO_PARTS = [({"content-type": "application/dicom"}, b"first"), ({"x-a": "1"}, b"second")]


@pytest.mark.parametrize(
    "body",
    [
        TWO,
        b"This is a preamble.\r\n" + TWO + b"and this an epilogue\r\n--B\r\n",
        TWO.replace(b"\r\n", b"\n"),
        TWO.replace(b"--B\r\n", b"--B \t \r\n"),
        TWO.removesuffix(b"\r\n"),
        b"\r\n" + TWO,
    ],
    ids=["plain", "preamble-epilogue", "bare-lf", "padding", "no-last-line-end", "leading-line-end"],
)
@pytest.mark.parametrize("block", [1, 2, 3, 7, None])
def test_parts_are_found_whatever_surrounds_them(body, block):
    assert parts_of(body, block=block) == TWO_PARTS


def test_a_body_keeps_its_own_line_ends():
    body = b"--B\r\n\r\n\r\n\r\nx\r\r\n\r\n--B--"

    assert parts_of(body) == [({}, b"\r\n\r\nx\r\r\n")]


def test_in_a_body_of_bare_line_feeds_a_carriage_return_is_data():
    assert parts_of(b"--B\n\nx\r\n--B--\n") == [({}, b"x\r")]


@pytest.mark.parametrize("body", [b"--B\r\nA: b\r\n\r\n\r\n--B--", b"--B\r\nA: b\r\n\r\n--B--"])
def test_a_part_may_be_empty(body):
    assert parts_of(body) == [({"a": "b"}, b"")]


@pytest.mark.parametrize("line", [b"--Bb", b"--B x", b"--B\rx", b"--B-", b" --B", b"--b"])
def test_a_line_that_only_looks_like_a_boundary_is_data(line):
    body = b"--B\r\n\r\nx\r\n" + line + b"\r\ny\r\n--B--\r\n"

    for block in (1, 5, None):
        assert parts_of(body, block=block) == [({}, b"x\r\n" + line + b"\r\ny")]


def test_a_nested_multipart_with_a_longer_boundary_is_one_body():
    inner = b"--BB\r\n\r\nx\r\n--BB--\r\n"

    assert parts_of(b"--B\r\n\r\n" + inner + b"\r\n--B--") == [({}, inner)]


def test_no_part_at_all_is_no_error():
    assert parts_of(b"--B--\r\n") == []


def test_header_lines_may_be_folded_repeated_and_in_any_case():
    body = b"--B\r\nCONTENT-type: multipart/x;\r\n\tboundary=c\r\nx:1\r\nX: 2\r\n\r\n--B--"

    assert parts_of(body) == [({"content-type": "multipart/x; boundary=c", "x": "1, 2"}, b"")]


def test_a_length_in_a_part_is_not_believed():
    body = b"--B\r\nContent-Length: 2\r\n\r\nlonger\r\n--B\r\nContent-Length: 999\r\n\r\nshort\r\n--B--"

    assert [body for _, body in parts_of(body)] == [b"longer", b"short"]


@pytest.mark.parametrize("cut", range(1, len(TWO) - len(b"--\r\n")))
def test_a_truncated_body_is_invalid(cut):
    assert failure(TWO[:cut]).category is Category.INVALID


def test_parts_before_a_truncation_are_given_out():
    reader = MultipartReader("B")

    given = reader.feed(TWO[:-12])

    assert [part.body for part in given] == [b"first"]


def test_parts_before_a_failure_in_the_same_block_are_given_out():
    reader = MultipartReader("B", MultipartLimits(parts=1))

    assert [part.body for part in reader.feed(TWO)] == [b"first"]
    with pytest.raises(AppError):
        reader.feed(b"more")
    with pytest.raises(AppError):
        reader.close()


def test_a_body_without_the_announced_boundary_is_invalid():
    assert failure(TWO, boundary="other").category is Category.INVALID


def test_a_header_line_without_a_name_is_invalid_and_not_repeated_in_the_message():
    error = failure(b"--B\r\nDoe^Jane\r\n\r\nx\r\n--B--")

    assert error.category is Category.INVALID
    assert "Doe" not in str(error)


@pytest.mark.parametrize("boundary", ["", "x" * 201, "a\r\nb", "ü"])
def test_an_unusable_boundary_is_invalid(boundary):
    with pytest.raises(AppError) as caught:
        MultipartReader(boundary)

    assert caught.value.category is Category.INVALID


@pytest.mark.parametrize(
    ("limits", "body"),
    [
        (MultipartLimits(parts=1), TWO),
        (MultipartLimits(part_bytes=5), TWO),
        (MultipartLimits(total_bytes=len(TWO) - 1), TWO),
        (MultipartLimits(header_bytes=64), b"--B\r\nA: " + b"x" * 80 + b"\r\n\r\n--B--"),
        (MultipartLimits(), b"x" * 70_000 + b"\r\n" + TWO),
        (MultipartLimits(), b"--B\r\nA: " + b"x" * 20_000),
    ],
    ids=["parts", "part", "total", "headers", "preamble", "endless-headers"],
)
@pytest.mark.parametrize("block", [1000, None])
def test_what_is_beyond_a_limit_is_too_large(limits, body, block):
    assert failure(body, limits=limits, block=block).category is Category.TOO_LARGE


def test_the_limits_themselves_are_allowed():
    limits = MultipartLimits(parts=2, part_bytes=6, total_bytes=len(TWO))

    assert parts_of(TWO, limits=limits) == TWO_PARTS


@pytest.mark.parametrize("block", [1, 100, 5_000, None])
def test_a_large_part_is_mapped_from_a_file_and_a_small_one_is_not(block):
    large, small = bytes(range(256)) * 64, b"x" * 99
    body = b"--B\r\n\r\n" + large + b"\r\n--B\r\n\r\n" + small + b"\r\n--B--"
    chunks = iter([body[i : i + (block or len(body))] for i in range(0, len(body), block or len(body))])

    first, second = iter_parts(lambda _: next(chunks, b""), "B", spool_bytes=1000)

    assert isinstance(first.body, mmap.mmap)
    assert first.body[:] == large
    assert second.body == small


@pytest.mark.parametrize("content", [b"", b"x"])
def test_spooling_from_the_first_byte_works(content):
    assert parts_of(b"--B\r\n\r\n" + content + b"\r\n--B--", spool_bytes=0) == [({}, content)]


@pytest.mark.parametrize("body", [b"", b"x", b"\n" + bytes(3000)])
@pytest.mark.parametrize("spool_bytes", [0, 100, 100_000])
def test_a_body_that_is_no_multipart_is_spooled_alike(body, spool_bytes):
    blocks = iter([body[start : start + 700] for start in range(0, len(body), 700)])

    assert read_body(lambda _: next(blocks, b""), 3001, spool_bytes=spool_bytes)[:] == body


def test_a_body_beyond_its_limit_is_too_large():
    blocks = iter([bytes(50), bytes(51)])

    with pytest.raises(AppError) as caught:
        read_body(lambda _: next(blocks, b""), 100)

    assert caught.value.category is Category.TOO_LARGE


def test_what_is_written_is_read_by_the_mail_parser_of_the_standard_library():
    parts = [({"Content-Type": "application/octet-stream"}, [b"one", b"two\r\n"]), ({"X": "y"}, [])]
    body = b"".join(multipart_related(parts, "b-1"))

    message = email.message_from_bytes(
        b'Content-Type: multipart/related; boundary="b-1"\r\n\r\n' + body, policy=email.policy.HTTP
    )

    assert [part.get_payload(decode=True) for part in message.iter_parts()] == [b"onetwo\r\n", b""]


@pytest.mark.parametrize(
    ("text", "media_type", "parameters"),
    [
        ("application/dicom", "application/dicom", {}),
        (
            'Multipart/Related; type="application/dicom"; boundary="a b"',
            "multipart/related",
            {"type": "application/dicom", "boundary": "a b"},
        ),
        (
            "multipart/related;type=application/dicom;boundary=xyz",
            "multipart/related",
            {"type": "application/dicom", "boundary": "xyz"},
        ),
        (r'a/b; c="x\"y;z,"; D = e ;', "a/b", {"c": 'x"y;z,', "d": "e"}),
        ("a/b; boundary=----=_Part_1.2=", "a/b", {"boundary": "----=_Part_1.2="}),
        ("a/b;;c=1; c=2", "a/b", {"c": "1"}),
    ],
)
def test_content_types_are_read_quoted_or_not(text, media_type, parameters):
    found = parse_content_type(text)

    assert (found.media_type, found.parameters) == (media_type, parameters)


@pytest.mark.parametrize("text", ["", "dicom", "a/b c", 'a/b; c="d', "a/b, c/d", "/x", "a/b" + "; c=d" * 5000])
def test_a_malformed_content_type_is_invalid(text):
    with pytest.raises(AppError) as caught:
        parse_content_type(text)

    assert caught.value.category is Category.INVALID
