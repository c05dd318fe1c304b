"""What an algorithm is: declared parameters, one kind of input, one pure call, and a result that says its units."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from imaging.geometry import Image, Matrix, Source, Volume
from imaging.parameters import Parameter, build, check, describe


class Takes(StrEnum):
    """What an algorithm is called with."""

    IMAGE = "image"  # one Image; of a series each image by itself
    IMAGES = "images"  # a tuple of Images
    VOLUME = "volume"  # one Volume
    PAIR = "pair"  # two Volumes: the fixed one, the moving one
    FILES = "files"  # the files of a series as they were received, and a secret from which pseudonyms follow


@dataclass(frozen=True, slots=True)
class Code:
    """A coded concept. Source: PS3.16."""

    value: str
    scheme: str
    meaning: str


@dataclass(frozen=True, slots=True)
class Measurement:
    """A measured number with its UCUM unit and what was measured."""

    name: str
    value: float
    unit: str
    code: Code


@dataclass(frozen=True, slots=True, eq=False)
class Segmentation:
    """Voxels that belong to something.

    mask    [slice, row, column], bool
    affine  4x4, from (slice, row, column, 1) to the patient's (x, y, z, 1) in mm
    """

    mask: NDArray[np.bool_]
    affine: Matrix
    label: str
    frame_of_reference_uid: str = ""
    sources: tuple[Source, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class Result:
    """What an algorithm made.

    transform  4x4 in mm, LPS: from the fixed volume's positions to those of the moving volume; None unless registered
    lost       samples that were clipped, or lay outside the input
    files      whole instances, of a study of their own
    """

    images: tuple[Image, ...] = ()
    volumes: tuple[Volume, ...] = ()
    segmentations: tuple[Segmentation, ...] = ()
    measurements: tuple[Measurement, ...] = ()
    transform: Matrix | None = None
    lost: int = 0
    files: Iterable[bytes] = ()


class Algorithm:
    """One algorithm with the values of its parameters: a frozen dataclass in a file of its own.

    The docstring says what it does, in units and formulas; its first line is the description. It raises INVALID for
    parameters that do not fit the input, and UNSUPPORTED for input that it cannot work on rightly.

    version     changes whenever the same input and parameters give other numbers; a part of the UIDs of results
    source      paper, standard or library that the method is from
    derivation  code of PS3.16 CID 7203 that says what was done to pixels
    takes_tilted  whether slices may be shifted against each other, as with a tilted gantry
    """

    version: ClassVar[str]
    title: ClassVar[str]
    source: ClassVar[str]
    takes: ClassVar[Takes]
    derivation: ClassVar[Code]
    takes_tilted: ClassVar[bool] = False

    def __call__(self, *args: Any, **kwargs: Any) -> Result:
        """Return the result for the input that `takes` names."""
        raise NotImplementedError

    def performed(self) -> Code:
        """Return the derivation code for these parameters."""
        return self.derivation

    @classmethod
    def parameters(cls) -> tuple[Parameter, ...]:
        """Return what can be set, with units and ranges."""
        return describe(cls)

    @classmethod
    def build(cls, values: Mapping[str, Any]) -> Self:
        """Return the algorithm with these parameters. Raises INVALID, naming the parameter."""
        return build(cls, values)

    @classmethod
    def check(cls, values: Mapping[str, Any]) -> None:
        """Raise INVALID for parameters with which no image could be processed; those that images state may lack."""
        check(cls, values)

    @classmethod
    def presets(cls, datasets: Sequence[Dataset]) -> dict[str, Any]:
        """Return parameters that the images, at least one, state themselves; what is ordered wins over them."""
        return {}

    @classmethod
    def description(cls) -> str:
        """Return the first line of the docstring."""
        return (cls.__doc__ or "").strip().partition("\n")[0]
