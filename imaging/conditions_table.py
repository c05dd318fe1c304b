"""The imaging conditions this server knows: one row for each DICOM attribute, with its UCUM unit and its codes.

Hides what PS3.3 says about units (attribute by attribute, C.7 and C.8), which sequences such attributes sit in, and
which concept of PS3.16 or LOINC means the same. Tags, VRs and display names come from pydicom's copy of PS3.6.

Every row has the code of its DICOM data element: system `ELEMENTS`, code = keyword. That is HL7's code system of the
PS3.6 dictionary (Imaging Integration work group, Imaging Service Request guide, a draft); PS3.16 has no codes for
attributes as such.
"""

import re
from dataclasses import dataclass
from enum import Enum, auto

from pydicom.datadict import dictionary_description, dictionary_VR, tag_for_keyword

DCM = "http://dicom.nema.org/resources/ontology/DCM"
ELEMENTS = "http://hl7.org/fhir/uv/imaging-service-request-ig/CodeSystem/dicom-data-elements"
LOINC = "http://loinc.org"
SCT = "http://snomed.info/sct"


class Kind(Enum):
    """What a value is after reading."""

    NUMBER = auto()  # int or float, in the unit of the row
    TEXT = auto()
    CODE = auto()  # item of a code sequence
    DATE = auto()  # "2024-01-31"
    TIME = auto()  # "13:45:10" or with a fraction, local time of the scanner
    DATETIME = auto()  # "2024-01-31T13:45:10", with "+01:00" where the dataset says so


@dataclass(frozen=True, slots=True)
class Coded:
    """A code of a code system: system URL ("" when nothing but a private designator is known), code, display."""

    system: str
    code: str
    display: str


@dataclass(frozen=True, slots=True)
class Row:
    """One imaging condition: where it is read and what it is called.

    families    modalities whose information objects carry it
    within      sequences it sits in, outermost first; empty when it (also) stands at the top or in functional groups
    unit        UCUM code; "" for what is not a number
    factor      DICOM's number times this is the value in `unit`
    listed      values of several items are several facts (energy windows): listed, not spanned
    codes       the standard concept first where there is one, then the data element, then its classic twin
    """

    keyword: str
    name: str
    tag: int
    vr: str
    kind: Kind
    unit: str
    factor: float
    dicom_unit: str
    listed: bool
    codes: tuple[Coded, ...]
    families: str
    within: tuple[str, ...]
    source: str


@dataclass(frozen=True, slots=True)
class _Entry:
    keyword: str
    unit: str
    concept: Coded | None
    twin: str
    listed: bool
    factor: float
    dicom_unit: str


_KINDS = dict.fromkeys(("DS", "IS", "FL", "FD", "US", "SS", "UL", "SL", "UV", "SV"), Kind.NUMBER) | {
    "SQ": Kind.CODE,
    "DA": Kind.DATE,
    "TM": Kind.TIME,
    "DT": Kind.DATETIME,
}
_NAMES = {"CTDIvol": "ctdivol", "dBdt": "dbdt"}


def name_from_keyword(keyword: str) -> str:
    """Return a DICOM keyword in snake case: "XRayTubeCurrentInmA" -> "x_ray_tube_current_in_ma"."""
    if keyword in _NAMES:
        return _NAMES[keyword]
    text = re.sub(r"In([mu])(As|Gy|A|S|s)$", lambda unit: "_in_" + (unit[1] + unit[2]).lower(), keyword)
    text = re.sub(r"([A-Z]+)([A-Z][a-z])", r"\1_\2", text)
    return re.sub(r"([a-z0-9])([A-Z])", r"\1_\2", text).lower()


def _dcm(code: str, display: str) -> Coded:
    return Coded(DCM, code, display)


def _e(
    keyword: str,
    unit: str = "",
    concept: Coded | None = None,
    *,
    twin: str = "",
    listed: bool = False,
    factor: float = 1.0,
    dicom_unit: str = "",
) -> _Entry:
    return _Entry(keyword, unit, concept, twin, listed, factor, dicom_unit or unit)


def _element(keyword: str) -> Coded:
    return Coded(ELEMENTS, keyword, dictionary_description(keyword))


def _attribute(keyword: str) -> str:
    tag = tag_for_keyword(keyword) or 0
    return f"({tag >> 16:04X},{tag & 0xFFFF:04X}) {dictionary_description(keyword)}"


