"""Content negotiation. Expected choices follow from PS3.18 8.7.8 and RFC 9110; Accept lines are those of clients."""

import pytest

from imaging.dicomweb import Choice, Offer, negotiate
from imaging.dicomweb.negotiation import frame_offers, instance_offers
from imaging.errors import AppError, Category

EXPLICIT, RLE, JPEG_LS, JPEG_2000, HTJ2K = (f"1.2.840.10008.1.2.{end}" for end in ("1", "5", "4.80", "4.90", "4.202"))
STUDY = instance_offers([EXPLICIT, JPEG_2000, HTJ2K], single=False)
INSTANCE = instance_offers([EXPLICIT, JPEG_2000, HTJ2K], single=True)
FRAME = frame_offers(frozenset({EXPLICIT, RLE, JPEG_LS, JPEG_2000, HTJ2K}), single=True)
METADATA = (Offer("application/dicom+json"), Offer("application/json"), Offer("application/dicom+xml", multipart=True))
RENDERED = (Offer("image/jpeg"), Offer("image/png"))


@pytest.mark.parametrize(
    ("accept", "offered", "expected"),
    [
        # SMART Imaging Access and OHIF: unquoted type
        ("multipart/related; type=application/dicom; transfer-syntax=*", STUDY, ("application/dicom", "*", True)),
        ('multipart/related; type="application/dicom"', STUDY, ("application/dicom", EXPLICIT, True)),
        (
            f'multipart/related; type="application/dicom"; transfer-syntax={HTJ2K}',
            STUDY,
            ("application/dicom", HTJ2K, True),
        ),
        (
            f'multipart/related;type="application/dicom";transfer-syntax="{HTJ2K}"',
            STUDY,
            ("application/dicom", HTJ2K, True),
        ),
        ("*/*", STUDY, ("application/dicom", EXPLICIT, True)),
        ("multipart/related", STUDY, ("application/dicom", EXPLICIT, True)),
        ("multipart/*", STUDY, ("application/dicom", EXPLICIT, True)),
        ("application/dicom", INSTANCE, ("application/dicom", EXPLICIT, False)),
        ("application/*", INSTANCE, ("application/dicom", EXPLICIT, False)),
        ("APPLICATION/DICOM; Transfer-Syntax=*", INSTANCE, ("application/dicom", "*", False)),
        (
            "multipart/related; type=application/octet-stream; transfer-syntax=*",
            FRAME,
            ("application/octet-stream", "*", True),
        ),
        ("application/octet-stream", FRAME, ("application/octet-stream", EXPLICIT, False)),
        (
            f"multipart/related; type=application/octet-stream; transfer-syntax={HTJ2K}",
            FRAME,
            ("application/octet-stream", HTJ2K, True),
        ),
        ('multipart/related; type="image/jphc"', FRAME, ("image/jphc", HTJ2K, True)),
        ("image/jp2", FRAME, ("image/jp2", JPEG_2000, False)),
        ('multipart/related; type="image/*"; transfer-syntax=' + JPEG_LS, FRAME, ("image/jls", JPEG_LS, True)),
        ("application/json", METADATA, ("application/json", None, False)),
        ('multipart/related; type="application/dicom+xml"', METADATA, ("application/dicom+xml", None, True)),
        # a browser
        (
            "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8",
            RENDERED,
            ("image/jpeg", None, False),
        ),
        ("image/avif,image/webp,image/png,image/svg+xml,image/*;q=0.8", RENDERED, ("image/png", None, False)),
    ],
)
def test_what_real_clients_accept_is_found(accept, offered, expected):
    assert negotiate([accept], None, offered) == Choice(*expected)


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        ("image/jpeg;q=0.4, image/png;q=0.5", "image/png"),
        ("image/png, image/jpeg", "image/png"),
        ("*/*, image/png", "image/png"),
        ("image/gif, image/*;q=0.1", "image/jpeg"),
        ("image/*, image/jpeg;q=0", "image/png"),
        ("image/png;q=0.000, */*;q=0.001", "image/jpeg"),
    ],
)
def test_quality_then_specificity_then_order_decide(accept, expected):
    assert negotiate([accept], None, RENDERED).media_type == expected


def test_several_accept_headers_are_one_list():
    headers = ["image/gif", "image/png;q=0.2", "image/jpeg;q=0.1"]

    assert negotiate(headers, None, RENDERED).media_type == "image/png"


def test_the_first_transfer_syntax_that_is_available_wins():
    accept = ", ".join(
        f'multipart/related; type="application/dicom"; transfer-syntax={uid}' for uid in ("1.2.3", JPEG_2000, EXPLICIT)
    )

    assert negotiate([accept], None, STUDY).transfer_syntax == JPEG_2000


@pytest.mark.parametrize("accept", [[], [""], ["  "]])
def test_who_says_nothing_gets_the_default(accept):
    assert negotiate(accept, None, FRAME) == Choice("application/octet-stream", EXPLICIT, True)


def test_the_query_parameter_goes_before_the_header():
    assert negotiate(["image/jpeg"], "image/png", RENDERED).media_type == "image/png"


def test_an_unsupported_query_parameter_leaves_the_choice_to_the_header():
    assert negotiate(["image/png"], "image/gif", RENDERED).media_type == "image/png"


def test_an_unsupported_query_parameter_alone_is_not_acceptable():
    with pytest.raises(AppError) as caught:
        negotiate([], "image/gif", RENDERED)

    assert caught.value.category is Category.UNSUPPORTED


def test_an_unescaped_plus_in_the_query_parameter_is_understood():
    assert negotiate(["*/*"], "application/dicom json", METADATA).media_type == "application/dicom+json"


@pytest.mark.parametrize(
    ("accept", "offered"),
    [
        ("application/dicom", STUDY),  # PS3.18 10.4.4: single part is for individual instances
        ("multipart/related; type=application/dicom; transfer-syntax=1.2.840.10008.1.2.4.50", STUDY),
        ("text/html", RENDERED),
        ("multipart/related; type=image/jpeg", RENDERED),
        ("image/jpeg;q=0", RENDERED),
        ("*/*;q=0", RENDERED),
    ],
)
def test_what_is_not_available_is_refused_with_what_is(accept, offered):
    with pytest.raises(AppError) as caught:
        negotiate([accept], None, offered)

    assert caught.value.category is Category.UNSUPPORTED
    assert caught.value.where == "Accept"
    assert all(str(offer) in caught.value.message for offer in offered)


@pytest.mark.parametrize("accept", ["image", "image/png;q=2", "image/png;q=x", "a/b," * 100, "image/png;q=nan"])
def test_a_malformed_accept_is_invalid(accept):
    with pytest.raises(AppError) as caught:
        negotiate([accept], None, RENDERED)

    assert caught.value.category is Category.INVALID


def test_frames_are_not_offered_in_single_part_when_several_are_asked():
    assert all(offer.multipart for offer in frame_offers(frozenset({EXPLICIT, HTJ2K}), single=False))


def test_the_response_names_type_transfer_syntax_and_boundary():
    assert Choice("application/dicom", "*", True).content_type("b") == (
        'multipart/related; type="application/dicom"; boundary="b"'
    )
    assert Choice("image/jp2", JPEG_2000).content_type("b") == f"image/jp2; transfer-syntax={JPEG_2000}"
