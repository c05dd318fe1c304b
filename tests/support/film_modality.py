"""A modality to print from: DCMTK's dcmpsprt, which makes films of images, and dcmprscu, which sends them."""

import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path

from pydicom import dcmread
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset

HAS_DCMTK = shutil.which("dcmpsprt") is not None and shutil.which("dcmprscu") is not None
NEEDS_DCMTK = "needs the package dcmtk (dcmpsprt, dcmprscu)"
TITLE = "MODALITY"
# What the configurations of DCMTK's programs begin with: folders of their own, their title, one printer.
DCMTK = """
[[GENERAL]]
[APPLICATION]
LogDirectory = {folder}
[PRINT]
Directory = {folder}/spool
[DATABASE]
Directory = {folder}/database
[LUT]
Directory = {folder}/lut
[NETWORK]
aetitle = {aetitle}
{tls}[[COMMUNICATION]]
[PRINTER]
"""
_CONFIGURATION = (
    DCMTK
    + """Aetitle = FHIRPRINT
Description = we
Hostname = localhost
Port = {port}
Type = PRINTER
DisplayFormat = 1,1\\2,2
FilmSizeID = 8INX10IN\\14INX17IN
MagnificationType = REPLICATE\\CUBIC
MediumType = PAPER\\CLEAR FILM
Supports12Bit = true
SupportsPresentationLUT = true
SupportsTrim = true
SupportsImageSize = true
Annotation = 2\\ANNOTATION\\1
{uses_tls}"""
)
# What either of DCMTK's programs needs for TLS; the files are those of `tests.support.certificates`.
TLS_GENERAL = """[TLS]
TLSDirectory = {tls}
CACertificateDirectory = {tls}/authorities
UsePEMFormat = true
"""
TLS_PEER = """UseTLS = true
TLSProfile = BCP195
PeerAuthentication = REQUIRE
Certificate = certificate.pem
PrivateKey = key.pem
"""


@dataclass(frozen=True)
class DcmtkModality:
    """One that prints on a print SCP at a port of this machine. `folder` is its own; `tls` that of its certificate."""

    folder: Path
    port: int
    tls: Path | None = None

    def __post_init__(self) -> None:
        for name in ("spool", "database", "lut"):
            (self.folder / name).mkdir(parents=True)
        tls = TLS_GENERAL.format(tls=self.tls) if self.tls else ""
        configuration = _CONFIGURATION.format(
            folder=self.folder, port=self.port, aetitle=TITLE, tls=tls, uses_tls=TLS_PEER if self.tls else ""
        )
        self._configuration.write_text(configuration)

    @property
    def _configuration(self) -> Path:
        return self.folder / "dcmpstat.cfg"

    def render(self, count: int, *options: str, images: Sequence[str] = ("CT_small.dcm",)) -> list[Path]:
        """Make stored prints of `count` of pydicom's images in turn; return all that were made, oldest first."""
        files = [str(get_testdata_file(name)) for name in islice(cycle(images), count)]
        program = ["dcmpsprt", "-q", "-c", str(self._configuration), "-p", "PRINTER", *options, *files]
        subprocess.run(program, check=True, capture_output=True, timeout=60)
        return sorted((self.folder / "database").glob("SP_*"), key=lambda path: path.stat().st_mtime_ns)

    def send(self, films: list[Path], *options: str) -> None:
        program = ["dcmprscu", "-c", str(self._configuration), "-p", "PRINTER", *options, *map(str, films)]
        said = subprocess.run(program, check=True, capture_output=True, text=True, timeout=60)
        assert "E: " not in said.stdout + said.stderr

    def hardcopies(self, film: Path) -> list[Dataset]:
        """Return the hardcopy images of a stored print, in the order of its boxes."""
        images = (dcmread(path) for path in film.parent.glob("HG_*"))
        by_uid = {image.SOPInstanceUID: image for image in images}
        boxes = dcmread(film).ImageBoxContentSequence
        return [by_uid[box.ReferencedImageSequence[0].ReferencedSOPInstanceUID] for box in boxes]
