"""Builders of datasets for the tests of imaging conditions, and the real files they read."""

from pathlib import Path
from typing import Any

import deid_data
from pydicom import Dataset
from pydicom.data import get_testdata_file
from pydicom.dataelem import RawDataElement
from pydicom.tag import BaseTag

from imaging.conditions import conditions

DEID = Path(deid_data.__file__).parent / "data"


def real(name: str) -> Path:
    path = DEID / name if (DEID / name).exists() else get_testdata_file(name)
    assert path, name
    return Path(path)


def values(source: Any) -> dict[str, Any]:
    return {condition.name: condition.value for condition in conditions(source)}


def units(source: Any) -> dict[str, str]:
    return {condition.name: condition.unit for condition in conditions(source)}


def built(**elements: Any) -> Dataset:
    ds = Dataset()
    for keyword, value in elements.items():
        setattr(ds, keyword, value)
    return ds


def undecoded(tag: int, vr: str, value: bytes) -> Dataset:
    return Dataset({BaseTag(tag): RawDataElement(BaseTag(tag), vr, len(value), value, 0, False, True)})


def code(value: str, designator: str, meaning: str) -> Dataset:
    return built(CodeValue=value, CodingSchemeDesignator=designator, CodeMeaning=meaning)


def enhanced_mr(b_values: list[float]) -> Dataset:
    shared = built(
        MRTimingAndRelatedParametersSequence=[built(RepetitionTime="4200", FlipAngle="90")],
        PixelMeasuresSequence=[built(SliceThickness="3", PixelSpacing=["1.5", "2"])],
    )
    frames = [
        built(
            MREchoSequence=[built(EffectiveEchoTime=72.5)],
            MRDiffusionSequence=[built(DiffusionBValue=b_value)],
        )
        for b_value in b_values
    ]
    return built(
        MagneticFieldStrength="3",
        SharedFunctionalGroupsSequence=[shared],
        PerFrameFunctionalGroupsSequence=frames,
    )
