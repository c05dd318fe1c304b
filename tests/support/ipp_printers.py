"""Paper printers to print on: CUPS' ippeveprinter, and one that answers whatever a test wants."""

import os
import shutil
import socket
import ssl
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from tests.support.film_printers import free_port

HAS_IPPEVEPRINTER = all(
    shutil.which(each, path=f"{os.environ['PATH']}:/usr/sbin") for each in ("ippeveprinter", "dbus-daemon")
)
NEEDS_IPPEVEPRINTER = "needs the packages cups-ipp-utils (ippeveprinter) and dbus-daemon"

# ippeveprinter wants a system bus, even to announce nothing on it.
_BUS = """<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig><listen>unix:path={path}</listen><auth>EXTERNAL</auth>
<policy context="default"><allow send_destination="*"/><allow receive_sender="*"/><allow own="*"/></policy></busconfig>
"""


@dataclass
class EverywherePrinter:
    """ippeveprinter: keeps what is printed in its spool folder."""

    spool: Path
    port: int
    process: subprocess.Popen[bytes]

    @property
    def uri(self) -> str:
        return f"ipp://127.0.0.1:{self.port}/ipp/print"

    def asked(self) -> dict[str, str]:
        """Return the attributes of the last job, as the printer hands them to its command."""
        lines = (self.spool.parent / "last-job").read_text().splitlines()
        return dict(line.split("=", 1) for line in lines if line.startswith("IPP_"))

    def documents(self) -> list[Path]:
        """Return what was printed, in the order of jobs."""
        files = (path for path in self.spool.iterdir() if path.suffix in (".pdf", ".pwg"))
        return sorted(files, key=lambda path: int(path.name.partition("-")[0]))

    def forget(self) -> None:
        for path in self.spool.iterdir():
            if path.is_file():
                path.unlink()

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait()


@contextmanager
def everywhere_printer(folder: Path, formats: str = "application/pdf,image/pwg-raster") -> Iterator[EverywherePrinter]:
    spool, port = folder / "spool", free_port()
    spool.mkdir(parents=True)
    # The path of a Unix socket is short, that of a test's folder need not be.
    bus_path = f"/tmp/ipp-bus-{port}"
    configuration = folder / "bus.conf"
    configuration.write_text(_BUS.format(path=bus_path))
    environment = {
        **os.environ,
        "DBUS_SYSTEM_BUS_ADDRESS": f"unix:path={bus_path}",
        "PATH": f"{os.environ['PATH']}:/usr/sbin",
    }
    printing = folder / "print"
    printing.write_text(f"#!/bin/sh\nenv > {folder}/last-job\nexit 0\n")
    printing.chmod(0o755)
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "env": environment}
    with subprocess.Popen(["dbus-daemon", f"--config-file={configuration}", "--nofork"], **quiet) as bus:
        try:
            _until(lambda: Path(bus_path).exists())
            program = ["ippeveprinter", "-k", "-d", str(spool), "-p", str(port), "-n", "localhost", "-r", "off"]
            program += ["-f", formats, "-c", str(printing), "test"]
            with subprocess.Popen(program, **quiet) as process:
                try:
                    _until(lambda: _listens(port))
                    yield EverywherePrinter(spool, port, process)
                finally:
                    process.terminate()
        finally:
            bus.terminate()
            Path(bus_path).unlink(missing_ok=True)


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _until(claim: Callable[[], bool]) -> None:
    for _ in range(200):
        if claim():
            return
        time.sleep(0.05)
    raise TimeoutError


# --- a printer whose answers are made by hand

INTEGER, BOOLEAN, ENUM, RESOLUTION, RANGE, KEYWORD, MIME, TEXT = 0x21, 0x22, 0x23, 0x32, 0x33, 0x44, 0x49, 0x41
OPERATION, JOB, END, PRINTER = b"\x01", b"\x02", b"\x03", b"\x04"


def attribute(tag: int, name: str, *values: bytes | int | str) -> bytes:
    """Return an attribute as it lies on the wire. Source: RFC 8010, 3.1."""
    out = b""
    for number, value in enumerate(values):
        raw = (
            value.encode() if isinstance(value, str) else struct.pack(">i", value) if isinstance(value, int) else value
        )
        key = name.encode() if number == 0 else b""
        out += struct.pack(">BH", tag, len(key)) + key + struct.pack(">H", len(raw)) + raw
    return out


def response(status: int, *groups: bytes) -> bytes:
    """Return a response of groups, each from its delimiter on."""
    said = OPERATION + attribute(0x47, "attributes-charset", "utf-8")
    return struct.pack(">BBHI", 2, 0, status, 1) + said + b"".join(groups) + END


USUAL = (
    attribute(ENUM, "printer-state", 3)
    + attribute(KEYWORD, "printer-state-reasons", "none")
    + attribute(BOOLEAN, "printer-is-accepting-jobs", b"\x01")
    + attribute(MIME, "document-format-supported", "application/pdf", "image/pwg-raster")
    + attribute(KEYWORD, "media-supported", "iso_a4_210x297mm", "na_letter_8.5x11in", "custom_min_1x1mm")
    + attribute(RESOLUTION, "pwg-raster-document-resolution-supported", struct.pack(">iib", 300, 300, 3))
    + attribute(KEYWORD, "pwg-raster-document-type-supported", "sgray_8")
    + attribute(KEYWORD, "print-scaling-supported", "auto", "none")
    + attribute(RANGE, "copies-supported", struct.pack(">ii", 1, 20))
)


@dataclass
class ScriptedPrinter:
    """A printer that answers by script: by operation, bytes, an HTTP status, or None to close the connection."""

    answers: dict[int, bytes | int | None] = field(default_factory=dict)
    asked: list[int] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)
    port: int = 0
    certificate: tuple[Path, Path] | None = None  # with its key: for TLS

    @property
    def uri(self) -> str:
        return f"{'ipps' if self.certificate else 'ipp'}://localhost:{self.port}/ipp/print"

    @contextmanager
    def running(self) -> Iterator["ScriptedPrinter"]:
        script = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                (operation,) = struct.unpack_from(">H", body, 2)
                script.asked.append(operation)
                script.bodies.append(body)
                answer = script.answers.get(operation, response(0, PRINTER + USUAL))
                if answer is None:
                    self.close_connection = True
                    return
                status, data = (answer, b"") if isinstance(answer, int) else (200, answer)
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: object) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        if self.certificate:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*self.certificate)
            server.socket = context.wrap_socket(server.socket, server_side=True)
        self.port = server.server_address[1]
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield self
        finally:
            server.shutdown()
            server.server_close()
            thread.join()