def _row(entry: _Entry, families: str, within: tuple[str, ...]) -> Row:
    vr = dictionary_VR(entry.keyword)
    codes = [entry.concept] if entry.concept else []
    codes += [_element(keyword) for keyword in (entry.keyword, entry.twin) if keyword]
    return Row(
        keyword=entry.keyword,
        name=name_from_keyword(entry.keyword),
        tag=tag_for_keyword(entry.keyword) or 0,
        vr=vr,
        kind=_KINDS.get(vr, Kind.TEXT),
        unit=entry.unit,
        factor=entry.factor,
        dicom_unit=entry.dicom_unit,
        listed=entry.listed,
        codes=tuple(codes),
        families=families,
        within=within,
        source=" > ".join(_attribute(keyword) for keyword in (*within, entry.keyword)),
    )


def _group(families: str, *entries: _Entry, within: tuple[str, ...] = ()) -> tuple[Row, ...]:
    return tuple(_row(entry, families, within) for entry in entries)


_GENERAL = (
    *_group("CT MR PT NM", _e("SliceThickness", "mm", _dcm("112225", "Slice Thickness"))),
    *_group("MR NM", _e("SpacingBetweenSlices", "mm", _dcm("112226", "Spacing between slices"))),
    *_group("CT MR PT NM XA", _e("PixelSpacing", "mm")),
    *_group("CT MR PT NM", _e("PatientPosition"), _e("ReconstructionDiameter", "mm")),
    *_group("CT MR PT XA US", _e("AcquisitionDuration", "s")),
    *_group("MR PT NM US XA", _e("HeartRate", "/min", Coded(LOINC, "8867-4", "Heart rate"))),
    *_group("CT MR PT XA", _e("FrameAcquisitionDuration", "ms")),
)

_MR = _group(
    "MR",
    _e("ScanningSequence"),
    _e("SequenceVariant"),
    _e("ScanOptions"),
    _e("MRAcquisitionType"),
    _e("SequenceName"),
    _e("PulseSequenceName", "", _dcm("128230", "Pulse Sequence Name"), twin="SequenceName"),
    _e("AcquisitionContrast"),
    _e("AngioFlag"),
    _e("MagneticFieldStrength", "T"),
    _e("RepetitionTime", "ms"),
    _e("EchoTime", "ms"),
    _e("EffectiveEchoTime", "ms", twin="EchoTime"),
    _e("EchoNumbers", "1"),
    _e("EchoTrainLength", "1"),
    _e("RFEchoTrainLength", "1", twin="EchoTrainLength"),
    _e("GradientEchoTrainLength", "1"),
    _e("InversionTime", "ms"),
    _e("InversionTimes", "ms", twin="InversionTime"),
    _e("FlipAngle", "deg"),
    _e("VariableFlipAngleFlag"),
    _e("TriggerTime", "ms"),
    _e("NumberOfAverages", "1"),
    _e("ImagingFrequency", "MHz"),
    _e("TransmitterFrequency", "MHz", twin="ImagingFrequency"),
    _e("ImagedNucleus"),
    _e("ResonantNucleus", twin="ImagedNucleus"),
    _e("PixelBandwidth", "Hz/{pixel}"),
    _e("NumberOfPhaseEncodingSteps", "1"),
    _e("PercentSampling", "%"),
    _e("PercentPhaseFieldOfView", "%"),
    _e("AcquisitionMatrix", "1"),
    _e("InPlanePhaseEncodingDirection"),
    _e("MRAcquisitionFrequencyEncodingSteps", "1"),
    _e("MRAcquisitionPhaseEncodingStepsInPlane", "1"),
    _e("MRAcquisitionPhaseEncodingStepsOutOfPlane", "1"),
    _e("ReceiveCoilName"),
    _e("ReceiveCoilType"),
    _e("TransmitCoilName"),
    _e("TransmitCoilType"),
    _e("SAR", "W/kg"),
    _e("SpecificAbsorptionRateDefinition"),
    _e("SpecificAbsorptionRateValue", "W/kg", twin="SAR"),
    _e("dBdt", "T/s"),
    _e("B1rms", "uT"),
    _e("DiffusionBValue", "s/mm2"),
    _e("DiffusionDirectionality"),
    _e("ParallelAcquisition"),
    _e("ParallelAcquisitionTechnique"),
    _e("ParallelReductionFactorInPlane", "1"),
    _e("ParallelReductionFactorOutOfPlane", "1"),
    _e("ParallelReductionFactorSecondInPlane", "1"),
    _e("PartialFourier"),
    _e("MultipleSpinEcho"),
    _e("EchoPulseSequence"),
    _e("InversionRecovery"),
    _e("SaturationRecovery"),
    _e("Spoiling"),
    _e("SteadyStatePulseSequence"),
    _e("EchoPlanarPulseSequence"),
    _e("SpectrallySelectedSuppression"),
    _e("MagnetizationTransfer"),
    _e("T2Preparation"),
    _e("BloodSignalNulling"),
    _e("TimeOfFlightContrast"),
    _e("PhaseContrast"),
    _e("VelocityEncodingMinimumValue", "cm/s"),
    _e("VelocityEncodingMaximumValue", "cm/s"),
    _e("ArterialSpinLabelingContrast"),
    _e("ComplexImageComponent"),
    _e("GeometryOfKSpaceTraversal"),
    _e("CardiacNumberOfImages", "1"),
)

