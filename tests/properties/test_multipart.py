"""Laws of multipart bodies: what is written comes back, however the bytes are cut on their way."""

from hypothesis import given
from hypothesis import strategies as st

from imaging.dicomweb import MultipartReader, multipart_related
from imaging.errors import AppError

BOUNDARY = "b7f1-boundary"
# Pieces that look like delimiters, cut short or in the wrong place, are what a reader stumbles over.
PIECES = st.sampled_from(
    [b"\r\n", b"\n", b"\r", b"--", b"--b7f1", b"\r\n--b7f1-boundar", b"\r\n--b7f1-boundaryX", b"-"]
)
BODIES = st.lists(st.binary(max_size=30) | PIECES, max_size=12).map(b"".join)
NAMES = st.from_regex(r"[a-z][a-z-]{0,10}", fullmatch=True)
HEADERS = st.dictionaries(NAMES, st.from_regex(r"([!-~]([ -~]{0,20}[!-~])?)?", fullmatch=True), max_size=4)


def is_possible(body: bytes) -> bool:
    """RFC 2046: the delimiter must not appear in what it delimits."""
    return b"--b7f1-boundary" not in body.replace(b"--b7f1-boundaryX", b"")


@given(st.lists(st.tuples(HEADERS, BODIES.filter(is_possible)), max_size=5), st.data())
def test_written_parts_come_back_whatever_the_chunking(parts, data):
    stream = b"".join(multipart_related(((headers, [body]) for headers, body in parts), BOUNDARY))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=20)))
    spool_bytes = data.draw(st.sampled_from([0, 10, 1_000_000]))

    reader = MultipartReader(BOUNDARY, spool_bytes=spool_bytes)
    read = [
        (dict(part.headers), part.body[:])
        for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True)
        for part in reader.feed(stream[start:end])
    ]
    reader.close()

    assert read == parts


@given(BODIES, st.data())
def test_the_cutting_of_any_input_changes_nothing(body, data):
    stream = b"--" + BOUNDARY.encode() + b"\r\n\r\n" + body
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=20)))

    assert outcome([stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)]) == outcome([stream])


@given(st.binary(max_size=3000), st.integers(4_097, 9_000), st.integers(0, 60))
def test_long_blocks_are_joined_without_a_seam(filler, size, shift):
    body = (filler + b"\r\n--b7f1-boundar") * (1 + 40_000 // (len(filler) + 17))
    if not is_possible(body):
        return
    stream = b"x" * shift + b"\r\n" + b"".join(multipart_related([({}, [body]), ({}, [b"end"])], BOUNDARY))

    read = outcome([stream[start : start + size] for start in range(0, len(stream), size)])

    assert read == ([body, b"end"], None)


def outcome(blocks):
    reader = MultipartReader(BOUNDARY)
    bodies = [part.body for block in blocks for part in reader.feed(block)]
    try:
        reader.close()
    except AppError as error:
        return bodies, str(error)
    return bodies, None
