"""The rules of print management, by their statuses; and what the pixels of an image box mean."""

from typing import Any

import numpy as np
import pytest
from pydicom import config
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid

from imaging.dimse import print_session
from imaging.dimse import print_terms as terms
from imaging.dimse.print_pixels import p_values
from imaging.dimse.print_requests import Lut, Scaling, image_box, presentation_lut
from imaging.dimse.print_session import Film, PrintSession, Services
from imaging.errors import AppError, Category
from imaging.film import gsdf
from imaging.printer import Outcome, Progress, State, Status

SESSION, BOX, JOB, LUT = "2.25.1", "2.25.2", "2.25.9", "2.25.4"
ABSENT = "2.25.999"


def ds(**values: Any) -> Dataset:
    made = Dataset()
    for keyword, value in values.items():
        setattr(made, keyword, value)
    return made


def image(position: int = 1, bits: int = 8, **more: Any) -> Dataset:
    samples = np.arange(12, dtype=np.uint8 if bits == 8 else np.uint16).reshape(3, 4)
    made = image_box(position, samples, bits, Scaling(), is_reversed=False, smoothing="")
    for keyword, value in more.items():
        setattr(made.BasicGrayscaleImageSequence[0], keyword, value)
    return made


class Desk:
    """What stands behind the session under test."""

    def __init__(self) -> None:
        self.films: list[Film] = []
        self.error: AppError | None = None
        self.outcome: Outcome | None = Outcome(Progress.PRINTING)
        self.status = Status(State.WARNING, ("SUPPLY LOW",))
        self.session = PrintSession(
            Services(accept=self.accept, outcome=self.outcome_of, status=lambda: self.status), printer_name="P"
        )

    def accept(self, films: Any) -> str:
        if self.error:
            raise self.error
        self.films.extend(films)
        return JOB

    def outcome_of(self, uid: str) -> Outcome:
        if uid != JOB or self.outcome is None:
            raise AppError(Category.NOT_FOUND, "no such job")
        return self.outcome

    def create(self, class_uid: str, uid: str, values: Dataset | None = None, colour: bool = False) -> Any:
        return self.session.create(class_uid, uid, values or Dataset(), is_colour=colour)

    def box(self, uid: str = BOX, display_format: str = "STANDARD\\1,2", **more: Any) -> Any:
        return self.create(terms.FILM_BOX, uid, ds(ImageDisplayFormat=display_format, **more))

    def image_uids(self, **more: Any) -> list[str]:
        self.create(terms.FILM_SESSION, SESSION)
        _, answer = self.box(**more)
        return [each.ReferencedSOPInstanceUID for each in answer.ReferencedImageBoxSequence]


@pytest.fixture
def desk() -> Desk:
    return Desk()


