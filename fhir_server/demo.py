"""The demo: a server, two subscribers and real images, end to end over the network, told on the terminal.

Everything goes through the same doors that any client uses: this module speaks HTTP to a server that it started with
`fhir-imaging serve`, and the commands that let subscribers in.
"""

import contextlib
import hashlib
import io
import signal
import socket
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson
import pydicom.data
from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from fhir_server import demo_order
from fhir_server.access.contracts import Right
from fhir_server.app import open_server
from fhir_server.config import Config
from fhir_server.contact_sheet import contact_sheet
from fhir_server.demo_client import Client, Reply
from fhir_server.mongod import tied_to_parent
from imaging.dicomweb import iter_parts
from imaging.errors import AppError, Category

HOSPITAL, CLINIC = "demo-hospital", "demo-clinic"
OUTPUT = Path("demo-output")
NATIVE = "1.2.840.10008.1.2.1"
A_REQUEST = 10  # files
START_WITHIN_S = 120
FOUND_WITHIN_S = 60
SHEET_SIDE = 200  # pixels of a picture on the contact sheet
SHEET_PICTURES = 40


@dataclass
class Sent:
    """What became of the files that were sent."""

    files: dict[str, Path] = field(default_factory=dict)  # by SOP Instance UID, of those that are stored
    bytes: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    again: int = 0  # files whose instance was stored already, with the same content
    seconds: float = 0.0


def run(config: Config, *, images: Path | None, exit_after: bool) -> None:
    """Run the demo; serve on until Ctrl-C unless `exit_after`. A store that was not named is thrown away at the end."""
    console = Console()
    # The samples hold deliberate mistakes; the server judges them, not the library that reads them for this report.
    warnings.filterwarnings("ignore", module="pydicom")
    with contextlib.ExitStack() as stack:
        is_kept = config.source("data.dir") != "default"
        if not is_kept:
            place = stack.enter_context(tempfile.TemporaryDirectory(prefix="fhir-imaging-demo-"))
            config = config.with_values({"data.dir": Path(place)})
        config = config.with_port(_port(config))
        console.print("[bold]1. A server[/] with its own database", f"in {config['data.dir']}")
        stack.enter_context(_serving(config))
        base = config["web.base_url"]
        tokens = _subscribers(config)
        console.print(f"   {base}/fhir and {base}/dicom-web are open to two subscribers:")
        console.print(f"   [cyan]{HOSPITAL}[/] may register images, [cyan]{CLINIC}[/] may receive and process images\n")
        hospital, clinic = (Client(base, tokens[name]) for name in (HOSPITAL, CLINIC))
        sent = _send(console, hospital, _files(images))
        _show_sizes(console, config, sent)
        studies = _find(console, clinic, sent)
        shown = _retrieve(console, clinic, sent, studies)
        _process(console, clinic, sent, studies)
        _show_sheet(console, clinic, studies)
        if is_kept or not exit_after:
            _show_commands(console, base, tokens[CLINIC], shown)
        if not exit_after:
            console.print("\nThe server stays up. [bold]Ctrl-C[/] ends it.")
            with contextlib.suppress(KeyboardInterrupt):
                signal.pause()
        console.print("Stopping." if is_kept else "Stopping; all data is thrown away.")


