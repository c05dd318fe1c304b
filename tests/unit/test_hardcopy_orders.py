"""Hard-copy orders: what each input means for the pages, and what is refused before anything is printed."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fhir_server.delivery import value
from fhir_server.hardcopy.composing import of_inputs
from fhir_server.hardcopy.devices import availability, capabilities_of, device_of, status_of_device
from fhir_server.hardcopy.inputs import INPUTS
from fhir_server.model import json as fhir_json
from fhir_server.model.validation import validate
from imaging.errors import AppError, Category
from imaging.film import Fit, Magnification, Medium, Orientation, gsdf
from imaging.printer import Capabilities, Job, Priority, Reporting, State, Status
from tests.support.dicom_builder import ROOT, instance
from tests.support.films import copying, inputs, task

SERIES = f"{ROOT}.1.1"
FILM = Capabilities(
    film_sizes=("14INX17IN", "A4"),
    media=(Medium.BLUE_FILM, Medium.PAPER),
    dots_per_inch=(200, 100),
    bits=(12, 8),
    most_copies=20,
    densities=(0.2, 3.2),
    destinations=("PROCESSOR",),
)
COLOUR = Capabilities(("A4",), (Medium.PAPER,), (100,), grey=False, colour=True)


def flat(grey: int = 0, number: int = 1, **more: Any) -> bytes:
    return instance(np.full((8, 8), grey, np.uint8), number=number, modality="OT", **more)


def job_of(
    folder: Path, *given: dict[str, Any], files: list[bytes] | None = None, has: Capabilities = FILM, **more: Any
) -> Job:
    return copying(folder, files or [flat()], task(*inputs(series=SERIES), *given, **more), has).job()


class TestMeaning:
    def test_what_is_not_ordered_is_the_devices_first(self, tmp_path):
        sheets = job_of(tmp_path).sheets

        assert (sheets.film_size, sheets.medium, sheets.dots_per_inch, sheets.bits) == (
            "14INX17IN", Medium.BLUE_FILM, 200, 12,
        )  # fmt: skip
        assert (sheets.fit, sheets.border, sheets.colour, sheets.reversed) == (Fit.FIT, 0.0, False, False)

    def test_every_word_reaches_the_sheet(self, tmp_path):
        job = job_of(
            tmp_path,
            *inputs(
                film_size="A4", medium="PAPER", orientation="LANDSCAPE", layout="ROW\\1,2", margin=9, gap=3.5,
                resolution=100,
                bits=8, fit="crop", magnification="BILINEAR", polarity="REVERSE", border="WHITE", empty="WHITE",
                trim=True, banner=["one", "two"], letters=False, scale_bar=False, over_images=True, letter_height=2.5,
                copies=7, destination="PROCESSOR",
            ),
            priority="stat",
        )  # fmt: skip

        sheets = job.sheets
        assert (sheets.film_size, sheets.medium, sheets.orientation) == ("A4", Medium.PAPER, Orientation.LANDSCAPE)
        assert (sheets.display_format, sheets.margin, sheets.gap, sheets.dots_per_inch) == ("ROW\\1,2", 9, 3.5, 100)
        assert (sheets.fit, sheets.magnification, sheets.reversed) == (Fit.CROP, Magnification.BILINEAR, True)
        assert (sheets.border, sheets.empty, sheets.trim, sheets.letter_height) == (1.0, 1.0, True, 2.5)
        assert sheets.banner[-2:] == ("one", "two")
        assert (sheets.letters, sheets.scale_bar, sheets.over_images) == (False, False, True)
        assert (job.copies, job.priority, job.destination) == (7, Priority.HIGH, "PROCESSOR")

    def test_boxes_of_their_own_replace_the_layout(self, tmp_path):
        boxes = inputs(box=["10,40,100,100", "120.5,40,80,90"])

        assert [each.left for each in job_of(tmp_path, *boxes).sheets.image_boxes()] == [10, 120.5]

    def test_the_identity_of_the_patient_is_on_every_page(self, tmp_path):
        files = [flat(number=n) for n in (1, 2)]

        pages = job_of(tmp_path, files=files).sheets

        assert pages.banner[0] == "Test, Person   P1   born 1970-01-01   O"
        assert "2024-01-02" in pages.banner[1]
        assert "no. A1" in pages.banner[1]

    def test_the_code_of_the_task_is_on_every_page_and_can_be_read(self, tmp_path):
        for resolution in (100, 200):
            sheets = job_of(tmp_path, *inputs(resolution=resolution)).sheets

            assert sheets.code.startswith("https://images.example.org/fhir/Task/")
            next(iter(job_of(tmp_path, *inputs(resolution=resolution)).pages()))

    def test_a_density_of_the_border_is_the_p_value_that_prints_as_it(self, tmp_path):
        sheets = job_of(tmp_path, *inputs(border="1.5", density_min=0.2, density_max=3.0)).sheets

        film = gsdf.Densities(0.2, 3.0)
        assert gsdf.densities(np.array(sheets.border), film) == pytest.approx(1.5, abs=1e-3)

    def test_linear_density_is_linear_in_density_on_the_film(self, tmp_path):
        ramp = np.tile(np.arange(256, dtype=np.uint8), (4, 1))
        given = inputs(lut_shape="LIN OD", density_min=0.2, density_max=3.2, window="127.5,255,linear-exact")

        (load,) = job_of(tmp_path, *given, files=[instance(ramp, modality="OT")]).pictures

        densities = gsdf.densities(load().greys[0].astype(float), gsdf.Densities(0.2, 3.2))
        assert densities == pytest.approx(3.2 - np.arange(256) / 255 * 3.0, abs=5e-3)

    def test_densities_go_to_the_printer_only_where_they_were_ordered(self, tmp_path):
        assert job_of(tmp_path).densities is None
        assert job_of(tmp_path, *inputs(density_min=0.3, density_max=3)).densities == gsdf.Densities(0.3, 3)

    def test_a_device_without_grey_prints_in_colour(self, tmp_path):
        assert job_of(tmp_path, has=COLOUR).sheets.colour

    def test_captions_tell_numbers_and_window(self, tmp_path):
        files = [flat(number=3, attributes={"WindowCenter": "40", "WindowWidth": "400", "SliceLocation": "-12.5"})]

        (load,) = job_of(tmp_path, files=files).pictures

        assert load().caption == ("Se 1  Im 3  -12.5 mm  C 40 W 400",)

    def test_an_image_has_a_window_of_its_own(self, tmp_path):
        files = [flat(128, number=n) for n in (1, 2)]
        given = inputs(image=[f"{SERIES}.1?window=128,2", f"{SERIES}.2"], window="0,2")

        one, other = copying(tmp_path, files, task(*given), FILM).job().pictures

        assert one().greys[0, 0] == pytest.approx(0.5, abs=0.51)
        assert (one().caption, other().caption) == (("Se 1  Im 1  C 128 W 2",), ("Se 1  Im 2  C 0 W 2",))
        assert other().greys[0, 0] == 1

    def test_frames_of_all_or_of_one(self, tmp_path):
        movie = instance(np.zeros((5, 8, 8), np.uint8), modality="OT")
        uid = f"{SERIES}.1"

        named = copying(tmp_path, [movie], task(*inputs(image=f"{uid}?frames=4", series=SERIES, frames="1,3-4")), FILM)

        assert [each.frame for each in named.chosen.shots] == [4, 1, 3, 4]

    def test_the_logo_goes_where_there_is_one(self, tmp_path):
        logo = np.ones((4, 8), np.float32)

        with_it, without = (
            copying(tmp_path, [flat()], task(*inputs(series=SERIES, logo=each)), FILM, logo=logo).job().sheets.logo
            for each in (True, False)
        )

        assert with_it is logo
        assert without is None


class TestRefused:
    @pytest.mark.parametrize(
        ("given", "words"),
        [
            ({"film_size": "B5"}, "input 'film-size': one of 8INX10IN"),
            ({"film_size": "A3"}, "input 'film-size': the printer has 14INX17IN, A4, not A3"),
            ({"medium": "VELLUM"}, "input 'medium': one of PAPER"),
            ({"medium": "CLEAR FILM"}, "input 'medium': the printer has BLUE FILM, PAPER, not CLEAR FILM"),
            ({"layout": "GRID\\2"}, "input 'layout': STANDARD"),
            ({"layout": "STANDARD\\0,1"}, "input 'layout': 1 to 400"),
            ({"layout": "../../etc"}, "input 'layout': a format such as"),
            ({"copies": 0}, "input 'copies': 1 to 99 expected"),
            ({"copies": 21}, "input 'copies': the printer does 1 to 20, not 21"),
            ({"window": "40"}, "input 'window': center,width"),
            ({"window": "40,0"}, "input 'window': width of at least 1"),
            ({"box": "1,2,3"}, "input 'box': left,top,width,height"),
            ({"box": ["10,40,100,100", "50,50,100,100"]}, "input 'layout': boxes 1 and 2 overlap"),
            ({"box": "10,40,100,100", "layout": "SLIDE"}, "a layout or boxes, not both"),
            ({"resolution": 333}, "input 'resolution': the printer has 200, 100, not 333"),
            ({"resolution": 20_000}, "input 'resolution': 72 to 1200 expected"),
            ({"bits": 9}, "input 'bits': 8, 12 or 16"),
            ({"bits": 16}, "the printer has 12, 8, not 16"),
            ({"colour": True}, "input 'colour': the printer has grey, not colour"),
            ({"fit": "true-size"}, "input 'fit': the image says no pixel spacing"),
            ({"fit": "stretch"}, "input 'fit': one of fit, crop, true-size"),
            ({"density_min": 1}, "density-min and density-max go together"),
            ({"density_min": 3, "density_max": 1}, "density-min has to be below"),
            ({"density_min": 0.1, "density_max": 3}, "the printer does 0.2 to 3.2, not 0.1"),
            ({"border": "4.5"}, "input 'border': a density of 0.2 to 3.2 expected"),
            ({"border": "GREEN"}, "input 'border': BLACK, WHITE or"),
            ({"destination": "MAGAZINE"}, "input 'destination': the printer has PROCESSOR, not MAGAZINE"),
            ({"letter_height": 30, "layout": "STANDARD\\1,9"}, "input 'layout': nothing is left"),
            ({"banner": "x" * 201}, "input 'banner': a line of 1 to 200"),
            ({"banner": "two\nlines"}, "input 'banner': a line of 1 to 200"),
            ({"frames": "0"}, "frame numbers such as 1,3-5"),
            ({"frames": "2"}, "frame 2 asked, the instance has 1"),
            ({"image": "1.2?frames=1&frames=2"}, "input 'image': a SOP Instance UID"),
            ({"image": "1.2?zoom=2"}, "input 'image': a SOP Instance UID"),
            ({"presentation_state": f"{SERIES}.1"}, "input 'presentation-state': 1.2.826"),
            ({"key_object": f"{SERIES}.1"}, "input 'key-object': 1.2.826"),
            ({"instance": "one"}, "input 'instance': this is no UID"),
        ],
    )  # fmt: skip
    def test_what_is_wrong_is_invalid_and_names_the_input(self, tmp_path, given, words):
        ordered = task(*inputs(series=SERIES, **given))

        with pytest.raises(AppError) as caught, of_inputs():
            copying(tmp_path, [flat()], ordered, FILM).check()

        assert caught.value.category is Category.INVALID
        assert words in str(caught.value)

    @pytest.mark.parametrize(
        ("wrong", "words"),
        [
            (value("copies", "valueString", "3"), "has to be a valuePositiveInt or a valueInteger"),
            (value("margin", "valueQuantity", {"value": 2, "unit": "cm"}), "input 'margin': the unit has to be mm"),
            (value("nonsense", "valueString", "1"), "input 'nonsense' is not known"),
            (value("device", "valueReference", {"reference": "Device/x"}), "input 'device' comes 2 times"),
        ],
    )
    def test_so_is_an_input_of_another_type(self, tmp_path, wrong, words):
        with pytest.raises(AppError, match=words):
            copying(tmp_path, [flat()], task(*inputs(series=SERIES), wrong), FILM)

    def test_no_images(self, tmp_path):
        with pytest.raises(AppError, match="name images"):
            copying(tmp_path, [flat()], task(), FILM)

    def test_an_instance_without_pixels_that_is_named(self, tmp_path):
        with pytest.raises(AppError, match="no pixels"):
            copying(tmp_path, [instance(None)], task(*inputs(instance=f"{SERIES}.1")), FILM)

    def test_two_patients_on_one_order(self, tmp_path):
        files = [flat(), flat(study=2)]
        ordered = task(*inputs(series=[SERIES, f"{ROOT}.2.1"]))

        with pytest.raises(AppError, match="not all of one patient"):
            copying(tmp_path, files, ordered, FILM).check()

    def test_true_size_on_a_printer_that_does_not_keep_it(self, tmp_path):
        files = [flat(attributes={"PixelSpacing": ["1", "1"]})]
        ordered = task(*inputs(series=SERIES, fit="true-size", medium="PAPER"))
        paper = Capabilities((), (Medium.PAPER,), (100,), does_true_size=False)

        with pytest.raises(AppError, match="not true-size"), of_inputs():
            copying(tmp_path, files, ordered, paper).check()

    def test_true_size_of_a_detector_or_beyond_the_box(self, tmp_path):
        detector = flat(attributes={"ImagerPixelSpacing": ["0.1", "0.1"]})
        large = flat(attributes={"PixelSpacing": ["60", "60"]})
        ordered = task(*inputs(series=SERIES, fit="true-size"))

        with pytest.raises(AppError, match="at the detector"):
            copying(tmp_path / "one", [detector], ordered, FILM).check()
        with pytest.raises(AppError, match=r"480\.0 x 480\.0 mm"):
            copying(tmp_path / "two", [large], ordered, FILM).check()

    def test_more_pages_than_anybody_prints(self, tmp_path):
        movie = instance(np.zeros((501, 2, 2), np.uint8), modality="OT")

        with pytest.raises(AppError) as caught:
            copying(tmp_path, [movie], task(*inputs(series=SERIES)), FILM).check()
        assert caught.value.category is Category.TOO_LARGE


class TestDevice:
    def test_what_a_printer_can_do_survives_being_a_device(self):
        capabilities = Capabilities(
            film_sizes=("14INX17IN", "A4"), media=(Medium.BLUE_FILM, Medium.MAMMO_CLEAR_FILM), dots_per_inch=(300, 600),
            bits=(12, 8), colour=True, most_copies=9, most_pages=30, least_margin=4.5, densities=(0.2, 3.25),
            does_true_size=False, does_annotation=False, does_attachments=True, destinations=("BIN_1",),
            reporting=Reporting.ACCEPTED,
        )  # fmt: skip
        device = device_of(
            "ward", title="Ward 3", owner="Organization/1", capabilities=capabilities, status=None, is_suspended=False
        )

        validate(fhir_json.loads(fhir_json.dumps(device)), "Device")
        assert capabilities_of(device) == capabilities

    @pytest.mark.parametrize(
        ("status", "code", "words"),
        [
            (Status(State.NORMAL), "online", None),
            (Status(State.WARNING, ("SUPPLY LOW",), "few films"), "online", "few films"),
            (Status(State.FAILURE, ("SUPPLY EMPTY",), "no film"), "not-ready", "no film"),
            (Status(State.OFFLINE, (), "no answer"), "offline", "no answer"),
        ],
    )
    def test_how_it_is_has_a_code_and_the_printers_words(self, status, code, words):
        shown = status_of_device(status, is_suspended=False)

        assert shown["status"] == "active"
        assert shown["statusReason"][0]["coding"][0]["code"] == code
        assert shown["statusReason"][0].get("text") == words
        assert [each["coding"][0]["code"] for each in shown["statusReason"][1:]] == list(status.reasons)

    def test_one_that_said_nothing_yet_takes_no_orders(self):
        device = device_of("ward", title="", owner="", capabilities=None, status=None, is_suspended=False)

        with pytest.raises(AppError, match="has not said yet"):
            capabilities_of(device)
        assert availability(device) == ""

    def test_what_is_no_printer_prints_nothing(self):
        assert availability({"resourceType": "Device", "status": "active"}) == "this Device is no printer"

    def test_nonsense_in_a_property_is_invalid(self):
        device = device_of("ward", title="", owner="", capabilities=FILM, status=None, is_suspended=False)
        for each in device["property"]:
            if each["type"]["coding"][0]["code"] == "medium":
                each["valueCode"] = [{"coding": [{"system": "urn:fhir-imaging:code:printer-property", "code": "FOIL"}]}]

        with pytest.raises(AppError, match="'medium'"):
            capabilities_of(device)


def test_every_input_has_a_meaning_and_a_known_element():
    assert len({each.name for each in INPUTS}) == len(INPUTS)
    assert all(each.meaning and each.value.startswith("value") for each in INPUTS)
