"""What modalities print through us becomes stored images and orders, with the rights of whom they print for."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import Dataset

from fhir_server.access.contracts import Right
from fhir_server.film_desk import FilmDesk
from fhir_server.model.task import name_of
from fhir_server.work.kinds import handlers
from imaging.dimse.print_scp import Modality
from imaging.dimse.print_session import Film
from imaging.errors import AppError, Category
from imaging.printer import Progress, State
from tests.api.test_hard_copy import done
from tests.support.doors import Doors

CT = Modality("CT1", "FHIRPRINT", "10.0.0.7")
RIGHTS = (Right.ORDER_HARD_COPY, Right.REGISTER_IMAGES)


@pytest.fixture
def desk(doors: Doors, tmp_path: Path) -> FilmDesk:
    doors.server.principals.add("clinic", RIGHTS)
    doors.server.printers.add("film", "folder", {"folder": str(tmp_path), "dots_per_inch": 100})
    doors.server.printers.add_modality("CT1", "clinic", "film")
    return FilmDesk(doors.server)


def image(grey: int, *, bits: int = 8, side: int = 16, **more: Any) -> Dataset:
    """An image box with one grey, as a modality sets it."""
    item, box = Dataset(), Dataset()
    item.Rows = item.Columns = side
    item.SamplesPerPixel, item.PhotometricInterpretation, item.PixelRepresentation = 1, "MONOCHROME2", 0
    item.BitsAllocated, item.BitsStored = 8 if bits == 8 else 16, bits
    item.PixelData = np.full((side, side), grey, "u1" if bits == 8 else "<u2").tobytes()
    box.BasicGrayscaleImageSequence = [item]
    for keyword, content in more.items():
        setattr(box, keyword, content)
    return box


def film(images: dict[int, Dataset], **more: Any) -> Film:
    session, box = Dataset(), Dataset()
    session.NumberOfCopies, session.PrintPriority, session.MediumType = 1, "MED", "BLUE FILM"
    box.ImageDisplayFormat, box.FilmOrientation, box.FilmSizeID = "STANDARD\\1,3", "PORTRAIT", "8INX10IN"
    box["ImageDisplayFormat"].VR = "ST"
    box.MagnificationType, box.BorderDensity, box.EmptyImageDensity, box.Trim = "REPLICATE", "BLACK", "BLACK", "NO"
    for keyword, content in more.items():
        setattr(session if keyword == "FilmSessionLabel" else box, keyword, content)
    return Film("1.2.3", session, box, images, {1: "General Hospital"}, None, 3, False)


def tasks(doors: Doors) -> list[dict[str, Any]]:
    caller = doors.caller(Right.RECEIVE_IMAGES, name="reader")
    return [each["resource"] for each in caller.get("/fhir/Task?_sort=authored-on").json.get("entry", [])]


def given(task: dict[str, Any], name: str) -> list[Any]:
    found = [each for each in task["input"] if name_of(each) == name]
    return [next(content for key, content in each.items() if key.startswith("value")) for each in found]


def stored_greys(doors: Doors, task: dict[str, Any]) -> list[int]:
    """The value of each image of an order, in its order."""
    archive = doors.server.archive
    found = [archive.chosen(instances=[uid], limit=1)[0] for uid in given(task, "instance")]
    return [int(archive.pixels(each, 1).pixels[0, 0]) for each in found]


def test_films_become_images_and_released_orders_of_one_job(doors: Doors, desk: FilmDesk) -> None:
    uid = desk.accept(CT, [film({1: image(10), 2: image(20)}, FilmSessionLabel="ward 3"), film({1: image(30)})])

    first, second = sorted(tasks(doors), key=lambda each: -len(given(each, "instance")))
    assert [stored_greys(doors, each) for each in (first, second)] == [[10, 20], [30]]
    assert {each["status"] for each in (first, second)} == {"requested"}
    assert {each["groupIdentifier"]["value"] for each in (first, second)} == {f"urn:oid:{uid}"}
    assert given(first, "banner") == ["ward 3", "General Hospital"]
    assert given(first, "layout") == ["STANDARD\\1,3"]
    assert desk.outcome(CT, uid).progress is Progress.PRINTING
    for each in (first, second):
        done(doors, each)
    assert (desk.outcome(CT, uid).progress, desk.outcome(CT, uid).pages) == (Progress.DONE, 2)
    doors.server.usage.write()
    (used,) = doors.server.usage.between(doors.clock().date(), doors.clock().date(), by_contract=True)
    assert used.contract.startswith("Contract/")
    counted = ("tasks", "instances-in", "pages", "requests")
    assert [used.counts[name] for name in counted] == [2, 3, 2, 0]
    assert used.counts["bytes-in"] > 0


def test_what_is_new_of_a_job_is_told_once(doors: Doors, desk: FilmDesk) -> None:
    uid = desk.accept(CT, [film({1: image(10)})])

    first, second = desk.news(), desk.news()
    done(doors, tasks(doors)[0])
    third, fourth = desk.news(), desk.news()

    assert [(job, outcome.progress) for job, outcome in first + third] == [
        (uid, Progress.PRINTING), (uid, Progress.DONE),
    ]  # fmt: skip
    assert (second, fourth) == ([], [])


def test_an_empty_box_before_the_last_image_stays_empty(doors: Doors, desk: FilmDesk) -> None:
    desk.accept(CT, [film({1: image(10), 3: image(30)})])

    assert stored_greys(doors, tasks(doors)[0]) == [10, 0, 30]


def test_polarity_is_applied_and_twelve_bits_are_kept(doors: Doors, desk: FilmDesk) -> None:
    desk.accept(CT, [film({1: image(1000, bits=12, Polarity="REVERSE")})])

    assert stored_greys(doors, tasks(doors)[0]) == [4095 - 1000]


def test_a_requested_size_is_printed_true(doors: Doors, desk: FilmDesk, tmp_path: Path) -> None:
    desk.accept(CT, [film({1: image(10, RequestedImageSize="32")}, MinDensity=20, MaxDensity=300)])

    (task,) = tasks(doors)
    assert given(task, "fit") == ["true-size"]
    assert [float(each) for each in (*given(task, "density-min"), *given(task, "density-max"))] == [0.2, 3.0]
    caller = doors.caller(Right.RECEIVE_IMAGES, name="reader")
    (found,) = caller.get("/dicom-web/instances?includefield=00280030").json
    assert found["00080018"]["Value"] == given(task, "instance")
    assert done(doors, task)["status"] == "completed"


@pytest.mark.parametrize(
    ("films", "category"),
    [
        ([film({1: image(1, RequestedImageSize="32"), 2: image(2)})], Category.UNSUPPORTED),
        ([film({1: image(1)}, ImageDisplayFormat="STANDARD\\0,1")], Category.INVALID),
        ([], Category.INVALID),
    ],
)
def test_what_cannot_be_ordered_is_refused_and_nothing_is_released(
    doors: Doors, desk: FilmDesk, films: list[Film], category: Category
) -> None:
    with pytest.raises(AppError) as caught:
        desk.accept(CT, films)

    assert caught.value.category is category
    assert [each for each in tasks(doors) if each["status"] != "draft"] == []


def test_a_modality_needs_to_be_registered_and_to_come_from_its_address(doors: Doors, desk: FilmDesk) -> None:
    doors.server.printers.add_modality("MR1", "clinic", "film", address="10.0.0.8")

    desk.admit(CT)
    desk.admit(Modality("MR1", "FHIRPRINT", "10.0.0.8"))
    for stranger in (Modality("XX", "FHIRPRINT", "10.0.0.7"), Modality("MR1", "FHIRPRINT", "10.0.0.7")):
        with pytest.raises(AppError) as caught:
            desk.admit(stranger)
        assert caught.value.category is Category.FORBIDDEN


@pytest.mark.parametrize("right", RIGHTS)
def test_the_contract_of_its_subscriber_has_to_allow_both(doors: Doors, desk: FilmDesk, right: Right) -> None:
    doors.server.principals.add("clinic", [right])

    with pytest.raises(AppError) as caught:
        desk.accept(CT, [film({1: image(10)})])

    assert caught.value.category is Category.FORBIDDEN


def test_jobs_of_others_are_not_told(doors: Doors, desk: FilmDesk) -> None:
    uid = desk.accept(CT, [film({1: image(10)})])
    doors.server.principals.add("other", RIGHTS)
    doors.server.printers.add_modality("XA1", "other", "film")

    with pytest.raises(AppError) as caught:
        desk.outcome(Modality("XA1", "FHIRPRINT", "10.0.0.9"), uid)

    assert caught.value.category is Category.NOT_FOUND


def test_the_printer_is_as_its_device_says(doors: Doors, desk: FilmDesk) -> None:
    assert desk.status(CT).state is State.NORMAL
    doors.server.printers.suspend("film")
    assert desk.status(CT).state is State.FAILURE
    assert "hard-copy" in handlers
