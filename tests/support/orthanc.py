"""Orthanc of Debian's packages as a peer that asks for a password, can be killed and comes back with what it had."""

import base64
import json
import subprocess
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from tests.benchmarks.servers import ORTHANC_PLUGINS, free_port, orthanc_program

USER = "server:secret word"
needs_orthanc = pytest.mark.skipif(
    not orthanc_program() or not list(ORTHANC_PLUGINS.glob("libOrthancDicomWeb*")),
    reason="Debian's packages orthanc and orthanc-dicomweb are not installed",
)


class Orthanc:
    """A running Orthanc; `kill` and `start` as often as wanted."""

    def __init__(self, folder: Path, servers: dict[str, Any] | None = None) -> None:
        """Start it; `servers` are DICOMweb servers that it knows, by name, as its settings have them."""
        folder.mkdir(parents=True, exist_ok=True)
        self.port = free_port()
        self._path, self._log = folder / "orthanc.json", folder / "orthanc.log"
        name, _, password = USER.partition(":")
        settings = {
            "Name": "peer", "StorageDirectory": str(folder / "storage"), "IndexDirectory": str(folder / "storage"),
            "HttpPort": self.port, "DicomServerEnabled": False, "RemoteAccessAllowed": False,
            "AuthenticationEnabled": True, "RegisteredUsers": {name: password}, "Plugins": [str(ORTHANC_PLUGINS)],
            "DicomWeb": {"Enable": True, "Servers": servers or {}}, "OverwriteInstances": False,
        }  # fmt: skip
        self._path.write_text(json.dumps(settings))
        self.start()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}/dicom-web"

    def start(self) -> None:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen([orthanc_program(), str(self._path)], stdout=log, stderr=log)
        deadline = time.monotonic() + 60
        while True:
            try:
                self.get("/system")
            except OSError:
                assert time.monotonic() < deadline, self._log.read_text()
                time.sleep(0.1)
            else:
                return

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait(60)

    def get(self, path: str, body: Any = None) -> bytes:
        """GET, or POST a body as JSON."""
        return self._asked(path, None if body is None else json.dumps(body).encode())

    def upload(self, file: bytes) -> None:
        """Give it a file."""
        self._asked("/instances", file)

    def _asked(self, path: str, data: bytes | None) -> bytes:
        secret = base64.b64encode(USER.encode()).decode()
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{path}", data, headers={"Authorization": f"Basic {secret}"}
        )
        with urllib.request.urlopen(request, timeout=20) as response:
            return bytes(response.read())

    def json(self, path: str) -> Any:
        return json.loads(self.get(path))

    def count(self) -> int:
        """How many instances it has."""
        return int(self.json("/statistics")["CountInstances"])

    def files(self) -> list[bytes]:
        """Every file that it has, as it keeps it."""
        return [self.get(f"/instances/{each}/file") for each in self.json("/instances")]
