"""Printing over TLS, towards printers and from modalities, with DCMTK at the other end and with ourselves."""

import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import trustme

from imaging.dimse.print_pixels import p_values
from imaging.dimse.print_scp import Backing, PrintScp
from imaging.errors import AppError, Category
from imaging.film import Medium, Picture, Sheets, pages
from imaging.printer import Job, Outcome, Printer, Progress, State
from imaging.printers import printers
from imaging.tls import Identity
from tests.conformance.test_print_scp import TITLE, Desk
from tests.support.certificates import identity
from tests.support.film_modality import HAS_DCMTK, NEEDS_DCMTK, DcmtkModality
from tests.support.film_printers import HAS_DCMPRSCP, NEEDS_DCMPRSCP, dcmtk_printer
from tests.support.film_printers import TITLE as PRINTER

pytestmark = [
    pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),  # pynetdicom's sockets
]
SHEETS = Sheets(film_size="8INX10IN", dots_per_inch=72, medium=Medium.CLEAR_FILM)
NOISE = np.random.default_rng(5).random((64, 48)).astype(np.float32)


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory, authority: trustme.CA) -> Path:
    return identity(tmp_path_factory.mktemp("tls") / "ours", authority)


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory, authority: trustme.CA) -> Path:
    """Whose certificate nobody believes, though it believes ours."""
    return identity(tmp_path_factory.mktemp("tls") / "stranger", trustme.CA(), authority)


@contextmanager
def listening(tls: Identity, idle_s: float = 5) -> Iterator[tuple[int, Desk]]:
    desk = Desk()
    backing = Backing(desk.admit, desk.accept, desk.outcome, lambda _: desk.status)
    scp = PrintScp(backing, title=TITLE, address=("127.0.0.1", 0), idle_s=idle_s, tls=tls)
    port = scp.start()
    try:
        yield port, desk
    finally:
        scp.stop()


def asking(folder: Path) -> Identity:
    """A listener that lets in nobody without a certificate that it believes."""
    return Identity(folder / "certificate.pem", folder / "key.pem", folder / "ca.pem")


def printer(port: int, folder: Path, *, title: str = TITLE, shows: bool = True, **more: object) -> Printer:
    shown = {"tls_certificate": str(folder / "certificate.pem"), "tls_key": str(folder / "key.pem")} if shows else {}
    usual = {
        "host": "127.0.0.1", "port": port, "called_ae": title, "dots_per_inch": 72, "film_sizes": ["8INX10IN"],
        "media": ["CLEAR FILM"], "wait_s": 3, "answer_s": 5, "tls": True, "ca_file": str(folder / "ca.pem"),
    }  # fmt: skip
    return printers.get("dicom").build({**usual, **shown, **more})


def sent(to: Printer) -> Outcome:
    job = Job("order-1", SHEETS, [lambda: Picture(NOISE)])
    tickets = [to.reserve(job)]
    to.send(tickets[0], job, keep=tickets.append)
    return to.outcome(tickets[-1])


def page() -> np.ndarray:
    return next(pages(SHEETS, [lambda: Picture(NOISE)])).pixels


@pytest.mark.parametrize("asks", [False, True])
def test_a_page_that_goes_out_comes_in(ours: Path, asks: bool) -> None:
    tls = asking(ours) if asks else Identity(ours / "certificate.pem", ours / "key.pem")
    with listening(tls) as (port, desk):
        assert sent(printer(port, ours, shows=asks)) == Outcome(Progress.DONE, 1)

    (film,) = desk.films()
    np.testing.assert_allclose(p_values(film.images[1], film.lut, film.box), page() / 255, atol=1e-4)


@pytest.mark.skipif(not HAS_DCMPRSCP, reason=NEEDS_DCMPRSCP)
def test_dcmtk_s_printer_prints_what_we_send(tmp_path: Path, ours: Path) -> None:
    with dcmtk_printer(tmp_path / "press", ours) as press:
        outcome = sent(printer(press.port, ours, title=PRINTER))

        assert outcome.progress is Progress.DONE
        (printed,) = press.printed()
    assert (printed == page()).all()


