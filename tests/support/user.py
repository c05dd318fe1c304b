"""Somebody at the terminal of a machine with a server, who also has a subscriber's token."""

import subprocess
import urllib.request
from dataclasses import dataclass
from io import BytesIO
from typing import Any, Self

import numpy as np
import orjson
from numpy.typing import NDArray
from pydicom import dcmread

from tests.support.serving import Served, fhir_imaging

RIGHTS = ("--register-images", "--receive-images", "--order-processing")


@dataclass(frozen=True)
class User:
    """Runs commands on the data of a server, and speaks to its doors."""

    served: Served
    token: str
    environment: dict[str, str]

    @classmethod
    def let_in(cls, served: Served, name: str = "radiology", **environment: str) -> Self:
        """Return the user of a new subscriber that may send, fetch and order."""
        made = cls(served, "", {"COLUMNS": "200", **environment})
        added = made.run("subscriber", "add", name, *RIGHTS)
        assert added.returncode == 0, added.stderr
        return cls(served, made.run("token", name).stdout.strip(), made.environment)

    def run(self, *words: object) -> "subprocess.CompletedProcess[str]":
        """Run a command of `fhir-imaging` to its end."""
        options = () if words[0] == "algorithms" else ("--data-dir", self.served.data_dir)
        return fhir_imaging(*words, *options, **self.environment)

    def ask(self, method: str, path: str, body: Any = None, kind: str = "application/fhir+json") -> Any:
        """Send a request and return the JSON of the answer, which must be a success."""
        return orjson.loads(self.fetch(method, path, body, {"Content-Type": kind}))

    def fetch(self, method: str, path: str, body: Any, headers: dict[str, str]) -> bytes:
        data = body if isinstance(body, bytes) or body is None else orjson.dumps(body)
        sent = {"Authorization": f"Bearer {self.token}", **headers}
        request = urllib.request.Request(f"{self.served.base_url}{path}", data, sent, method=method)
        with urllib.request.urlopen(request, timeout=20) as answer:
            return bytes(answer.read())

    def volume(self, study: str, series: str) -> NDArray[np.float64]:
        """Return the values of the slices of a series, in their order along z; [slice, row, column]."""
        address = f"/dicom-web/studies/{study}/series/{series}"
        metadata = self.ask("GET", f"{address}/metadata")
        placed = sorted((each["00200032"]["Value"][2], each["00080018"]["Value"][0]) for each in metadata)
        planes = []
        for _, uid in placed:
            file = self.fetch("GET", f"{address}/instances/{uid}/received", None, {"Accept": "application/dicom"})
            ds = dcmread(BytesIO(file))
            planes.append(ds.pixel_array * float(ds.RescaleSlope) + float(ds.RescaleIntercept))
        return np.stack(planes)
