"""Starts the servers that are compared: this one, and Orthanc where Debian's packages are installed."""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from tests.benchmarks.client import Target, get

JPEG_2000_LOSSLESS = "1.2.840.10008.1.2.4.90"
START_WITHIN_S = 60
ORTHANC_PLUGINS = Path("/usr/share/orthanc/plugins")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def ours(folder: Path, *settings: str) -> Iterator[Target]:
    """Run `fhir-imaging serve` on a new store, with a client that may register and receive images."""
    port = free_port()
    store = ["--data-dir", str(folder / "store")]
    command = [sys.executable, "-m", "fhir_server.cli"]
    options = [part for setting in settings for part in ("--set", setting)]
    with (folder / "server.log").open("wb") as log:
        server = subprocess.Popen([*command, "serve", "--port", str(port), *store, *options], stdout=log, stderr=log)
    try:
        wait(Target("probe", port, ""), "/health/ready")
        add = [*command, "subscriber", "add", "bench", "--register-images", "--receive-images", *store]
        subprocess.run(add, check=True, stdout=subprocess.DEVNULL)
        token = subprocess.run([*command, "token", "bench", *store], check=True, capture_output=True, text=True).stdout
        yield Target("this server", port, "/dicom-web", token.strip())
    finally:
        server.terminate()
        server.wait(60)


@contextlib.contextmanager
def orthanc(folder: Path, *, transcode: bool) -> Iterator[Target]:
    """Run Orthanc with its DICOMweb plugin, without fsync, as received or transcoding to JPEG 2000 on ingest."""
    port = free_port()
    folder.mkdir(parents=True, exist_ok=True)
    settings = {
        "Name": "peer", "StorageDirectory": str(folder / "storage"), "IndexDirectory": str(folder / "storage"),
        "HttpPort": port, "DicomPort": free_port(), "RemoteAccessAllowed": False, "AuthenticationEnabled": False,
        "SyncStorageArea": False, "Plugins": [str(ORTHANC_PLUGINS)], "DicomWeb": {"Enable": True},
    }  # fmt: skip
    if transcode:
        settings["IngestTranscoding"] = JPEG_2000_LOSSLESS
    path = folder / "orthanc.json"
    path.write_text(json.dumps(settings))
    with (folder / "orthanc.log").open("wb") as log:
        server = subprocess.Popen([orthanc_program(), str(path)], stdout=log, stderr=log)
    try:
        wait(Target("probe", port, ""), "/system")
        yield Target("Orthanc" + (" with JPEG 2000" if transcode else ""), port, "/dicom-web")
    finally:
        server.terminate()
        server.wait(60)


def orthanc_program() -> str:
    """Return the path of Orthanc, or "" where it is not installed."""
    return shutil.which("Orthanc") or next((p for p in ("/usr/sbin/Orthanc",) if os.access(p, os.X_OK)), "")


def wait(target: Target, path: str) -> None:
    """Wait until a server answers a path, counted from its root."""
    probe = replace(target, base="", token="")
    deadline = time.monotonic() + START_WITHIN_S
    while True:
        try:
            with contextlib.closing(probe.connect()) as connection:
                get(connection, probe, path, "application/json")
        except (OSError, RuntimeError):
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)
        else:
            return
