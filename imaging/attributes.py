"""The attributes by which instances are found: patient, study, series and instance, as plain frozen values.

Texts are as in the dataset, decoded to unicode, "" when absent; several values stay joined by backslashes.
Field names are the keywords of PS3.6 in snake case.
"""

from dataclasses import asdict, dataclass, fields
from typing import Any

from imaging.values import Values


@dataclass(frozen=True, slots=True)
class Patient:
    """Who was imaged (PS3.3 C.7.1.1)."""

    patient_id: str
    issuer_of_patient_id: str
    patient_name: str
    patient_birth_date: str
    patient_sex: str


@dataclass(frozen=True, slots=True)
class StudyAttributes:
    """One study (PS3.3 C.7.2.1)."""

    study_instance_uid: str
    study_id: str
    study_date: str
    study_time: str
    study_description: str
    accession_number: str
    issuer_of_accession_number: str
    referring_physician_name: str
    timezone_offset_from_utc: str


@dataclass(frozen=True, slots=True)
class SeriesAttributes:
    """One series and the equipment that made it (PS3.3 C.7.3.1, C.7.5.1).

    body_part_code  (value, coding scheme designator, meaning) of Anatomic Region Sequence, or None
    """

    series_instance_uid: str
    modality: str
    series_number: int | None
    series_description: str
    body_part_examined: str
    body_part_code: tuple[str, str, str] | None
    laterality: str
    series_date: str
    series_time: str
    manufacturer: str
    manufacturer_model_name: str
    device_serial_number: str
    station_name: str
    software_versions: str
    institution_name: str
    performing_physician_name: str
    protocol_name: str
    performed_procedure_step_start_date: str
    performed_procedure_step_start_time: str


@dataclass(frozen=True, slots=True)
class InstanceAttributes:
    """One instance. `title` is Document Title or Content Label."""

    sop_instance_uid: str
    sop_class_uid: str
    instance_number: int | None
    number_of_frames: int
    rows: int | None
    columns: int | None
    image_type: tuple[str, ...]
    title: str
    lossy_image_compression: str


@dataclass(frozen=True, slots=True)
class InstanceSummary:
    """What the index, the projection and the doors need to know of one instance."""

    patient: Patient
    study: StudyAttributes
    series: SeriesAttributes
    instance: InstanceAttributes

    @property
    def study_uid(self) -> str:
        """Study Instance UID."""
        return self.study.study_instance_uid

    @property
    def series_uid(self) -> str:
        """Series Instance UID."""
        return self.series.series_instance_uid

    @property
    def sop_uid(self) -> str:
        """SOP Instance UID."""
        return self.instance.sop_instance_uid

    def to_document(self) -> dict[str, Any]:
        """Return plain nested dicts; tuples as lists."""
        document = asdict(self)
        code = self.series.body_part_code
        document["series"]["body_part_code"] = list(code) if code else None
        document["instance"]["image_type"] = list(self.instance.image_type)
        return document

    @classmethod
    def from_document(cls, document: dict[str, Any]) -> "InstanceSummary":
        """Return what `to_document` was called on."""
        series, instance = dict(document["series"]), dict(document["instance"])
        if series["body_part_code"] is not None:
            series["body_part_code"] = tuple(series["body_part_code"])
        instance["image_type"] = tuple(instance["image_type"])
        return cls(
            Patient(**document["patient"]),
            StudyAttributes(**document["study"]),
            SeriesAttributes(**series),
            InstanceAttributes(**instance),
        )


def summarise(values: Values) -> InstanceSummary:
    """Return the summary of a dataset. UIDs are as found: the caller has checked them."""
    return InstanceSummary(
        Patient(**_texts(values, Patient)),
        StudyAttributes(**_texts(values, StudyAttributes), issuer_of_accession_number=_issuer(values)),
        SeriesAttributes(
            **_texts(values, SeriesAttributes),
            series_number=values.integer(0x00200011),
            body_part_code=_body_part_code(values),
        ),
        InstanceAttributes(
            **_texts(values, InstanceAttributes),
            instance_number=values.integer(0x00200013),
            number_of_frames=values.integer(0x00280008) or 1,
            rows=values.integer(0x00280010),
            columns=values.integer(0x00280011),
            image_type=tuple(part.strip() for part in values.text(0x00080008).split("\\") if part.strip()),
            title=values.text(0x00420010) or values.text(0x00700080),
        ),
    )


TAGS = {
    # field                    tag
    "patient_id": 0x00100020,
    "issuer_of_patient_id": 0x00100021,
    "patient_name": 0x00100010,
    "patient_birth_date": 0x00100030,
    "patient_sex": 0x00100040,
    "study_instance_uid": 0x0020000D,
    "study_id": 0x00200010,
    "study_date": 0x00080020,
    "study_time": 0x00080030,
    "study_description": 0x00081030,
    "accession_number": 0x00080050,
    "referring_physician_name": 0x00080090,
    "timezone_offset_from_utc": 0x00080201,
    "series_instance_uid": 0x0020000E,
    "modality": 0x00080060,
    "series_description": 0x0008103E,
    "body_part_examined": 0x00180015,
    "laterality": 0x00200060,
    "series_date": 0x00080021,
    "series_time": 0x00080031,
    "manufacturer": 0x00080070,
    "manufacturer_model_name": 0x00081090,
    "device_serial_number": 0x00181000,
    "station_name": 0x00081010,
    "software_versions": 0x00181020,
    "institution_name": 0x00080080,
    "performing_physician_name": 0x00081050,
    "protocol_name": 0x00181030,
    "performed_procedure_step_start_date": 0x00400244,
    "performed_procedure_step_start_time": 0x00400245,
    "sop_instance_uid": 0x00080018,
    "sop_class_uid": 0x00080016,
    "lossy_image_compression": 0x00282110,
}


def _texts(values: Values, kind: type[Any]) -> dict[str, Any]:
    return {field.name: values.text(TAGS[field.name]) for field in fields(kind) if field.name in TAGS}


def _issuer(values: Values) -> str:
    """Issuer of Accession Number Sequence: the universal id where there is one, else the local one."""
    for item in values.items(0x00080051):
        return item.text(0x00400032) or item.text(0x00400031)
    return ""


def _body_part_code(values: Values) -> tuple[str, str, str] | None:
    for item in values.items(0x00082218):
        value = item.text(0x00080100) or item.text(0x00080119) or item.text(0x00080120)
        if value:
            return value, item.text(0x00080102), item.text(0x00080104)
    return None