def _port(config: Config) -> int:
    """Return the configured port, or a free one where that is taken."""
    with socket.socket() as probe:
        try:
            probe.bind((config["web.host"], config["web.port"]))
        except OSError:
            probe.bind((config["web.host"], 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def _serving(config: Config) -> Iterator[None]:
    Path(config["data.dir"]).mkdir(mode=0o700, parents=True, exist_ok=True)
    log = Path(config["data.dir"]) / "demo-server.log"
    command = [sys.executable, "-P", "-m", "fhir_server.cli", "serve", *config.arguments()]
    with log.open("wb") as output:
        server = subprocess.Popen(  # noqa: S603 -- our own command line
            tied_to_parent(command), stdout=output, stderr=output, start_new_session=True
        )
    try:
        _wait_until_ready(Client(config["web.base_url"], ""), server, log)
        yield
    finally:
        server.terminate()
        server.wait()


def _wait_until_ready(client: Client, server: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + START_WITHIN_S
    while server.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            if client.get("/health/ready").status == 200:
                return
        time.sleep(0.1)
    last = log.read_text(errors="replace").strip().splitlines()[-1:] or ["it printed nothing"]
    raise AppError(Category.FAULT, f"the server did not start: {last[0].removeprefix('fhir-imaging: ')}", where="demo")


def _subscribers(config: Config) -> dict[str, str]:
    rights = {HOSPITAL: [Right.REGISTER_IMAGES], CLINIC: [Right.RECEIVE_IMAGES, Right.ORDER_PROCESSING]}
    with open_server(config) as server:
        for name, allowed in rights.items():
            server.principals.add(name, allowed)
        return {name: server.principals.mint(name) for name in rights}


def _files(images: Path | None) -> list[Path]:
    """Return the DICOM files that pydicom's wheel carries, and every file of the given folder, those first."""
    carried = Path(pydicom.data.__file__).parent / "test_files"
    files = sorted(path for path in carried.rglob("*.dcm") if path.is_file())
    own = sorted(path for path in images.rglob("*") if path.is_file()) if images else []
    return own + files


def _send(console: Console, hospital: Client, files: Sequence[Path]) -> Sent:
    console.print(f"[bold]2. {HOSPITAL} sends[/] {len(files)} files over STOW-RS")
    sent = Sent()
    columns = (TextColumn("   storing"), BarColumn(), MofNCompleteColumn(), TextColumn("files"), TimeRemainingColumn())
    started = time.perf_counter()
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("store", total=len(files))
        for start in range(0, len(files), A_REQUEST):
            batch = files[start : start + A_REQUEST]
            _note(sent, hospital.store([path.read_bytes() for path in batch]), batch)
            progress.advance(task, len(batch))
    sent.seconds = time.perf_counter() - started
    rate = sent.bytes / 1e6 / sent.seconds
    console.print(
        f"   {len(sent.files)} instances are stored, verified and durable: {sent.bytes / 1e6:.1f} MB "
        f"in {sent.seconds:.1f} s ({rate:.1f} MB/s)"
    )
    if sent.again:
        console.print(f"   {sent.again} more files hold the same content in other forms; nothing is stored twice")
    return sent


def _show_sizes(console: Console, config: Config, sent: Sent) -> None:
    with open_server(config) as server:
        received, stored = server.archive.sizes()
    console.print(
        f"   the store holds {received / 1e6:.1f} MB of received files in {stored / 1e6:.1f} MB: "
        f"{received / max(stored, 1):.2f} to 1, and every bit comes back"
    )
    if sent.refused:
        console.print(f"   {sent.refused.total()} were refused, each with its reason:")
    for reason, count in sent.refused.most_common():
        console.print(f"     {count:3}  {reason}", style="yellow", highlight=False)
    console.print()


def _note(sent: Sent, reply: Reply, batch: Sequence[Path]) -> None:
    answer = orjson.loads(reply.body)
    if reply.status not in (200, 202, 409):
        raise AppError(Category.FAULT, f"STOW-RS answered {reply.status}", where="demo")
    told = [item["00081155"]["Value"][0] for item in answer.get("00081199", {}).get("Value", [])]
    stored, known = set(told), len(sent.files)
    for path in batch:
        uid = str(pydicom.dcmread(path, force=True, specific_tags=["SOPInstanceUID"]).get("SOPInstanceUID", ""))
        if uid in stored and uid not in sent.files:
            sent.files[uid] = path
            sent.bytes += path.stat().st_size
    sent.again += len(told) - (len(sent.files) - known)
    for tag in ("00081198", "0008119A"):  # Failed SOP Sequence, Other Failures Sequence
        for item in answer.get(tag, {}).get("Value", []):
            sent.refused[item["00000902"]["Value"][0]] += 1  # Error Comment


def _find(console: Console, clinic: Client, sent: Sent) -> list[dict[str, Any]]:
    console.print(f"[bold]3. {CLINIC} finds[/] the studies with a FHIR search")
    studies = _all_studies(clinic)
    deadline = time.monotonic() + FOUND_WITHIN_S
    # A search brings studies up to date for about a second; on a busy machine the worker does the rest a little later.
    while not sent.files.keys() <= _instances(studies) and time.monotonic() < deadline:
        time.sleep(0.2)
        studies = _all_studies(clinic)
    table = Table(title=f"GET /fhir/ImagingStudy: {len(studies)} studies", title_justify="left")
    for column in ("ImagingStudy", "modality", "started", "description", "series", "instances"):
        table.add_column(column, justify="right" if column in ("series", "instances") else "left", overflow="ellipsis")
    for study in studies[:12]:
        kinds = " ".join(coding["code"] for coding in study.get("modality", []))
        started = study.get("started", "")[:10]
        counts = (str(study["numberOfSeries"]), str(study["numberOfInstances"]))
        table.add_row(study["id"][:16], kinds, started, study.get("description", ""), *counts)
    console.print(table)
    if len(studies) > 12:
        console.print(f"   and {len(studies) - 12} more")
    console.print()
    return studies


def _all_studies(clinic: Client) -> list[dict[str, Any]]:
    studies: list[dict[str, Any]] = []
    path = "/fhir/ImagingStudy?_count=100&_include=ImagingStudy:endpoint"
    while path:
        bundle = orjson.loads(clinic.get(path).checked().body)
        entries = [entry["resource"] for entry in bundle.get("entry", [])]
        studies += [entry for entry in entries if entry["resourceType"] == "ImagingStudy"]
        links = {link["relation"]: link["url"] for link in bundle["link"]}
        path = clinic.path_of(links["next"]) if "next" in links else ""
    return studies


def _instances(studies: Sequence[dict[str, Any]]) -> set[str]:
    """Return the SOP Instance UIDs that ImagingStudies show."""
    return {each["uid"] for study in studies for series in study["series"] for each in series.get("instance", [])}


def _retrieve(console: Console, clinic: Client, sent: Sent, studies: list[dict[str, Any]]) -> str:
    """Show one image in its forms; return its address."""
    study, series, instance = _chosen(sent, studies)
    address = f"/dicom-web/studies/{study_uid(study)}/series/{series['uid']}/instances/{instance['uid']}"
    original = sent.files[instance["uid"]].read_bytes()
    console.print(f"[bold]4. {CLINIC} retrieves[/] {sent.files[instance['uid']].name} in four forms")
    table = Table()
    for column in ("form", "bytes", "ratio", "ms", "what it is"):
        table.add_column(column, justify="left" if column in ("form", "what it is") else "right")
    same = "?"
    for form, path, accept in (
        ("received", f"{address}/received", "application/dicom"),
        ("stored", f"{address}/frames/1", 'multipart/related; type="application/octet-stream"; transfer-syntax=*'),
        ("native", address, f'multipart/related; type="application/dicom"; transfer-syntax={NATIVE}'),
        ("rendered", f"{address}/rendered", "image/png"),
    ):
        reply = clinic.get(path, accept).checked()
        body = _single(reply)
        if form == "received":
            same = "identical" if hashlib.sha256(body).digest() == hashlib.sha256(original).digest() else "DIFFERENT"
        what = {
            "received": f"the file as it was sent: {same}, SHA-256 {hashlib.sha256(body).hexdigest()[:16]}...",
            "stored": "frame 1 as lossless JPEG 2000, straight from the store",
            "native": "decoded: Explicit VR Little Endian",
            "rendered": "PNG, windowed for a screen",
        }[form]
        ratio = f"{len(original) / len(body):.2f}" if form in ("received", "stored") else ""
        table.add_row(form, f"{len(body):,}", ratio, f"{reply.seconds * 1e3:.1f}", what)
    console.print(table)
    if same != "identical":
        raise AppError(Category.FAULT, "the retrieved file is not the one that was sent", where="demo")
    _show_conditions(console, clinic, study)
    return address


def _chosen(sent: Sent, studies: list[dict[str, Any]]) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Return (study, series, instance) of the largest image that was sent just now in native form, or of any."""
    candidates = [
        (*_interest(sent.files[instance["uid"]]), n, k, m)
        for n, study in enumerate(studies)
        for k, series in enumerate(study["series"])
        for m, instance in enumerate(series.get("instance", []))
        if instance["uid"] in sent.files
    ]
    if not candidates:
        raise AppError(Category.NOT_FOUND, "none of the files that were sent is found again", where="demo")
    _, _, n, k, m = max(candidates)
    return studies[n], studies[n]["series"][k], studies[n]["series"][k]["instance"][m]


def _interest(path: Path) -> tuple[bool, int]:
    """Return a key that is larger for files more worth showing: CT and MR in native form first, then by size."""
    ds = pydicom.dcmread(path, force=True, specific_tags=["Modality", "Rows"])
    is_native = ds.file_meta.get("TransferSyntaxUID", "") in (NATIVE, "1.2.840.10008.1.2")
    return is_native and ds.get("Modality") in ("CT", "MR") and "Rows" in ds, path.stat().st_size


def _single(reply: Reply) -> bytes:
    """Return the body, or its only part where it is multipart."""
    kind = reply.headers.get("content-type", "")
    if not kind.startswith("multipart/"):
        return reply.body
    boundary = kind.split("boundary=")[1].split(";")[0].strip('"')
    (part,) = iter_parts(io.BytesIO(reply.body).read, boundary)
    return bytes(part.body)


def study_uid(study: dict[str, Any]) -> str:
    """Return the Study Instance UID of an ImagingStudy."""
    (uid,) = [each["value"] for each in study["identifier"] if each.get("system") == "urn:dicom:uid"]
    return str(uid.removeprefix("urn:oid:"))


def _show_conditions(console: Console, clinic: Client, study: dict[str, Any]) -> None:
    bundle = orjson.loads(clinic.get(f"/fhir/Observation?part-of=ImagingStudy/{study['id']}").checked().body)
    observations = [entry["resource"] for entry in bundle.get("entry", [])]
    if not observations:
        return
    console.print("   Its imaging conditions, as a FHIR Observation:")
    told = [f"{_label(each)} {_value(each)}" for each in observations[0].get("component", [])]
    console.print("   " + ", ".join(told[:14]) + (", ..." if len(told) > 14 else "") + "\n", style="dim")


def _label(component: dict[str, Any]) -> str:
    code = component["code"]
    return str(code.get("text") or code["coding"][0].get("display") or code["coding"][0]["code"])


def _value(component: dict[str, Any]) -> str:
    if "valueQuantity" in component:
        quantity = component["valueQuantity"]
        return f"{quantity['value']:g} {quantity.get('unit', '')}".strip()
    if "valueRange" in component:
        low, high = component["valueRange"]["low"], component["valueRange"]["high"]
        return f"{low['value']:g} to {high['value']:g} {high.get('unit', '')}".strip()
    value = component.get("valueCodeableConcept", {})
    return str(value.get("text") or component.get("valueString") or component.get("valueInteger") or "")


def _process(console: Console, clinic: Client, sent: Sent, studies: list[dict[str, Any]]) -> None:
    """Order processing of the largest MR or CT image that was sent."""
    candidates = [
        (series["modality"]["code"], sent.files[instance["uid"]].stat().st_size, n, k)
        for n, study in enumerate(studies)
        for k, series in enumerate(study["series"])
        for instance in series.get("instance", [])[:1]
        if series["modality"]["code"] in ("MR", "CT") and instance["uid"] in sent.files
    ]
    console.print(f"[bold]5. {CLINIC} orders processing[/] with a FHIR Task")
    if not candidates:
        console.print("   no MR or CT image was sent\n")
        return
    _, _, n, k = max(candidates)
    demo_order.order(console, clinic, study_uid(studies[n]), studies[n]["series"][k], OUTPUT)


def _show_sheet(console: Console, clinic: Client, studies: list[dict[str, Any]]) -> None:
    pictures: list[tuple[str, Image.Image]] = []
    for study in studies:
        for series in study["series"]:
            for instance in series.get("instance", [])[:1]:
                address = f"/dicom-web/studies/{study_uid(study)}/series/{series['uid']}/instances/{instance['uid']}"
                reply = clinic.get(f"{address}/thumbnail?viewport={SHEET_SIDE},{SHEET_SIDE}", "image/png")
                if reply.status == 200 and len(pictures) < SHEET_PICTURES:
                    caption = f"{series['modality']['code']} {study.get('started', '')[:10]}"
                    pictures.append((caption, Image.open(io.BytesIO(reply.body))))
    OUTPUT.mkdir(exist_ok=True)
    path = OUTPUT / "contact-sheet.png"
    contact_sheet(pictures, side=SHEET_SIDE).save(path)
    console.print(f"[bold]6. A contact sheet[/] of {len(pictures)} series: {path.resolve()}\n")


def _show_commands(console: Console, base: str, token: str, address: str) -> None:
    console.print(f"[bold]7. Try it yourself[/]: open {base}/ in a browser, or ask as the receiving subscriber:\n")
    for line in (
        f"export TOKEN={token}",
        f'curl -H "Authorization: Bearer $TOKEN" "{base}/fhir/ImagingStudy?modality=CT&_count=3&_pretty=true"',
        f'curl -H "Authorization: Bearer $TOKEN" "{base}/dicom-web/studies?limit=3"',
        f'curl -H "Authorization: Bearer $TOKEN" \\\n  "{base}{address}/metadata"',
        f'curl -H "Authorization: Bearer $TOKEN" -H "Accept: image/jpeg" -o image.jpg \\\n  "{base}{address}/rendered"',
    ):
        console.print(line, soft_wrap=True, markup=False, highlight=False)
