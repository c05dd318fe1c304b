"""From what an order names to the images that it gets, and to what an algorithm is called with.

Hides searches, rights, the archive's rows and the decoding of frames. Each series is worked on by itself, except for
algorithms that compare two.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, islice
from typing import Any
from urllib.parse import parse_qsl

import numpy as np
from pydicom.dataset import Dataset

from fhir_server.access.principals import Principal
from fhir_server.model.query import Query, parse
from fhir_server.projection import imaging_study_id
from fhir_server.work.backing import Backing
from fhir_server.work.orders import Named, Order, restriction
from imaging import threads
from imaging.algorithm import Takes
from imaging.archive import Instance
from imaging.dataset_from_json import datasets_from_json
from imaging.errors import AppError, Category
from imaging.geometry import Image, Volume
from imaging.volume import TOGETHER, Tilt, image_from, volume_of

MOST_INSTANCES = 20_000  # in one order
SHOWING_S = 60.0  # that a search waits for images that were acknowledged to show
MOST_STUDIES = 500  # that a search of an order may find
_TABLE = "bulkdata/00283000/0/00283006"  # LUT Data of the first item of the Modality LUT Sequence
MOST_TOLD = 100  # series without pixels, one by one
OURS = "FHIR imaging server"  # Manufacturer of what processing made here


@dataclass(frozen=True, slots=True)
class Chosen:
    """The images of one series that an order works on; frames 1-based, none for all of them."""

    study_uid: str
    series_uid: str
    instances: tuple[Instance, ...]
    frames: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Choice:
    """What an order works on, series by series, and how many instances of which series it leaves out: no pixels."""

    series: tuple[Chosen, ...]
    without_pixels: Mapping[str, int]

    def left_out(self) -> list[str]:
        """Return in words what is left out, of up to `MOST_TOLD` series one by one."""
        told = [
            f"series {uid}: {count} instances without pixels were left out"
            for uid, count in islice(self.without_pixels.items(), MOST_TOLD)
        ]
        more = len(self.without_pixels) - len(told)
        return [*told, f"{more} more series: their instances without pixels were left out"] if more else told


def within_reach(server: Backing, principal: Principal, named: Named) -> list[Instance]:
    """Return the instances that are named, with pixels or without, by study and in reading order.

    Raises NOT_FOUND for what is not here or not within reach, INVALID for what is of another study than the named one,
    or of a patient to whom the order is not restricted, TOO_LARGE for too many.
    """
    is_part = named.series or named.instances
    found = _named(server, named) if is_part else _of_studies(server, principal, named)
    server.studies.require_reach(found, principal)
    return _of_patients(server, named, found)


def choose(server: Backing, principal: Principal, order: Order) -> Choice:
    """Return the chosen images by series, in the order in which series were named, else in reading order.

    Raises INVALID where no image is left, and what `within_reach` raises.
    """
    found = within_reach(server, principal, order)
    images = [each for each in found if each.number_of_frames]
    if not images:
        raise AppError(Category.INVALID, "none of the chosen instances has pixels", where="Task.input")
    by_series = [
        Chosen(study, series, tuple(group), order.frames)
        for (study, series), group in groupby(images, key=lambda each: (each.study_uid, each.series_uid))
    ]
    places = {uid: n for n, uid in enumerate(order.series)}
    return Choice(
        tuple(sorted(by_series, key=lambda each: places.get(each.series_uid, len(places)))),
        Counter(each.series_uid for each in found if not each.number_of_frames),
    )


def _of_patients(server: Backing, named: Named, found: list[Instance]) -> list[Instance]:
    """Return the images of the patients to whom an order is restricted; what a search finds beside them is left out."""
    patients = restriction(named, "Patient")
    if not patients:
        return found
    studies = {each.study_uid for each in found}
    for uid in studies:
        server.studies.refresh(uid)
    subjects = {uid: server.own.read("ImagingStudy", imaging_study_id(uid)).json()["subject"] for uid in studies}
    others = sorted(uid for uid, subject in subjects.items() if subject.get("reference") not in patients)
    if others and not named.search:
        message = "the order is for, or restricted to, other patients than this study's"
        raise AppError(Category.INVALID, message, where=others[0])
    return [each for each in found if each.study_uid not in others]


def _named(server: Backing, named: Named) -> list[Instance]:
    found = server.archive.chosen(series=named.series, instances=named.instances, limit=MOST_INSTANCES)
    here = {each.series_uid for each in found} | {each.sop_uid for each in found}
    lacking = [uid for uid in (*named.series, *named.instances) if uid not in here]
    if lacking:
        raise AppError(Category.NOT_FOUND, "no such series or instance", where=lacking[0])
    if named.studies:
        outside = [each.sop_uid for each in found if each.study_uid not in named.studies]
        if outside:
            raise AppError(Category.INVALID, "an instance is of another study than the order names", where=outside[0])
        idle = sorted(set(named.studies) - {each.study_uid for each in found})
        if idle:
            message = "of this study the order names no series or instance; leave it out, or name a part of it"
            raise AppError(Category.INVALID, message, where=idle[0])
    return found


def _of_studies(server: Backing, principal: Principal, named: Named) -> list[Instance]:
    uids = named.studies or tuple(_searched(server, principal, named.search))
    found: list[Instance] = []
    for uid in uids:
        found += server.archive.instances(uid)
        if len(found) > MOST_INSTANCES:
            raise AppError(Category.TOO_LARGE, f"more than {MOST_INSTANCES} instances; choose fewer", where="images")
    return found


def query_of(server: Backing, search: str) -> Query:
    """Return the search of an order. Raises INVALID for one that cannot be understood."""
    params = parse_qsl(search, keep_blank_values=True, max_num_fields=100)
    return parse("ImagingStudy", params, base_url=server.fhir_url, limits=server.search_limits)


def _searched(server: Backing, principal: Principal, search: str) -> list[str]:
    """Return the ids, which are the UIDs, of the studies that a search finds for the principal."""
    query = query_of(server, search)
    server.studies.show_all(SHOWING_S)
    found: list[str] = []
    while True:
        page = server.repository_for(principal).search(query)
        found += [each.id for each in page.matches]
        if len(found) > MOST_STUDIES:
            message = f"the search finds more than {MOST_STUDIES} studies; narrow it"
            raise AppError(Category.TOO_LARGE, message, where="search")
        if not page.next_cursor:
            break
        query = replace(query, cursor=page.next_cursor)
    if not found:
        raise AppError(Category.NOT_FOUND, "the search finds no study", where="search")
    return found


def is_made_here(datasets: Sequence[Dataset]) -> bool:
    """Say whether images are results of processing by such a server."""
    return all(ds.get("Manufacturer") == OURS for ds in datasets)


class Loaded:
    """The images of a series, read: data sets without pixels, and frames on demand."""

    def __init__(self, server: Backing, chosen: Chosen) -> None:
        self._archive = server.archive
        self._chosen = chosen
        self.datasets = list(datasets_from_json(server.archive.documents([each.sop_uid for each in chosen.instances])))
        for ds, instance in zip(self.datasets, chosen.instances, strict=True):
            self._complete(ds, instance)

    def _complete(self, ds: Dataset, instance: Instance) -> None:
        """Fetch the table of a modality LUT, without which pixels have no values, where it lies aside as bulk data."""
        for item in (ds.get("ModalityLUTSequence") or [])[:1]:
            if item.get("LUTDescriptor") and "LUTData" not in item:
                # In a sequence of its own: other images may share this one, and have another table.
                item = Dataset(dict(item.items()))
                item.add_new("LUTData", "OW", bytes(self._archive.bulkdata(instance, _TABLE)))
                ds.add_new("ModalityLUTSequence", "SQ", [item])

    def images(self, region: tuple[int, int, int, int] | None) -> list[Image]:
        """Return every chosen frame as an image, in reading order."""
        places = [
            (ds, instance, number)
            for ds, instance in zip(self.datasets, self._chosen.instances, strict=True)
            for number in self._numbers(instance)
        ]
        return [crop_image(each, region) for each in threads.together(self._images, places, TOGETHER)]

    def volume(self, region: tuple[int, int, int, int] | None, tilt: Tilt) -> Volume:
        """Return the volume that the chosen frames make."""

        def read(places: Sequence[tuple[int, int]]) -> Iterator[Any]:
            frames = [(self._chosen.instances[index], number) for index, number in places]
            return (each.pixels for each in self._archive.pixels_of(frames))

        for each in self._chosen.instances:
            self._numbers(each)
        return crop_volume(volume_of(self.datasets, read, frames=self._chosen.frames, tilt=tilt), region)

    def _images(self, places: Sequence[tuple[Dataset, Instance, int]]) -> list[Image]:
        frames = self._archive.pixels_of([(instance, number) for _, instance, number in places])
        return [image_from(ds, each.pixels, frame=n) for (ds, _, n), each in zip(places, frames, strict=True)]

    def _numbers(self, instance: Instance) -> Sequence[int]:
        """Return the numbers of the chosen frames of an instance. Raises INVALID for one that it has not."""
        beyond = [n for n in self._chosen.frames if n > instance.number_of_frames]
        if beyond:
            message = f"frame {beyond[0]} asked, the instance has {instance.number_of_frames}"
            raise AppError(Category.INVALID, message, where=instance.sop_uid)
        return self._chosen.frames or range(1, instance.number_of_frames + 1)


def inputs_for(takes: Takes, loaded: Sequence[Loaded], order: Order, tilt: Tilt) -> list[tuple[Any, ...]]:
    """Return the arguments of each call of an algorithm that takes this. Raises INVALID for a pair that is none."""
    if takes is Takes.PAIR:
        if len(loaded) != 2:
            message = f"two series are compared, the first one staying in place; {len(loaded)} were named"
            raise AppError(Category.INVALID, message, where="series")
        return [tuple(each.volume(order.region, tilt) for each in loaded)]
    (one,) = loaded
    if takes is Takes.VOLUME:
        return [(one.volume(order.region, tilt),)]
    images = one.images(order.region)
    return [(tuple(images),)] if takes is Takes.IMAGES else [(each,) for each in images]


def crop_image(image: Image, region: tuple[int, int, int, int] | None) -> Image:
    """Return the part of an image within left, top, width, height. Raises INVALID where that is not inside."""
    if region is None:
        return image
    array, (left, top) = _cut(image.array, region)
    affine = None if image.affine is None else image.affine @ _shift(0, top, left)
    return replace(image, array=array, affine=affine)


def crop_volume(volume: Volume, region: tuple[int, int, int, int] | None) -> Volume:
    """Return the part of every slice within left, top, width, height. Raises INVALID where that is not inside."""
    if region is None:
        return volume
    array, (left, top) = _cut(volume.array, region)
    padding = None if volume.padding is None else _cut(volume.padding, region)[0]
    return replace(volume, array=array, affine=volume.affine @ _shift(0, top, left), padding=padding)


def _cut(array: Any, region: tuple[int, int, int, int]) -> tuple[Any, tuple[int, int]]:
    left, top, width, height = region
    rows, columns = array.shape[-2:]
    if left + width > columns or top + height > rows:
        message = f"{left},{top},{width},{height} is not within {columns} columns and {rows} rows"
        raise AppError(Category.INVALID, message, where="region")
    return np.ascontiguousarray(array[..., top : top + height, left : left + width]), (left, top)


def _shift(slices: int, rows: int, columns: int) -> Any:
    shift = np.eye(4)
    shift[:3, 3] = slices, rows, columns
    return shift