_X_RAY = _group(
    "CT CR DX MG XA RF",
    _e("KVP", "kV", _dcm("113733", "KVP")),
    _e("XRayTubeCurrent", "mA", _dcm("113734", "X-Ray Tube Current")),
    _e("XRayTubeCurrentInmA", "mA", _dcm("113734", "X-Ray Tube Current"), twin="XRayTubeCurrent"),
    _e("XRayTubeCurrentInuA", "uA", _dcm("113734", "X-Ray Tube Current"), twin="XRayTubeCurrent"),
    _e("ExposureTime", "ms", _dcm("113735", "Exposure Time")),
    _e("ExposureTimeInms", "ms", _dcm("113735", "Exposure Time"), twin="ExposureTime"),
    _e("ExposureTimeInuS", "us", _dcm("113735", "Exposure Time"), twin="ExposureTime"),
    _e("Exposure", "mA.s", _dcm("113736", "Exposure")),
    _e("ExposureInmAs", "mA.s", _dcm("113736", "Exposure"), twin="Exposure"),
    _e("ExposureInuAs", "uA.s", _dcm("113736", "Exposure"), twin="Exposure"),
    _e("FocalSpots", "mm", _dcm("113766", "Focal Spot Size")),
    _e("AnodeTargetMaterial", "", _dcm("111632", "Anode Target Material")),
    _e("FilterType", "", _dcm("113772", "X-Ray Filter Type")),
    _e("FilterMaterial", "", _dcm("113757", "X-Ray Filter Material")),
    _e("FilterThicknessMinimum", "mm", _dcm("113758", "X-Ray Filter Thickness Minimum")),
    _e("FilterThicknessMaximum", "mm", _dcm("113773", "X-Ray Filter Thickness Maximum")),
    _e("GeneratorPower", "kW"),
    _e("DistanceSourceToDetector", "mm", _dcm("113750", "Distance Source to Detector")),
    _e("DistanceSourceToPatient", "mm"),
    _e("DistanceSourceToIsocenter", "mm", _dcm("113748", "Distance Source to Isocenter")),
    _e("EstimatedRadiographicMagnificationFactor", "1"),
    _e(
        "ImageAndFluoroscopyAreaDoseProduct",
        "Gy.cm2",
        _dcm("122130", "Dose Area Product"),
        factor=0.1,
        dicom_unit="dGy.cm2",
    ),
    _e(
        "AcquiredImageAreaDoseProduct",
        "Gy.cm2",
        _dcm("122130", "Dose Area Product"),
        factor=0.1,
        dicom_unit="dGy.cm2",
    ),
)

_CT = _group(
    "CT",
    _e("AcquisitionType", "", _dcm("113820", "CT Acquisition Type")),
    _e("DataCollectionDiameter", "mm"),
    _e("GantryDetectorTilt", "deg"),
    _e("TableHeight", "mm"),
    _e("RotationDirection"),
    _e("ConvolutionKernel"),
    _e("ConvolutionKernelGroup"),
    _e("ReconstructionAlgorithm", "", _dcm("113961", "Reconstruction Algorithm")),
    _e("ReconstructionFieldOfView", "mm"),
    _e("ReconstructionPixelSpacing", "mm"),
    _e("RevolutionTime", "s"),
    _e("SingleCollimationWidth", "mm", _dcm("113826", "Nominal Single Collimation Width")),
    _e("TotalCollimationWidth", "mm", _dcm("113827", "Nominal Total Collimation Width")),
    _e("TableSpeed", "mm/s"),
    _e("TableFeedPerRotation", "mm"),
    _e("SpiralPitchFactor", "1", _dcm("113828", "Pitch Factor")),
    _e("CTDIvol", "mGy", _dcm("113830", "Mean CTDIvol")),
    _e("CTDIPhantomTypeCodeSequence", "", _dcm("113835", "CTDIw Phantom Type")),
    _e("WaterEquivalentDiameter", "mm", _dcm("113980", "Water Equivalent Diameter")),
    _e("ExposureModulationType"),
    _e("EstimatedDoseSaving", "%"),
    _e("MultienergyCTAcquisition"),
    _e("MonoenergeticEnergyEquivalent", "keV"),
)

