"""De-identification by the Basic Profile."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Annotated

from imaging.algorithm import Algorithm, Code, Result, Takes
from imaging.algorithms import algorithms
from imaging.deidentify import NAME, VERSION, Options, PrivateElement, Rectangle, deidentify
from imaging.errors import AppError, Category
from imaging.layout import Buffer
from imaging.parameters import Says


@algorithms.register(NAME)
@dataclass(frozen=True)
class DeIdentification(Algorithm):
    """Make copies of images in which nobody is named, in a new study: Basic Profile of PS3.15, and options of it.

    UIDs, Patient IDs and names are replaced by pseudonyms, the same ones in all orders for one recipient. Refuses
    structured reports, documents, and images that often have text burned in, unless `clean_pixels` says that somebody
    has looked.
    """

    clean_pixels: Annotated[
        bool, Says("burn out the rectangles given; somebody has looked, and nothing else in the pixels identifies")
    ] = False
    modified_dates: Annotated[bool, Says("shift dates by a number of days of each patient's own, not remove them")] = (
        False
    )
    patient_characteristics: Annotated[bool, Says("keep sex, age, size, weight and the like")] = False
    device_identity: Annotated[bool, Says("keep serial numbers and names of devices")] = False
    rectangle: Annotated[
        tuple[str, ...], Says("burned out: left,top,width,height;frames=1,3-5;series=UID, the last two if wanted")
    ] = ()
    safe_private: Annotated[tuple[str, ...], Says("private attribute that is safe: group,offset,creator")] = ()

    version = VERSION
    title = "De-identification"
    source = "PS3.15 E.1 to E.3 (Basic Application Level Confidentiality Profile)"
    takes = Takes.FILES
    derivation = Code("113100", "DCM", "Basic Application Confidentiality Profile")

    def __post_init__(self) -> None:
        """Raise INVALID for rectangles and private attributes that are none, naming the parameter."""
        for name, read in (("rectangle", Rectangle.from_text), ("safe_private", PrivateElement.from_text)):
            for text in getattr(self, name):
                try:
                    read(text)
                except AppError as error:
                    raise AppError(error.category, error.message, where=name) from None
        if self.rectangle and not self.clean_pixels:
            raise AppError(Category.INVALID, "is burned out with clean_pixels only", where="rectangle")

    def __call__(self, files: Iterable[Buffer], key: bytes) -> Result:
        """Return the copies of whole files, made while they are taken; pseudonyms follow from the key."""
        return Result(files=self._copies(files, key))

    def _copies(self, files: Iterable[Buffer], key: bytes) -> Iterator[bytes]:
        options = Options(self.clean_pixels, self.modified_dates, self.patient_characteristics, self.device_identity)
        rectangles = [Rectangle.from_text(each) for each in self.rectangle]
        safe = [PrivateElement.from_text(each) for each in self.safe_private]
        for file in files:
            yield deidentify(bytes(file), key, options, rectangles=rectangles, safe_private=safe)