class TestFilmSessions:
    def test_defaults_are_filled_in_and_answered(self, desk: Desk) -> None:
        status, answer = desk.create(terms.FILM_SESSION, SESSION, ds(NumberOfCopies="3", FilmSessionLabel="L"))

        assert status == 0x0000
        assert (answer.NumberOfCopies, answer.PrintPriority, answer.MediumType) == (3, "MED", "BLUE FILM")
        assert answer.FilmSessionLabel == "L"

    @pytest.mark.parametrize(
        ("values", "status"),
        [
            ({"NumberOfCopies": "1000"}, 0x0116), ({"MediumType": "GLASS"}, 0x0116),
            ({"PrintPriority": "NOW"}, 0x0106), ({"MemoryAllocation": "10"}, 0xB600), ({"PatientName": "X"}, 0x0107),
            ({"FilmDestination": "BIN_1"}, 0x0000), ({"FilmSessionLabel": "x" * 2000}, 0x0106),
        ],
    )  # fmt: skip
    def test_values_have_their_statuses(self, desk: Desk, values: dict[str, Any], status: int) -> None:
        made = Dataset()
        for keyword, value in values.items():
            with config.disable_value_validation():
                setattr(made, keyword, value)

        assert desk.create(terms.FILM_SESSION, SESSION, made)[0] == status

    def test_there_is_one_at_a_time(self, desk: Desk) -> None:
        desk.create(terms.FILM_SESSION, SESSION)

        assert desk.create(terms.FILM_SESSION, "2.25.7")[0] == 0x0213
        assert desk.create(terms.FILM_SESSION, SESSION)[0] == 0x0111
        assert desk.session.delete(terms.FILM_SESSION, SESSION) == 0x0000
        assert desk.create(terms.FILM_SESSION, "2.25.7")[0] == 0x0000

    def test_what_is_set_later_is_printed_so(self, desk: Desk) -> None:
        uids = desk.image_uids()
        desk.session.set(terms.GREY_IMAGE_BOX, uids[0], image())

        assert desk.session.set(terms.FILM_SESSION, SESSION, ds(NumberOfCopies="2"))[0] == 0x0000
        desk.session.action(terms.FILM_BOX, BOX, 1)

        assert desk.films[0].session.NumberOfCopies == 2
        assert desk.films[0].session.PrintPriority == "MED"

    def test_printing_it_prints_the_film_boxes_that_hold_images(self, desk: Desk) -> None:
        uids = desk.image_uids()
        desk.box("2.25.20")
        desk.session.set(terms.GREY_IMAGE_BOX, uids[1], image(2))

        status, answer = desk.session.action(terms.FILM_SESSION, SESSION, 1)

        assert status == 0x0000
        assert answer.ReferencedPrintJobSequence[0].ReferencedSOPInstanceUID == JOB
        assert [(film.uid, list(film.images), film.count) for film in desk.films] == [(BOX, [2], 2)]

    def test_an_empty_one_is_not_printed(self, desk: Desk) -> None:
        desk.create(terms.FILM_SESSION, SESSION)

        assert desk.session.action(terms.FILM_SESSION, SESSION, 1)[0] == 0xC600
        desk.box()
        assert desk.session.action(terms.FILM_SESSION, SESSION, 1)[0] == 0xB602
        assert desk.films == []

    def test_deleting_it_deletes_what_is_below(self, desk: Desk) -> None:
        uids = desk.image_uids()

        desk.session.delete(terms.FILM_SESSION, SESSION)

        assert desk.session.set(terms.GREY_IMAGE_BOX, uids[0], image())[0] == 0x0112
        assert desk.session.action(terms.FILM_BOX, BOX, 1)[0] == 0x0112