_CONTRAST = _group(
    "CT MR XA RF",
    _e("ContrastBolusAgent", "", _dcm("123011", "Contrast/Bolus Agent")),
    _e("ContrastBolusAgentSequence", "", _dcm("123011", "Contrast/Bolus Agent")),
    _e("ContrastBolusRoute"),
    _e("ContrastBolusAdministrationRouteSequence"),
    _e("ContrastBolusVolume", "mL"),
    _e("ContrastBolusTotalDose", "mL"),
    _e("ContrastFlowRate", "mL/s"),
    _e("ContrastFlowDuration", "s"),
    _e("ContrastBolusStartTime"),
    _e("ContrastBolusIngredient"),
    _e("ContrastBolusIngredientConcentration", "mg/mL"),
)

_PROJECTION = (
    *_group(
        "CR DX MG",
        _e("ViewPosition"),
        _e("ViewCodeSequence"),
        _e("ExposureIndex", "1", _dcm("113845", "Exposure Index")),
        _e("TargetExposureIndex", "1", _dcm("113846", "Target Exposure Index")),
        _e("DeviationIndex", "1", _dcm("113847", "Deviation Index")),
        _e("Sensitivity", "1"),
        _e("RelativeXRayExposure", "1"),
        _e("EntranceDose", "mGy", factor=100.0, dicom_unit="dGy"),
        _e("EntranceDoseInmGy", "mGy", twin="EntranceDose"),
        _e("OrganDose", "mGy", factor=100.0, dicom_unit="dGy"),
        _e("HalfValueLayer", "mm", _dcm("111634", "Half Value Layer")),
        _e("DistanceSourceToEntrance", "mm"),
        _e("ExposureControlMode"),
        _e("ExposureControlModeDescription"),
        _e("ExposureStatus"),
        _e("PhototimerSetting", "%"),
        _e("RectificationType"),
        _e("BodyPartThickness", "mm", _dcm("111633", "Compression Thickness")),
        _e("CompressionForce", "N", _dcm("111647", "Compression Force")),
        _e("CompressionPressure", "kPa", _dcm("111648", "Compression Pressure")),
        _e("CompressionContactArea", "mm2", _dcm("111649", "Compression Contact Area")),
        _e("PaddleDescription"),
    ),
    *_group("DX MG", _e("ViewModifierCodeSequence"), within=("ViewCodeSequence",)),
    *_group(
        "CR DX MG XA RF",
        _e("ImagerPixelSpacing", "mm"),
        _e("Grid", "", _dcm("111635", "X-Ray Grid")),
        _e("GridFocalDistance", "mm"),
        _e("CollimatorShape"),
        _e("FieldOfViewShape"),
        _e("FieldOfViewDimensions", "mm"),
        _e("DetectorType", "", _dcm("113947", "Detector Type")),
        _e("DetectorConfiguration"),
        _e("DetectorDescription"),
        _e("DetectorMode"),
        _e("DetectorID"),
        _e("DateOfLastDetectorCalibration"),
        _e("DetectorTemperature", "Cel"),
        _e("DetectorConditionsNominalFlag"),
        _e("DetectorActiveTime", "ms"),
        _e("DetectorActivationOffsetFromExposure", "ms"),
        _e("DetectorTimeSinceLastExposure", "s"),
        _e("DetectorBinning", "1"),
        _e("DetectorElementPhysicalSize", "mm"),
        _e("DetectorElementSpacing", "mm"),
        _e("DetectorActiveShape"),
        _e("DetectorActiveDimensions", "mm"),
        _e("AcquisitionDeviceProcessingDescription"),
        _e("AcquisitionDeviceProcessingCode"),
        _e("PositionerType"),
        _e("PositionerPrimaryAngle", "deg", _dcm("112011", "Positioner Primary Angle")),
        _e("PositionerSecondaryAngle", "deg", _dcm("112012", "Positioner Secondary Angle")),
    ),
    *_group(
        "CR",
        _e("PlateType"),
        _e("PhosphorType"),
        _e("PlateID"),
        _e("CassetteOrientation"),
        _e("CassetteSize"),
        _e("ExposuresOnPlate", "1"),
    ),
    *_group(
        "XA RF",
        _e("RadiationSetting"),
        _e("RadiationMode"),
        _e("FluoroscopyFlag"),
        _e("AveragePulseWidth", "ms", _dcm("113793", "Pulse Width")),
        _e("IntensifierSize", "mm"),
        _e("XRayReceptorType"),
        _e("PositionerMotion"),
        _e("TableMotion"),
        _e("TableAngle", "deg"),
        _e("TotalTimeOfFluoroscopy", "s", _dcm("113730", "Total Fluoro Time")),
        _e("TotalNumberOfExposures", "1"),
    ),
    *_group(
        "XA RF US NM",
        _e("CineRate", "/s"),
        _e("FrameTime", "ms"),
        _e("RecommendedDisplayFrameRate", "/s"),
    ),
)

