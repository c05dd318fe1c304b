"""The images of an order from this server's own archive."""

from collections.abc import Mapping
from typing import Any

import orjson
from numpy.typing import NDArray

from fhir_server.hardcopy.images import MOST_SHOTS
from imaging.archive import Archive, Instance
from imaging.errors import AppError, Category


class StoredImages:
    """`Images` of an archive; who may see them is asked by the caller."""

    def __init__(self, archive: Archive) -> None:
        self._archive = archive

    def of_study(self, study_uid: str) -> list[Instance]:
        """Return the instances of a study in reading order."""
        return self._archive.instances(study_uid)

    def of_series(self, series_uid: str) -> list[Instance]:
        """Return the instances of a series in reading order."""
        found = self._archive.chosen(series=[series_uid], limit=MOST_SHOTS)
        if not found:
            raise AppError(Category.NOT_FOUND, "no such series", where=series_uid)
        return found

    def of_instance(self, sop_uid: str) -> Instance:
        """Return one instance."""
        found = self._archive.chosen(instances=[sop_uid], limit=1)
        if not found:
            raise AppError(Category.NOT_FOUND, "no such instance", where=sop_uid)
        return found[0]

    def document(self, found: Instance) -> Mapping[str, Any]:
        """Return the DICOM JSON of an instance."""
        ((_, json),) = self._archive.metadata(found.study_uid, found.series_uid, found.sop_uid)
        document: dict[str, Any] = orjson.loads(json)
        return document

    def bulkdata(self, found: Instance, uri: str) -> bytes:
        """Return a bulk data value."""
        return bytes(self._archive.bulkdata(found, uri.removeprefix("@/")))

    def pixels(self, found: Instance, frame: int) -> tuple[NDArray[Any], str]:
        """Return a decoded frame and its Photometric Interpretation."""
        decoded = self._archive.pixels(found, frame)
        return decoded.pixels, decoded.photometric_interpretation