class TestFilmBoxes:
    @pytest.mark.parametrize(
        ("display_format", "count"),
        [("STANDARD\\1,1", 1), ("STANDARD\\4,5", 20), ("ROW\\2,3", 5), ("COL\\1,2,3", 6), ("SLIDE", 361)],
    )
    def test_it_has_the_image_boxes_of_its_format(self, desk: Desk, display_format: str, count: int) -> None:
        assert len(set(desk.image_uids(display_format=display_format))) == count

    @pytest.mark.parametrize(
        ("values", "status"),
        [
            ({"ImageDisplayFormat": "STANDARD\\0,1"}, 0x0106), ({"ImageDisplayFormat": "CUSTOM\\1"}, 0x0106),
            ({"ImageDisplayFormat": "STANDARD\\99,99"}, 0x0106), ({"ImageDisplayFormat": ""}, 0x0121), ({}, 0x0120),
            ({"ImageDisplayFormat": "STANDARD\\1,1", "FilmSizeID": "1MX1M"}, 0x0116),
            ({"ImageDisplayFormat": "STANDARD\\1,1", "FilmOrientation": "DIAGONAL"}, 0x0106),
            ({"ImageDisplayFormat": "STANDARD\\1,1", "MaxDensity": 900}, 0x0116),
            ({"ImageDisplayFormat": "STANDARD\\1,1", "MagnificationType": "SPLINE"}, 0x0116),
            ({"ImageDisplayFormat": "STANDARD\\1,1", "Trim": "YES"}, 0x0000),
        ],
    )  # fmt: skip
    def test_values_have_their_statuses(self, desk: Desk, values: dict[str, Any], status: int) -> None:
        desk.create(terms.FILM_SESSION, SESSION)

        assert desk.create(terms.FILM_BOX, BOX, ds(**values))[0] == status

    def test_it_needs_its_film_session_and_presentation_lut(self, desk: Desk) -> None:
        reference = ds(ReferencedSOPClassUID=terms.FILM_SESSION, ReferencedSOPInstanceUID=ABSENT)

        assert desk.box()[0] == 0x0112
        desk.create(terms.FILM_SESSION, SESSION)
        assert desk.box(ReferencedFilmSessionSequence=[reference])[0] == 0x0106
        assert desk.box(ReferencedPresentationLUTSequence=[reference])[0] == 0x0106
        assert desk.box()[0] == 0x0000
        assert desk.box()[0] == 0x0111
        assert desk.box("not-a-uid")[0] == 0x0117

    def test_there_are_no_more_than_a_session_may_have(self, desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(print_session, "MOST_FILM_BOXES", 2)
        desk.create(terms.FILM_SESSION, SESSION)

        assert [desk.box(f"2.25.{n}")[0] for n in (20, 21, 22)] == [0, 0, 0x0213]

    def test_it_can_be_changed_but_not_its_format(self, desk: Desk) -> None:
        uids = desk.image_uids()
        desk.session.set(terms.GREY_IMAGE_BOX, uids[0], image())

        assert desk.session.set(terms.FILM_BOX, BOX, ds(Trim="YES", ImageDisplayFormat="STANDARD\\1,1"))[0] == 0x0107
        desk.session.action(terms.FILM_BOX, BOX, 1)

        assert (desk.films[0].box.Trim, desk.films[0].box.ImageDisplayFormat) == ("YES", "STANDARD\\1,2")

    def test_an_empty_one_is_not_printed_and_one_can_be_printed_again(self, desk: Desk) -> None:
        uids = desk.image_uids()

        assert desk.session.action(terms.FILM_BOX, BOX, 1)[0] == 0xB603
        desk.session.set(terms.GREY_IMAGE_BOX, uids[0], image())
        assert [desk.session.action(terms.FILM_BOX, BOX, 1)[0] for _ in range(2)] == [0, 0]
        assert len(desk.films) == 2

    @pytest.mark.parametrize(
        ("category", "for_box", "for_session"),
        [
            (Category.BUSY, 0xC602, 0xC601), (Category.TOO_LARGE, 0xC605, 0xC605), (Category.FORBIDDEN, 0x0124, 0x0124),
            (Category.UNSUPPORTED, 0x0106, 0x0106), (Category.FAULT, 0x0110, 0x0110),
        ],
    )  # fmt: skip
    def test_what_is_not_accepted_is_a_failure(
        self, desk: Desk, category: Category, for_box: int, for_session: int
    ) -> None:
        uids = desk.image_uids()
        desk.session.set(terms.GREY_IMAGE_BOX, uids[0], image())
        desk.error = AppError(category, "no")

        assert desk.session.action(terms.FILM_BOX, BOX, 1)[0] == for_box
        assert desk.session.action(terms.FILM_SESSION, SESSION, 1)[0] == for_session


class TestImageBoxes:
    @pytest.mark.parametrize(
        ("change", "status"),
        [
            ({}, 0x0000), ({"Rows": 0}, 0x0106), ({"Rows": 30_000}, 0x0106), ({"Rows": 4}, 0x0106),
            ({"SamplesPerPixel": 3}, 0x0106), ({"PhotometricInterpretation": "RGB"}, 0x0106),
            ({"PhotometricInterpretation": "MONOCHROME1"}, 0x0000), ({"BitsStored": 12}, 0x0106),
            ({"PixelRepresentation": 1}, 0x0106), ({"BitsAllocated": 32}, 0x0106), ({"PixelData": bytes(10)}, 0x0106),
            ({"PixelData": bytes(14)}, 0x0106), ({"Columns": None}, 0x0121),
        ],
    )  # fmt: skip
    def test_images_have_their_statuses(self, desk: Desk, change: dict[str, Any], status: int) -> None:
        uids = desk.image_uids()

        assert desk.session.set(terms.GREY_IMAGE_BOX, uids[0], image(**change))[0] == status
        assert len(desk.films) == 0

    @pytest.mark.parametrize(
        ("values", "status"),
        [
            ({"ImageBoxPosition": 2}, 0x0106), ({"Polarity": "UPSIDE"}, 0x0106), ({"Polarity": "REVERSE"}, 0x0000),
            ({"RequestedDecimateCropBehavior": "TEAR"}, 0x0106), ({"RequestedImageSize": "120.5"}, 0x0000),
            ({"RequestedImageSize": "99999"}, 0x0116), ({"BasicGrayscaleImageSequence": []}, 0x0000),
        ],
    )  # fmt: skip
    def test_values_have_their_statuses(self, desk: Desk, values: dict[str, Any], status: int) -> None:
        uids = desk.image_uids()
        changed = image()
        for keyword, value in values.items():
            setattr(changed, keyword, value)

        assert desk.session.set(terms.GREY_IMAGE_BOX, uids[0], changed)[0] == status

    def test_without_an_image_it_is_refused_and_an_empty_sequence_takes_it_out(self, desk: Desk) -> None:
        uids = desk.image_uids()
        desk.session.set(terms.GREY_IMAGE_BOX, uids[0], image())

        assert desk.session.set(terms.GREY_IMAGE_BOX, uids[0], ds(ImageBoxPosition=1))[0] == 0x0120
        desk.session.set(terms.GREY_IMAGE_BOX, uids[0], ds(ImageBoxPosition=1, BasicGrayscaleImageSequence=[]))
        assert desk.session.action(terms.FILM_BOX, BOX, 1)[0] == 0xB603

    def test_pixels_of_an_association_are_bounded(self, desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(print_session, "MOST_BYTES", 23)
        uids = desk.image_uids()

        statuses = [desk.session.set(terms.GREY_IMAGE_BOX, uids[n], image(n + 1))[0] for n in (0, 1, 0)]

        assert statuses == [0, 0xC605, 0]

    def test_classes_are_not_mixed_up(self, desk: Desk) -> None:
        uids = desk.image_uids()

        assert desk.session.set(terms.COLOUR_IMAGE_BOX, uids[0], image())[0] == 0x0119
        assert desk.session.set(terms.FILM_BOX, uids[0], ds(Trim="YES"))[0] == 0x0119
        assert desk.session.delete(terms.FILM_BOX, SESSION) == 0x0119
        assert desk.session.action(terms.FILM_BOX, ABSENT, 1)[0] == 0x0112
        assert desk.session.action(terms.FILM_BOX, BOX, 2)[0] == 0x0123
        assert desk.session.action(terms.GREY_IMAGE_BOX, uids[0], 1)[0] == 0x0211
        assert desk.session.delete(terms.GREY_IMAGE_BOX, uids[0]) == 0x0211
        assert desk.session.set("1.2.840.10008.5.1.4.1.1.2", uids[0], image())[0] == 0x0118
        assert desk.create(terms.PRINTER, ABSENT)[0] == 0x0211

    def test_annotations_go_with_their_film(self, desk: Desk) -> None:
        desk.create(terms.FILM_SESSION, SESSION)
        _, answer = desk.box(AnnotationDisplayFormatID="BOTTOM")
        (first, *_) = [each.ReferencedSOPInstanceUID for each in answer.ReferencedBasicAnnotationBoxSequence]
        images = [each.ReferencedSOPInstanceUID for each in answer.ReferencedImageBoxSequence]

        assert desk.session.set(terms.ANNOTATION_BOX, first, ds(AnnotationPosition=1, TextString="Töxt"))[0] == 0
        desk.session.set(terms.GREY_IMAGE_BOX, images[0], image())
        desk.session.action(terms.FILM_BOX, BOX, 1)

        assert desk.films[0].annotations == {1: "Töxt"}


class TestPresentationLuts:
    @pytest.mark.parametrize(
        ("values", "status"),
        [
            ({"PresentationLUTShape": "IDENTITY"}, 0), ({"PresentationLUTShape": "LIN OD"}, 0), ({}, 0x0120),
            ({"PresentationLUTShape": "SQUARE"}, 0x0106),
        ],
    )  # fmt: skip
    def test_shapes_have_their_statuses(self, desk: Desk, values: dict[str, str], status: int) -> None:
        assert desk.create(terms.PRESENTATION_LUT, LUT, ds(**values))[0] == status

    @pytest.mark.parametrize(
        ("descriptor", "bytes_of_data", "status"),
        [
            ([256, 0, 16], 512, 0), ([4096, 0, 12], 8192, 0), ([256, 0, 8], 512, 0x0106), ([300, 0, 12], 600, 0x0106),
            ([256, 1, 12], 512, 0x0106), ([256, 0, 12], 500, 0x0106),
        ],
    )  # fmt: skip
    def test_tables_have_their_statuses(
        self, desk: Desk, descriptor: list[int], bytes_of_data: int, status: int
    ) -> None:
        item = presentation_lut(Lut.TABLE, 8).PresentationLUTSequence[0]
        item.LUTDescriptor, item.LUTData = descriptor, bytes(bytes_of_data)

        assert desk.create(terms.PRESENTATION_LUT, LUT, ds(PresentationLUTSequence=[item]))[0] == status

    def test_it_goes_with_the_film_that_refers_to_it_until_it_is_deleted(self, desk: Desk) -> None:
        desk.create(terms.PRESENTATION_LUT, LUT, ds(PresentationLUTShape="IDENTITY"))
        reference = ds(ReferencedSOPClassUID=terms.PRESENTATION_LUT, ReferencedSOPInstanceUID=LUT)
        uids = desk.image_uids(ReferencedPresentationLUTSequence=[reference])
        desk.session.set(terms.GREY_IMAGE_BOX, uids[0], image())

        desk.session.action(terms.FILM_BOX, BOX, 1)
        assert desk.session.delete(terms.PRESENTATION_LUT, LUT) == 0
        desk.session.action(terms.FILM_BOX, BOX, 1)

        assert desk.films[0].lut.PresentationLUTShape == "IDENTITY"
        assert desk.films[1].lut is None


class TestPrinterAndJobs:
    def test_the_printer_is_described(self, desk: Desk) -> None:
        status, answer = desk.session.get(terms.PRINTER, terms.PRINTER_INSTANCE, [])

        assert status == 0x0000
        assert (answer.PrinterStatus, answer.PrinterStatusInfo, answer.PrinterName) == ("WARNING", "SUPPLY LOW", "P")

    def test_what_is_asked_for_is_answered_and_what_is_unknown_warned_of(self, desk: Desk) -> None:
        status, answer = desk.session.get(
            terms.PRINTER, terms.PRINTER_INSTANCE, ["PrinterStatus", "DeviceSerialNumber"]
        )

        assert status == 0x0107
        assert [element.keyword for element in answer] == ["PrinterStatus"]
        assert desk.session.get(terms.PRINTER, ABSENT, [])[0] == 0x0112

    @pytest.mark.parametrize(
        ("status", "said", "info"),
        [
            (Status(State.NORMAL), "NORMAL", "NORMAL"), (Status(State.OFFLINE), "FAILURE", "PRINTER OFFLINE"),
            (Status(State.FAILURE, ("FILM JAM",)), "FAILURE", "FILM JAM"),
            (Status(State.FAILURE), "FAILURE", "UNKNOWN"),
        ],
    )  # fmt: skip
    def test_states_are_those_of_the_standard(self, desk: Desk, status: Status, said: str, info: str) -> None:
        desk.status = status

        _, answer = desk.session.get(terms.PRINTER, terms.PRINTER_INSTANCE, [])

        assert (answer.PrinterStatus, answer.PrinterStatusInfo) == (said, info)

    @pytest.mark.parametrize(
        ("outcome", "said", "info"),
        [
            (Outcome(Progress.PENDING), "PENDING", "QUEUED"), (Outcome(Progress.PRINTING), "PRINTING", "NORMAL"),
            (Outcome(Progress.DONE, 1), "DONE", "NORMAL"), (Outcome(Progress.FAILED), "FAILURE", "UNKNOWN"),
            (Outcome(Progress.FAILED, reasons=("FILM JAM",)), "FAILURE", "FILM JAM"),
            (Outcome(Progress.UNKNOWN), "FAILURE", "UNKNOWN"),
        ],
    )  # fmt: skip
    def test_print_jobs_say_where_they_are(self, desk: Desk, outcome: Outcome, said: str, info: str) -> None:
        desk.outcome = outcome

        _, answer = desk.session.get(terms.PRINT_JOB, JOB, [])

        assert (answer.ExecutionStatus, answer.ExecutionStatusInfo) == (said, info)

    def test_a_print_job_that_is_not_known_is_no_instance(self, desk: Desk) -> None:
        assert desk.session.get(terms.PRINT_JOB, generate_uid(), [])[0] == 0x0112


class TestPixels:
    RAMP = np.arange(256, dtype=np.uint8).reshape(16, 16)

    def box(self, samples: np.ndarray, bits: int, reversed: bool = False, **more: Any) -> Dataset:
        made = image_box(1, samples, bits, Scaling(), is_reversed=reversed, smoothing="")
        for keyword, value in more.items():
            setattr(made.BasicGrayscaleImageSequence[0], keyword, value)
        return made

    def test_identity_and_none_are_p_values(self) -> None:
        box = self.box(self.RAMP, 8)

        for lut in (None, ds(PresentationLUTShape="IDENTITY")):
            assert np.allclose(p_values(box, lut, Dataset()), self.RAMP / 255)

    def test_monochrome1_and_reverse_invert_and_both_do_not(self) -> None:
        inverted = 1 - self.RAMP / 255

        assert np.allclose(
            p_values(self.box(self.RAMP, 8, PhotometricInterpretation="MONOCHROME1"), None, Dataset()), inverted
        )
        assert np.allclose(p_values(self.box(self.RAMP, 8, reversed=True), None, Dataset()), inverted)
        both = self.box(self.RAMP, 8, reversed=True, PhotometricInterpretation="MONOCHROME1")
        assert np.allclose(p_values(both, None, Dataset()), self.RAMP / 255)

    def test_a_table_is_applied(self) -> None:
        samples = np.arange(4096, dtype=np.uint16).reshape(64, 64)
        lut = presentation_lut(Lut.TABLE, 12)
        square = np.round((np.arange(4096) / 4095) ** 2 * 65535).astype("<u2")
        lut.PresentationLUTSequence[0].LUTData = square.tobytes()

        seen = p_values(self.box(samples, 12), lut, Dataset())

        assert np.allclose(seen, (samples / 4095) ** 2, atol=1e-5)

    def test_optical_densities_become_what_they_look_like(self) -> None:
        film_box = ds(MinDensity=20, MaxDensity=320, Illumination=2500, ReflectedAmbientLight=5)
        film = gsdf.Densities(0.2, 3.2, 2500, 5)

        seen = p_values(self.box(self.RAMP, 8), ds(PresentationLUTShape="LIN OD"), film_box)

        # The way back, by the function that makes densities of P-Values.
        assert np.allclose(gsdf.densities(seen.astype(float), film), 3.2 - 3.0 * self.RAMP / 255, atol=2e-3)

    @pytest.mark.parametrize("planar", [0, 1])
    def test_colour_comes_by_pixel_or_by_plane(self, planar: int) -> None:
        rgb = np.random.default_rng(1).integers(0, 256, (5, 7, 3), dtype=np.uint8)
        made = image_box(1, rgb, 8, Scaling(), is_reversed=False, smoothing="")
        item = made.BasicColorImageSequence[0]
        if planar == 0:
            item.PlanarConfiguration, item.PixelData = 0, rgb.tobytes() + b"\0"

        assert np.allclose(p_values(made, None, Dataset()), rgb / 255)