_US = (
    *_group(
        "US",
        _e("TransducerType"),
        _e("TransducerData"),
        _e("TransducerGeometryCodeSequence"),
        _e("TransducerScanPatternCodeSequence"),
        _e("TransducerBeamSteeringCodeSequence"),
        _e("TransducerApplicationCodeSequence"),
        _e("MechanicalIndex", "1"),
        _e("SoftTissueThermalIndex", "1"),
        _e("SoftTissueFocusThermalIndex", "1"),
        _e("SoftTissueSurfaceThermalIndex", "1"),
        _e("BoneThermalIndex", "1"),
        _e("CranialThermalIndex", "1"),
        _e("DepthOfScanField", "mm"),
        _e("DepthsOfFocus", "mm"),
        _e("ProcessingFunction"),
    ),
    *_group(
        "US",
        _e("TransducerFrequency", "kHz"),
        _e("PulseRepetitionFrequency", "Hz"),
        _e("DopplerCorrectionAngle", "deg"),
        _e("SteeringAngle", "deg"),
        within=("SequenceOfUltrasoundRegions",),
    ),
)

_NUCLEAR = (
    *_group(
        "PT NM",
        _e("Radiopharmaceutical", "", _dcm("123001", "Radiopharmaceutical")),
        _e("RadiopharmaceuticalCodeSequence", "", _dcm("123001", "Radiopharmaceutical")),
        _e("RadionuclideCodeSequence"),
        _e("RadionuclideTotalDose", "Bq", _dcm("123006", "Radionuclide Total Dose"), dicom_unit="Bq; MBq in NM"),
        _e("RadionuclideHalfLife", "s"),
        _e("RadionuclidePositronFraction", "1"),
        _e("RadiopharmaceuticalSpecificActivity", "Bq/umol", _dcm("123007", "Radiopharmaceutical Specific Activity")),
        _e("RadiopharmaceuticalVolume", "cm3", _dcm("123005", "Radiopharmaceutical Volume")),
        _e("RadiopharmaceuticalRoute"),
        _e("AdministrationRouteCodeSequence"),
        _e("RadiopharmaceuticalStartTime"),
        _e("RadiopharmaceuticalStopTime"),
        _e("RadiopharmaceuticalStartDateTime", "", _dcm("123003", "Radiopharmaceutical Start DateTime")),
        _e("RadiopharmaceuticalStopDateTime", "", _dcm("123004", "Radiopharmaceutical Stop DateTime")),
        within=("RadiopharmaceuticalInformationSequence",),
    ),
    *_group(
        "NM PT",
        _e("EnergyWindowName", listed=True),
        within=("EnergyWindowInformationSequence",),
    ),
    *_group(
        "NM PT",
        _e("EnergyWindowLowerLimit", "keV", listed=True),
        _e("EnergyWindowUpperLimit", "keV", listed=True),
        within=("EnergyWindowRangeSequence",),
    ),
    *_group("PT NM", _e("ActualFrameDuration", "ms"), _e("CollimatorType"), _e("CorrectedImage")),
    *_group(
        "PT",
        _e("SeriesType"),
        _e("Units"),
        _e("CountsSource"),
        _e("DecayCorrection"),
        _e("DecayFactor", "1"),
        _e("DecayCorrectionDateTime"),
        _e("DecayCorrected"),
        _e("AttenuationCorrectionMethod"),
        _e("AttenuationCorrected"),
        _e("ScatterCorrectionMethod"),
        _e("ScatterCorrected"),
        _e("RandomsCorrectionMethod"),
        _e("RandomsCorrected"),
        _e("DeadTimeFactor", "1"),
        _e("DeadTimeCorrected"),
        _e("ScatterFractionFactor", "1"),
        _e("DoseCalibrationFactor", "1"),
        _e("SliceSensitivityFactor", "1"),
        _e("FrameReferenceTime", "ms"),
        _e("PrimaryPromptsCountsAccumulated", "1"),
        _e("CoincidenceWindowWidth", "ns"),
        _e("ReconstructionMethod"),
        _e("ReprojectionMethod"),
        _e("ReconstructionType"),
        _e("IterativeReconstructionMethod"),
        _e("NumberOfIterations", "1"),
        _e("NumberOfSubsets", "1"),
        _e("TimeOfFlightInformationUsed"),
        _e("PatientGantryRelationshipCodeSequence"),
    ),
    *_group(
        "NM",
        _e("CountsAccumulated", "1"),
        _e("AcquisitionTerminationCondition"),
        _e("WholeBodyTechnique"),
        _e("ScanVelocity", "mm/s"),
        _e("ScanLength", "mm"),
        _e("NumberOfEnergyWindows", "1"),
        _e("NumberOfDetectors", "1"),
        _e("NumberOfRotations", "1"),
        _e("NumberOfRRIntervals", "1"),
        _e("NumberOfTimeSlots", "1"),
        _e("NumberOfPhases", "1"),
    ),
    *_group(
        "NM",
        _e("CollimatorGridName"),
        _e("ZoomFactor", "1"),
        within=("DetectorInformationSequence",),
    ),
    *_group(
        "NM",
        _e("AngularStep", "deg"),
        _e("ScanArc", "deg"),
        _e("StartAngle", "deg"),
        _e("RadialPosition", "mm"),
        _e("NumberOfFramesInRotation", "1"),
        within=("RotationInformationSequence",),
    ),
)

