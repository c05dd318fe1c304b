"""Standardised uptake values of PET."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Annotated, Any, Final

import numpy as np
from pydicom.dataset import Dataset
from pydicom.valuerep import DT

from imaging.algorithm import Algorithm, Code, Result, Takes
from imaging.algorithms import algorithms
from imaging.errors import AppError, Category
from imaging.geometry import Volume
from imaging.parameters import Says

_SAME_DAY_S: Final = 3 * 3600.0  # a longer half-life lets a patient be scanned days after the administration


@algorithms.register("suv")
@dataclass(frozen=True)
class Suv(Algorithm):
    """Turn activity concentration (Bq/ml) into standardised uptake values by body weight (g/ml).

    SUV = activity x weight in g / (dose x 2^(-elapsed / half-life)). The images state dose, half-life, weight and the
    elapsed time; they are taken from there unless given. With Decay Correction START the time from administration to
    the start of the series counts, with ADMIN it is 0. The time must be given without decay correction, where the
    start of the series is later than that of an acquisition in it (a sign of later processing) or an acquisition is not
    timed, and where no date of administration is stated for a half-life of more than 3 h. Refuses other units than
    Bq/ml.
    """

    weight_kg: Annotated[float, Says("weight of the patient", unit="kg", low=0.2, high=700, is_stated=True)]
    dose_bq: Annotated[float, Says("administered activity", unit="Bq", low=1e3, high=1e12, is_stated=True)]
    half_life_s: Annotated[float, Says("half-life of the radionuclide", unit="s", low=1, high=1e8, is_stated=True)]
    elapsed_s: Annotated[
        float,
        Says("from administration to the time that images are corrected to", unit="s", low=0, high=1e7, is_stated=True),
    ]

    version = "1"
    title = "PET standardised uptake value (body weight)"
    source = "QIBA FDG-PET/CT profile 1.13, appendix G; PS3.3 C.8.9.1"
    takes = Takes.VOLUME
    takes_tilted = True
    derivation = Code("suvbw", "99FHIRIMG", "Standardised uptake value by body weight")

    def __call__(self, volume: Volume) -> Result:
        """Return the volume in g/ml."""
        if volume.unit != "Bq/ml":
            raise AppError(Category.UNSUPPORTED, "the images are not in Bq/ml (Units BQML)", where="(0054,1001)")
        dose_bq = self.dose_bq * 2 ** (-self.elapsed_s / self.half_life_s)
        factor = self.weight_kg * 1000 / dose_bq
        array = np.asarray(volume.array * np.float64(factor), dtype=np.float32)
        return Result(volumes=(replace(volume, array=array, unit="g/ml"),))

    @classmethod
    def presets(cls, datasets: Sequence[Dataset]) -> dict[str, Any]:
        """Return what the images state; of several tracers nobody knows which one is meant."""
        tracers = datasets[0].get("RadiopharmaceuticalInformationSequence") or []
        tracer = tracers[0] if len(tracers) == 1 else Dataset()
        stated = {
            "weight_kg": datasets[0].get("PatientWeight"),
            "dose_bq": tracer.get("RadionuclideTotalDose"),
            "half_life_s": tracer.get("RadionuclideHalfLife"),
            "elapsed_s": _elapsed_s(datasets, tracer),
        }
        return {name: float(value) for name, value in stated.items() if value is not None and value != ""}


def _elapsed_s(datasets: Sequence[Dataset], tracer: Dataset) -> float | None:
    corrections = {ds.get("DecayCorrection") for ds in datasets}
    if corrections == {"ADMIN"}:
        return 0.0
    # Where the patient is moved through the scanner, the first image is not always the one that was acquired first.
    acquired = [_moment(ds, "Acquisition") for ds in datasets]
    moments = [_moment(datasets[0], "Series"), _administered(tracer, datasets[0]), *acquired]
    stated = [each for each in moments if each is not None]
    # A time with and a time without its zone cannot be compared.
    if corrections != {"START"} or len(stated) < len(moments) or len({each.tzinfo is None for each in stated}) > 1:
        return None
    series, administered, *others = stated
    elapsed = (series - administered).total_seconds()
    return elapsed if elapsed >= 0 and series <= min(others) else None


def _administered(tracer: Dataset, ds: Dataset) -> datetime | None:
    stated = str(tracer.get("RadiopharmaceuticalStartDateTime") or "")
    if stated:
        return _parsed(stated)
    time, half_life_s = tracer.get("RadiopharmaceuticalStartTime"), tracer.get("RadionuclideHalfLife")
    if not time or not half_life_s or float(half_life_s) > _SAME_DAY_S:
        return None
    return _parsed(f"{ds.get('SeriesDate', '')}{time}{ds.get('TimezoneOffsetFromUTC') or ''}")


def _moment(ds: Dataset, of: str) -> datetime | None:
    date, time = ds.get(f"{of}Date"), ds.get(f"{of}Time")
    return _parsed(f"{date}{time}{ds.get('TimezoneOffsetFromUTC') or ''}") if date and time else None


def _parsed(text: str) -> datetime | None:
    try:
        return DT(text) if len(text) >= 12 else None
    except ValueError:
        return None
