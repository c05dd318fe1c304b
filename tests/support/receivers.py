"""A receiver of images and notifications on the loopback, written apart from the server; it behaves as it is told to.

`python -m tests.support.receivers PORT FILE` runs one in a process of its own that notes in FILE what comes.
"""

import io
import json
import re
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from pydicom import Dataset, dcmread

PLAIN = {"1.2.840.10008.1.2", "1.2.840.10008.1.2.1"}


@dataclass(frozen=True)
class Came:
    """A request as it came."""

    path: str
    headers: Mapping[str, str]
    body: bytes
    method: str = "POST"

    def files(self) -> list[bytes]:
        """The DICOM files of a multipart body."""
        boundary = re.search(r'boundary="?([^";]+)', self.headers["content-type"])
        assert boundary
        parts = (b"\r\n" + self.body).split(f"\r\n--{boundary[1]}".encode())[1:-1]
        return [part.partition(b"\r\n\r\n")[2] for part in parts]


@dataclass(frozen=True)
class Answer:
    status: int
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)


CLOSE, HANG = "close", "hang"
Behaviour = Callable[["Receiver", Came], Answer | str]


@dataclass
class Receiver:
    """What came to a running receiver. `behaviours` are taken one for each request; the last one stays."""

    behaviours: list[Behaviour]
    came: list[Came] = field(default_factory=list)
    kept: dict[str, bytes] = field(default_factory=dict)  # SOP Instance UID -> file
    deliveries: list[str] = field(default_factory=list)  # every instance that came, repetitions too
    address: str = ""
    released: threading.Event = field(default_factory=threading.Event)

    def answer(self, came: Came) -> Answer | str:
        self.came.append(came)
        behaviour = self.behaviours.pop(0) if len(self.behaviours) > 1 else self.behaviours[0]
        return behaviour(self, came)

    def keep(self, file: bytes) -> str:
        """Keep a file as a PACS does: the first of a UID stays."""
        uid = str(read(file).SOPInstanceUID)
        self.deliveries.append(uid)
        self.kept.setdefault(uid, file)
        return uid


def read(file: bytes) -> Dataset:
    return dcmread(io.BytesIO(file), stop_before_pixels=True)


def said(status: int, stored: list[str], failed: Mapping[str, int] | None = None) -> Answer:
    """Return the Store Instances Response Module in DICOM JSON (PS3.18 I.2)."""
    document: dict[str, Any] = {}
    if stored:
        items = [{"00081155": {"vr": "UI", "Value": [uid]}} for uid in stored]
        document["00081199"] = {"vr": "SQ", "Value": items}
    if failed:
        refusals = [
            {"00081155": {"vr": "UI", "Value": [uid]}, "00081197": {"vr": "US", "Value": [reason]}}
            for uid, reason in failed.items()
        ]
        document["00081198"] = {"vr": "SQ", "Value": refusals}
    return Answer(status, json.dumps(document).encode(), {"Content-Type": "application/dicom+json"})


def takes(receiver: Receiver, came: Came) -> Answer:
    """Keep everything."""
    return said(200, [receiver.keep(file) for file in came.files()])


def takes_half(reason: int) -> Behaviour:
    """Keep the first half (the larger one), and give this reason for the others."""

    def behave(receiver: Receiver, came: Came) -> Answer:
        files = came.files()
        half = (len(files) + 1) // 2
        stored = [receiver.keep(file) for file in files[:half]]
        return said(202, stored, {str(read(file).SOPInstanceUID): reason for file in files[half:]})

    return behave


def refuses(reason: int) -> Behaviour:
    return lambda receiver, came: said(409, [], {str(read(file).SOPInstanceUID): reason for file in came.files()})


def takes_plain(receiver: Receiver, came: Came) -> Answer:
    """Keep what is uncompressed; the rest has a syntax that is not supported (PS3.18 I.2.2, C122)."""
    stored, failed = [], {}
    for file in came.files():
        ds = read(file)
        if ds.file_meta.TransferSyntaxUID in PLAIN:
            stored.append(receiver.keep(file))
        else:
            failed[str(ds.SOPInstanceUID)] = 0xC122
    return said(202 if stored else 409, stored, failed)


def takes_up_to(instances: int) -> Behaviour:
    """Keep requests of few instances, and find others too large."""
    return lambda receiver, came: takes(receiver, came) if len(came.files()) <= instances else Answer(413)


def status(number: int, **headers: str) -> Behaviour:
    return lambda receiver, came: Answer(number, b"", {name.replace("_", "-"): each for name, each in headers.items()})


def closes(receiver: Receiver, came: Came) -> str:
    return CLOSE


def keeps_and_closes(receiver: Receiver, came: Came) -> str:
    """Keep everything and die before the answer."""
    takes(receiver, came)
    return CLOSE


def hangs(receiver: Receiver, came: Came) -> str:
    return HANG


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    receiver: Receiver

    def do_POST(self) -> None:
        headers = {name.lower(): each for name, each in self.headers.items()}
        answer = self.receiver.answer(Came(self.path, headers, self._body(), self.command))
        if answer == HANG:
            self.receiver.released.wait(60)
        if isinstance(answer, str):
            self.close_connection = True
            return
        self.send_response(answer.status)
        for name, each in {**answer.headers, "Content-Length": str(len(answer.body))}.items():
            self.send_header(name, each)
        self.end_headers()
        self.wfile.write(answer.body)

    do_GET = do_PUT = do_POST

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        held = bytearray()
        while size := int(self.rfile.readline(), 16):
            held += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return bytes(held)

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


class _Server(ThreadingHTTPServer):
    def handle_error(self, *_: Any) -> None:
        """A client that was killed is no error here."""


def served(receiver: Receiver, port: int = 0) -> _Server:
    server = _Server(("127.0.0.1", port), type("Handler", (_Handler,), {"receiver": receiver}))
    server.daemon_threads = True
    receiver.address = f"http://127.0.0.1:{server.server_port}"
    return server


@contextmanager
def receiving(*behaviours: Behaviour, port: int = 0) -> Iterator[Receiver]:
    """Run a receiver that behaves so, one request after the other."""
    receiver = Receiver(list(behaviours) or [takes])
    server = served(receiver, port)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield receiver
    finally:
        receiver.released.set()
        server.shutdown()
        server.server_close()
        thread.join()


def main(port: str, path: str) -> None:
    """Keep what comes, and note it in a file, a line for each instance that came."""

    def note(receiver: Receiver, came: Came) -> Answer:
        answer = takes(receiver, came)
        with Path(path).open("a") as file:
            file.writelines(f"{read(each).SOPInstanceUID}\n" for each in came.files())
        return answer

    served(Receiver([note]), int(port)).serve_forever()


if __name__ == "__main__":
    main(*sys.argv[1:])