@pytest.mark.skipif(not HAS_DCMTK, reason=NEEDS_DCMTK)
def test_dcmtk_s_modality_prints_on_us(tmp_path: Path, ours: Path) -> None:
    with listening(asking(ours)) as (port, desk):
        modality = DcmtkModality(tmp_path, port, ours)
        films = modality.render(1, "--filmsize", "8INX10IN", "--identity")
        modality.send(films)

    (film,) = desk.films()
    (hardcopy,) = modality.hardcopies(films[0])
    seen = p_values(film.images[1], film.lut, film.box)
    np.testing.assert_allclose(seen, hardcopy.pixel_array / (2**hardcopy.BitsStored - 1), atol=1e-6)


def test_a_printer_whose_certificate_is_not_believed_gets_nothing(ours: Path, stranger: Path) -> None:
    with listening(Identity(stranger / "certificate.pem", stranger / "key.pem")) as (port, desk):
        with pytest.raises(AppError, match="certificate is not believed") as caught:
            sent(printer(port, ours))
        status = printer(port, ours).status()

    assert caught.value.category is Category.FORBIDDEN
    assert (status.state, "not believed" in status.detail) == (State.OFFLINE, True)
    assert desk.films() == []


def test_a_certificate_for_another_name_is_not_believed(tmp_path: Path, ours: Path, authority: trustme.CA) -> None:
    other = identity(tmp_path / "other", authority, names=("printer.example",))

    with (
        listening(Identity(other / "certificate.pem", other / "key.pem")) as (port, _),
        pytest.raises(AppError, match=r"not believed.*127\.0\.0\.1"),
    ):
        sent(printer(port, ours))


@pytest.mark.parametrize("who", ["nobody", "stranger", "plain"])
def test_who_shows_no_certificate_that_is_believed_prints_nothing(ours: Path, stranger: Path, who: str) -> None:
    client = {
        "nobody": lambda port: printer(port, ours, shows=False),
        "stranger": lambda port: printer(port, stranger),
        "plain": lambda port: printer(port, ours, shows=False, tls=False, ca_file=""),
    }[who]
    with listening(asking(ours)) as (port, desk):
        with pytest.raises(AppError) as caught:
            sent(client(port))

        assert caught.value.category in (Category.BUSY, Category.FORBIDDEN)
        assert (desk.admitted, desk.films()) == ([], [])
        assert sent(printer(port, ours)).progress is Progress.DONE


@pytest.mark.skipif(not HAS_DCMTK, reason=NEEDS_DCMTK)
@pytest.mark.parametrize("believed", [True, False])
def test_dcmtk_s_echo_is_answered_where_it_is_believed(ours: Path, stranger: Path, believed: bool) -> None:
    who = ours if believed else stranger
    command = ["echoscu", "+tls", who / "key.pem", who / "certificate.pem", "+cf", ours / "ca.pem", "-aec", TITLE]
    with listening(asking(ours)) as (port, _):
        done = subprocess.run([*command, "127.0.0.1", str(port)], capture_output=True, timeout=60)

    assert (done.returncode == 0) == believed


def test_who_connects_and_is_silent_keeps_nobody_out_and_is_let_go(ours: Path) -> None:
    with (
        listening(asking(ours), idle_s=2) as (port, desk),
        socket.create_connection(("127.0.0.1", port)) as silent,
        socket.create_connection(("127.0.0.1", port)) as garbled,
    ):
        garbled.sendall(b"\x16\x03\x01\x02")  # a hello that never ends

        assert sent(printer(port, ours)).progress is Progress.DONE

        for each in (silent, garbled):
            each.settimeout(15)
            assert each.recv(100) == b""
    assert len(desk.films()) == 1


@pytest.mark.parametrize(
    ("wrong", "where"),
    [
        (lambda at: Identity(at / "certificate.pem", at / "ca.pem"), "tls_certificate"),
        (lambda at: Identity(at / "nowhere.pem"), "tls_certificate"),
        (lambda at: Identity(at / "certificate.pem", at / "nowhere.pem"), "tls_key"),
        (lambda at: Identity(at / "certificate.pem", at / "key.pem", at / "key.pem"), "ca_file"),
    ],
)
def test_files_that_cannot_be_used_are_named(ours: Path, wrong: Callable[[Path], Identity], where: str) -> None:
    with pytest.raises(AppError) as caught, listening(wrong(ours)):
        pass
    assert (caught.value.category, caught.value.where) == (Category.INVALID, where)


def test_certificates_without_tls_are_refused(ours: Path) -> None:
    with pytest.raises(AppError) as caught:
        printer(104, ours, tls=False)
    assert caught.value.where == "tls"
