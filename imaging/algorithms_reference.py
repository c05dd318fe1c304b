"""The reference page of the algorithms, written from their registry.

`python -m imaging.algorithms_reference > docs/reference/algorithms.md` writes it anew; a test compares the two.
"""

import inspect
import sys

from imaging.algorithm import Algorithm, Takes
from imaging.algorithms import algorithms
from imaging.algorithms_pictures import caption
from imaging.parameters_page import table

_TAKES = {
    Takes.IMAGE: "one image; of a series each image by itself",
    Takes.IMAGES: "images in their order",
    Takes.VOLUME: "a volume",
    Takes.PAIR: "two volumes: the fixed one, the moving one",
    Takes.FILES: "whole images, and gives whole images of a new study",
}

_INTRODUCTION = """# Algorithms

What images can be processed with. This page is written from `imaging/algorithms/` by
`python -m imaging.algorithms_reference`.

* **Units** are UCUM codes; `1` is a ratio or a count. Units of the image are those that rescaling gives, such as
  Hounsfield units. Positions and directions are x to the left, y to the back, z to the head of the patient (LPS).
* **Ranges** include their ends. A parameter without default must be given; `the images'` is what the images
  state, and must be given where they do not.
* **A volume** is a stack of parallel slices of one size at equal distances, classic or enhanced. It is refused, with
  the reason, when slices are missing, doubled, shifted against each other (gantry tilt; some algorithms take such
  stacks), point into different directions, or lie at distances that differ by more than 2%.
  Nothing is filled in or resampled unasked.
* **Padding** (Pixel Padding Value) gets the darkest of the other values. It is neither segmented nor measured, and
  does not count in slabs.
* **Low values that are shown white** (MONOCHROME1) stay so in results; display values are 1 for white in any case.
* **Version** changes whenever the same images and parameters give other numbers.
* **Results** are 16-bit integers with slope and intercept: exact for whole numbers, otherwise within half of 1/65535 of
  the range of values (PET: 1/32767 of the largest). CT, MR and PET images with a place in the patient
  stay what they are, all others become Secondary Capture. Segmentations are DICOM SEG, on the frames of the images
  where they lie there; measurements are DICOM SR (TID 1500) that refers to the segment; a transform is a Spatial
  Registration object whose matrix leads from the moving images into the frame of reference of the fixed ones.
* **Pictures** show before and after; `python -m imaging.algorithms_pictures` makes them by running the algorithms.
* **De-identification** has [a page of its own](de-identification.md) as well.
"""


def reference_page() -> str:
    """Return the page in Markdown: an introduction, then a section for each algorithm by name."""
    return _INTRODUCTION + "".join(_section(name, algorithms.get(name)) for name in algorithms)


def _section(name: str, algorithm: type[Algorithm]) -> str:
    code = algorithm.derivation
    lines = [
        "",
        f"## `{name}`",
        "",
        f"**{algorithm.title}**, version {algorithm.version}",
        "",
        inspect.getdoc(algorithm) or "",
        "",
        *_picture(name),
        f"* Takes {_TAKES[algorithm.takes]}{'; a tilted gantry as well' if algorithm.takes_tilted else ''}.",
        f"* Source: {algorithm.source}.",
        f"* Derivation code: {code.value} ({code.scheme}) {code.meaning}.",
        "",
        *table(algorithm.parameters()),
        "",
    ]
    return "\n".join(lines)


def _picture(name: str) -> list[str]:
    told = caption(name)
    return [f"![{name}: before and after](../images/algorithms/{name}.png)", "", f"*{told}*", ""] if told else []


if __name__ == "__main__":
    sys.stdout.write(reference_page())