CHAPTERS: tuple[tuple[str, tuple[Row, ...]], ...] = (
    ("Geometry and timing", _GENERAL),
    ("Magnetic resonance", _MR),
    ("X-ray beam", _X_RAY),
    ("Computed tomography", _CT),
    ("Contrast agent", _CONTRAST),
    ("Projection X-ray", _PROJECTION),
    ("Ultrasound", _US),
    ("Nuclear medicine and PET", _NUCLEAR),
)
CONDITIONS: tuple[Row, ...] = tuple(row for _, rows in CHAPTERS for row in rows)

# Sequences whose items hold conditions: functional groups (PS3.3 C.7.6.16, C.8.13, C.8.15, C.8.19, C.8.21, C.8.22) and
# the nested modules above. Anything else -- referenced images, request attributes -- is not looked into.
_CONTAINERS = """
    SharedFunctionalGroupsSequence PerFrameFunctionalGroupsSequence PixelMeasuresSequence FrameContentSequence
    MRTimingAndRelatedParametersSequence MREchoSequence MRModifierSequence MRImagingModifierSequence
    MRReceiveCoilSequence MRTransmitCoilSequence MRDiffusionSequence MRAveragesSequence MRFOVGeometrySequence
    MRVelocityEncodingSequence MRImageFrameTypeSequence SpecificAbsorptionRateSequence MRArterialSpinLabelingSequence
    CTAcquisitionTypeSequence CTAcquisitionDetailsSequence CTTableDynamicsSequence CTGeometrySequence
    CTReconstructionSequence CTExposureSequence CTXRayDetailsSequence CTAdditionalXRaySourceSequence
    MultienergyCTAcquisitionSequence
    FrameAcquisitionSequence XAXRFFrameCharacteristicsSequence FieldOfViewSequence PositionerPositionSequence
    FrameDetectorParametersSequence XRayFilterSequence XRay3DAcquisitionSequence XRayAcquisitionDoseSequence
    PETFrameAcquisitionSequence PETReconstructionSequence PETFrameCorrectionFactorsSequence
    PETDetectorMotionDetailsSequence
    RadiopharmaceuticalInformationSequence EnergyWindowInformationSequence EnergyWindowRangeSequence
    DetectorInformationSequence RotationInformationSequence PhaseInformationSequence
    SequenceOfUltrasoundRegions ContrastBolusAgentSequence ViewCodeSequence
"""
CONTAINERS: frozenset[int] = frozenset(tag_for_keyword(keyword) or 0 for keyword in _CONTAINERS.split())
