"""The part of the demo that orders processing: what there is, an order, its progress, the result beside its source.

Like the rest of the demo it speaks to the server over HTTP, as the receiving subscriber.
"""

import io
import time
from pathlib import Path
from typing import Any

import orjson
from PIL import Image
from rich.console import Console
from rich.live import Live
from rich.padding import Padding

from fhir_server.contact_sheet import contact_sheet
from fhir_server.delivery import value
from fhir_server.demo_client import Client
from fhir_server.model.task import is_over, name_of
from fhir_server.order_table import order_table, text_of_entry
from fhir_server.ownership import ALGORITHM_URL
from imaging.errors import AppError, Category

ALGORITHM = "clahe"
SIDE = 420  # pixels of one of the two pictures
WITHIN_S = 120
LOOK_S = 0.1

Json = dict[str, Any]


def order(console: Console, clinic: Client, study: str, series: Json, folder: Path) -> None:
    """Order processing of a series, follow it, and write what came of it beside what it was made of.

    study   Study Instance UID
    series  of the ImagingStudy; its first instance is shown
    """
    bundle = _json(clinic, "/fhir/ActivityDefinition?status=active&_count=100")
    urls = {each["resource"].get("url", ""): each["resource"] for each in bundle.get("entry", [])}
    offered = {url: each for url, each in urls.items() if url.startswith(ALGORITHM_URL)}
    definition = offered[f"{ALGORITHM_URL}{ALGORITHM}"]
    console.print(
        f"   {len(offered)} algorithms are offered, each as an ActivityDefinition with typed parameters; it takes"
    )
    console.print(f"   [cyan]{ALGORITHM}[/]: {definition['description'].partition(chr(10))[0]}")
    kind = f"{series['modality']['code']} {series.get('description', '')}".strip()
    console.print(f"   POST /fhir/Task for a series of {kind}")
    started = time.perf_counter()
    task = _followed(console, clinic, orjson.loads(clinic.create(_task(definition, series["uid"])).checked().body))
    seconds = time.perf_counter() - started
    told = {name_of(each): text_of_entry(each) for each in task.get("output", [])}
    console.print(f"   {seconds:.1f} s from order to result: a new series of the study, {told['series'][:24]}...")
    console.print(f"   what was applied: {told['performed']}", highlight=False)
    console.print(f"   {told['provenance']} says it as well", highlight=False)
    pictures = [
        (f"before: {kind}", _rendered(clinic, study, series["uid"])),
        (f"after: {ALGORITHM} {definition['version']}", _rendered(clinic, study, told["series"])),
    ]
    folder.mkdir(exist_ok=True)
    path = folder / "before-after.png"
    contact_sheet(pictures, side=SIDE).save(path)
    console.print(f"   before and after: {path.resolve()}\n", soft_wrap=True)


def _task(definition: Json, series_uid: str) -> Json:
    return {
        "resourceType": "Task",
        "instantiatesCanonical": f"{definition['url']}|{definition['version']}",
        "status": "requested",
        "intent": "order",
        "priority": "urgent",
        "code": {"coding": [{"system": "urn:fhir-imaging:code:task", "code": "process"}]},
        "input": [value("series", "valueId", series_uid), value("keep", "valueCode", "both")],
    }


def _followed(console: Console, clinic: Client, task: Json) -> Json:
    """Show a Task until it has ended. Raises FAULT unless it was completed in time."""
    deadline = time.monotonic() + WITHIN_S
    with Live(order_table([task]), console=console, refresh_per_second=8, transient=True) as live:
        while not is_over(task) and time.monotonic() < deadline:
            time.sleep(LOOK_S)
            task = _json(clinic, f"/fhir/Task/{task['id']}")
            live.update(order_table([task]))
    console.print(Padding(order_table([task]), (0, 0, 0, 3)))
    if task["status"] != "completed":
        reason = task.get("statusReason", {}).get("text", f"it is {task['status']} after {WITHIN_S} s")
        raise AppError(Category.FAULT, f"the order was not completed: {reason}", where=f"Task/{task['id']}")
    return task


def _rendered(clinic: Client, study: str, series_uid: str) -> Image.Image:
    address = f"/dicom-web/studies/{study}/series/{series_uid}"
    (first, *_) = orjson.loads(clinic.get(f"{address}/instances?limit=1", "application/dicom+json").checked().body)
    uid = first["00080018"]["Value"][0]
    reply = clinic.get(f"{address}/instances/{uid}/rendered?viewport={SIDE},{SIDE}", "image/png").checked()
    return Image.open(io.BytesIO(reply.body))


def _json(clinic: Client, path: str) -> Json:
    found: Json = orjson.loads(clinic.get(path).checked().body)
    return found
