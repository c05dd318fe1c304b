"""A study or a part of it as a DICOM file-set: numbered files and a DICOMDIR, made while they are sent.

The files are given in the forms that were negotiated, as in a multipart answer. The directory comes last: nothing waits
for it, and readers of ZIP archives find it all the same. Sources: PS3.10 section 8, PS3.12 annex V, PS3.18 8.6.1.3.
"""

from collections.abc import Iterable, Iterator
from itertools import groupby
from uuid import UUID

from fhir_server.web.dicom_door import Images
from fhir_server.web.dicom_forms import syntax_of
from imaging import dicomdir
from imaging.archive import Instance, size_of_file
from imaging.syntaxes import is_encapsulated
from imaging.zipped import Entry

Chosen = tuple[Instance, str]  # an instance and the form it is given in, as the archive calls it


def in_forms(images: Images, chosen: Iterable[Chosen]) -> Iterator[tuple[Instance, str, Iterable[bytes]]]:
    """Yield each instance with its form and the pieces of its file, prepared as the archive does for one form."""
    for form, group in groupby(chosen, key=lambda each: each[1]):
        for instance, pieces in images.files((instance for instance, _ in group), form):
            yield instance, form, pieces


def file_set(images: Images, chosen: Iterable[Chosen], documents: Iterable[bytes], tag: str) -> Iterator[Entry]:
    """Yield the files of the set.

    documents   DICOM JSON of each
    tag         128 bits in hex that no other set has, of which its UID is made
    """
    directory = dicomdir.Directory(f"2.25.{UUID(tag, version=5).int}")
    series: dict[str, int] = {}
    for number, ((instance, form, pieces), document) in enumerate(
        zip(in_forms(images, chosen), documents, strict=True), start=1
    ):
        folder = series.setdefault(instance.series_uid, len(series) + 1)
        path = ("DICOM", f"S{folder:07d}", f"I{number:07d}")
        syntax = syntax_of(instance, form)
        has_pixels = instance.layout is not None
        directory.add(
            dicomdir.File(path, instance.sop_class_uid, instance.sop_uid, syntax, has_pixels=has_pixels), document
        )
        yield Entry("/".join(path), size_of_file(instance), pieces, is_dense=has_pixels and is_encapsulated(syntax))
    yield Entry(dicomdir.NAME, 0, directory.pieces())
