"""Laws of hard copy: any input is an order or is refused, Devices lose nothing, and no crash prints twice or loses."""

import tempfile
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fhir_server.delivery import value
from fhir_server.hardcopy.devices import capabilities_of, device_of
from fhir_server.hardcopy.inputs import INPUTS
from fhir_server.hardcopy.orders import Order, order_of
from fhir_server.hardcopy.press import press
from fhir_server.model.task import check_inputs
from imaging.errors import AppError, Category
from imaging.film import FILM_SIZES, Medium, Picture, Sheets
from imaging.printer import Capabilities, Job, Progress, Reporting
from imaging.printers.folder import FolderPrinter
from tests.support.films import KIND, task

WORDS = st.sampled_from(
    ["A4", "BLUE FILM", "STANDARD\\2,2", "ROW\\1,2", "1.2.3", "1.2.3?frames=1", "40,400", "1,3-5", "5-3", "10,40,50,50",
     "BLACK", "2.8", "LIN OD", "true-size", "REVERSE", "", "0", "-1", "nan", "\x00", "..", "1.2?window=a&window=b"]
)  # fmt: skip
VALUES = {
    "valueString": WORDS | st.text(max_size=30),
    "valueCode": WORDS,
    "valueId": WORDS | st.text(max_size=70),
    "valueBoolean": st.booleans(),
    "valueInteger": st.integers(-5, 2_000),
    "valuePositiveInt": st.integers(1, 2_000),
    "valueDecimal": st.floats(-10, 30_000, allow_nan=False),
    "valueQuantity": st.fixed_dictionaries({"value": st.integers(-5, 400), "code": st.sampled_from(["mm", "cm"])}),
    "valueReference": st.sampled_from(["ImagingStudy/1.2", "Device/printer-x", "x"]).map(lambda r: {"reference": r}),
}  # fmt: skip


@st.composite
def entries(draw: Any) -> dict[str, Any]:
    known = draw(st.sampled_from([each for each in INPUTS if each.name != "device"]))
    element = draw(st.sampled_from(known.value.split("|")))
    return value(known.name, element, draw(VALUES[element]))


@given(st.lists(entries(), max_size=6))
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_any_inputs_are_an_order_or_are_refused_by_name(given_inputs: list[dict[str, Any]]) -> None:
    ordered = task(*given_inputs)

    try:
        check_inputs(ordered, KIND)
    except AppError as error:
        assert error.category is Category.INVALID  # noqa: PT017 -- both ways are lawful
    else:
        order = order_of(ordered)
        assert order.images or order.states
        assert {each.name for each in fields(Order)} >= {"device", "images"}


CAPABILITIES = st.builds(
    Capabilities,
    film_sizes=st.lists(st.sampled_from(list(FILM_SIZES)), min_size=1, unique=True).map(tuple),
    media=st.lists(st.sampled_from(list(Medium)), min_size=1, unique=True).map(tuple),
    dots_per_inch=st.lists(st.integers(72, 1_200), min_size=1, max_size=4, unique=True).map(tuple),
    bits=st.lists(st.sampled_from([8, 12, 16]), min_size=1, unique=True).map(tuple),
    grey=st.booleans(),
    colour=st.booleans(),
    most_copies=st.integers(1, 99),
    most_pages=st.integers(1, 500),
    least_margin=st.integers(0, 200).map(lambda tenths: tenths / 10),
    densities=st.none() | st.tuples(st.integers(0, 40), st.integers(200, 400)).map(lambda d: (d[0] / 100, d[1] / 100)),
    does_true_size=st.booleans(),
    does_annotation=st.booleans(),
    does_attachments=st.booleans(),
    destinations=st.lists(st.sampled_from(["MAGAZINE", "PROCESSOR", "BIN_1"]), unique=True).map(tuple),
    reporting=st.sampled_from(list(Reporting)),
)


@given(CAPABILITIES)
def test_what_a_printer_can_do_survives_being_a_device(capabilities: Capabilities) -> None:
    device = device_of("p", title="", owner="", capabilities=capabilities, status=None, is_suspended=False)

    assert capabilities_of(device) == capabilities


class DiedError(Exception):
    """The process is gone; what it had not saved is lost."""


class Disk:
    """Notes that survive, kept by processes that die at chosen steps."""

    def __init__(self) -> None:
        self.saved, self.count = "", 0

    def ticket(self) -> str:
        return self.saved

    def keep(self, ticket: str) -> None:
        self.saved = ticket

    def tries(self) -> int:
        self.count += 1
        return 1


class Mortal(FolderPrinter):
    """A printer whose user dies at the n-th step from now."""

    def until(self, steps: int) -> "Mortal":
        object.__setattr__(self, "left", steps)
        return self

    def step(self) -> None:
        object.__setattr__(self, "left", self.left - 1)
        if self.left < 0:
            raise DiedError

    def reserve(self, job: Job) -> str:
        self.step()
        ticket = super().reserve(job)
        self.step()
        return ticket

    def send(self, ticket: str, job: Job, *, keep: Any, tell: Any = lambda _: None) -> None:
        def kept(newer: str) -> None:
            self.step()
            keep(newer)
            self.step()

        self.step()
        super().send(ticket, job, keep=kept, tell=tell)
        self.step()

    def outcome(self, ticket: str) -> Any:
        self.step()
        return super().outcome(ticket)


@given(st.lists(st.integers(0, 8), max_size=6))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_however_often_processes_die_a_job_comes_out_once(deaths: list[int]) -> None:
    sheets = Sheets(film_size="8INX10IN", dots_per_inch=72, letters=False, scale_bar=False)
    job = Job("order-1", sheets, [lambda: Picture(np.zeros((2, 2), np.float32))])
    with tempfile.TemporaryDirectory() as folder:
        printer, disk = Mortal(folder=folder, dots_per_inch=72), Disk()
        for steps in deaths:
            try:
                press(printer.until(steps), lambda: job, disk, hear=lambda _: None)
            except DiedError:
                continue
        last = press(printer.until(1_000), lambda: job, disk, hear=lambda _: None)

        assert last.progress is Progress.DONE
        assert len([each for each in Path(folder).glob("[!.]*/job.json")]) == 1
