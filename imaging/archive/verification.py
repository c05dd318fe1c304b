"""Everything that is stored is read, hashed and decoded again, and what is wrong is told; nothing is changed."""

import hashlib
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from pymongo.database import Database

from imaging.archive.catalogue import INSTANCE_FIELDS, Document, Instance, instance_from_row
from imaging.archive.files import RECEIVED, STORED, Files
from imaging.archive.frames import Frames
from imaging.errors import AppError, Category


@dataclass(frozen=True, slots=True)
class Finding:
    """What is wrong with one instance."""

    sop_uid: str
    problem: str

    def __str__(self) -> str:
        return f"{self.sop_uid}: {self.problem}"


def verify(
    database: Database[Document], files: Files, frames: Frames, progress: Callable[[int, int], None]
) -> Iterator[Finding]:
    """Yield what is wrong with each instance; `progress` is told how many of how many were checked."""
    total = database.instances.count_documents({})
    for done, each in enumerate(database.instances.find({}, {"_id": 1}).sort("_id"), 1):
        if row := database.instances.find_one({"_id": each["_id"]}, INSTANCE_FIELDS):  # else deleted meanwhile
            for problem in _problems(instance_from_row(row), files, frames):
                yield Finding(each["_id"], problem)
        progress(done, max(done, total))


def _problems(instance: Instance, files: Files, frames: Frames) -> Iterator[str]:
    checks: dict[str, Callable[[], object]] = {
        "stored": lambda: deque(files.one(instance, STORED), maxlen=0),
        "pixels": lambda: _check_pixels(instance, frames),
        "received": lambda: deque(files.one(instance, RECEIVED), maxlen=0),
    }
    for what, check in checks.items():
        try:
            check()
        except AppError as error:
            yield f"{what}: {error.message}"


def _check_pixels(instance: Instance, frames: Frames) -> None:
    if instance.frames is None or not instance.sha256_pixels:
        return
    digest = hashlib.sha256()
    for frame in frames.pixels([(instance, number) for number in range(1, len(instance.frames) + 1)]):
        digest.update(np.ascontiguousarray(frame.pixels).data)
    if digest.hexdigest() != instance.sha256_pixels:
        raise AppError(Category.FAULT, "decoded pixels do not match their digest", where=instance.sop_uid)
