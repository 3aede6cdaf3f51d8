"""Identifiers that do not tell who the patient is, and headers that hold nothing else (PS3.15 Annex E)."""

from __future__ import annotations

import hashlib
import hmac
import os
from copy import deepcopy
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING
from uuid import UUID

from medstyle.errors import Refusal

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

PUBLIC_SECRET = "medstyle"  # not a secret: with it a key can be guessed by hashing candidate names


@dataclass(frozen=True)
class Options:
    """Options of the Basic Application Level Confidentiality Profile (PS3.15 E.3); all off is the strictest.

    Attributes:
        shift_dates: keep dates, moved by a number of days that is the same for all files of a patient (113107).
        keep_patient: keep sex, age, size and weight (113108).
        keep_device: keep manufacturer, model, software and field strength, not station or serial number (113109).
    """

    shift_dates: bool = False
    keep_patient: bool = False
    keep_device: bool = True


# An allow-list, because a list of what to remove is out of date with every edition of the standard.
_KEEP = (
    "SOPClassUID ImageType Modality SyntheticData BodyPartExamined Laterality ImageLaterality PatientPosition "
    "SliceThickness SpacingBetweenSlices SliceLocation ImagePositionPatient ImageOrientationPatient PixelSpacing "
    "ImagerPixelSpacing PositionReferenceIndicator InstanceNumber SeriesNumber AcquisitionNumber "
    "TemporalPositionIdentifier NumberOfTemporalPositions TriggerTime FrameTime NumberOfFrames StackID "
    "InStackPositionNumber TemporalPositionIndex DimensionIndexValues FrameType FrameAcquisitionNumber "
    "ScanningSequence SequenceVariant ScanOptions MRAcquisitionType EchoTime EffectiveEchoTime RepetitionTime "
    "InversionTime InversionTimes FlipAngle EchoTrainLength EchoNumbers MagneticFieldStrength DiffusionBValue KVP "
    "ConvolutionKernel GantryDetectorTilt ReconstructionDiameter Rows Columns SamplesPerPixel PlanarConfiguration "
    "PhotometricInterpretation BitsAllocated BitsStored HighBit PixelRepresentation PixelPaddingValue "
    "PixelPaddingRangeLimit SmallestImagePixelValue LargestImagePixelValue PixelData FloatPixelData RescaleIntercept "
    "RescaleSlope RescaleType WindowCenter WindowWidth LossyImageCompression LossyImageCompressionRatio "
    "LossyImageCompressionMethod BurnedInAnnotation PresentationLUTShape ModalityLUTSequence LUTDescriptor LUTData "
    "ModalityLUTType RedPaletteColorLookupTableDescriptor GreenPaletteColorLookupTableDescriptor "
    "BluePaletteColorLookupTableDescriptor RedPaletteColorLookupTableData GreenPaletteColorLookupTableData "
    "BluePaletteColorLookupTableData SharedFunctionalGroupsSequence PerFrameFunctionalGroupsSequence "
    "PlanePositionSequence PlaneOrientationSequence PixelMeasuresSequence PixelValueTransformationSequence "
    "FrameContentSequence MRImageFrameTypeSequence CTImageFrameTypeSequence MREchoSequence MRDiffusionSequence "
    "MRModifierSequence MRTimingAndRelatedParametersSequence ComplexImageComponent AcquisitionContrast "
    "VolumetricProperties VolumeBasedCalculationTechnique PixelPresentation"
)
_UIDS = "SOPInstanceUID StudyInstanceUID SeriesInstanceUID FrameOfReferenceUID ConcatenationUID"
_PATIENT = "PatientSex PatientAge PatientSize PatientWeight"
_DEVICE = "Manufacturer ManufacturerModelName SoftwareVersions"
_DATES = "StudyDate SeriesDate AcquisitionDate ContentDate"
_EMPTY = "PatientBirthDate PatientSex StudyDate StudyTime ReferringPhysicianName StudyID AccessionNumber Manufacturer"


def subject_key(patient_id: str, secret: str | None = None) -> str:
    """Return ``sub-`` and 12 hexadecimal digits of HMAC-SHA256 of ``patient_id``.

    ``secret`` defaults to the environment's ``MEDSTYLE_SECRET``; keep it outside the repository. Without one a public
    default is used: keys are then stable and pseudonymous, but whoever can guess a PatientID can recognise it.
    """
    return f"sub-{short_key('subject', patient_id.strip(), secret)}"


def short_key(use: str, value: str, secret: str | None = None) -> str:
    """Return 12 hexadecimal digits that name ``value`` for one ``use`` and do not tell it; see :func:`subject_key`."""
    return _digest(use, value, secret).hex()[:12]


def deidentify(dataset: Dataset, secret: str | None = None, options: Options = Options()) -> Dataset:
    """Return a new data set with only what describes the image; ``dataset`` stays as it is.

    UIDs are replaced by ``2.25.`` UIDs that follow from them and the secret, so that references within a study hold.
    Private elements, overlays, comments, descriptions and times are dropped.

    Raises:
        Refusal: ``E_BURNED_IN`` where the pixels themselves may show who the patient is.
    """
    from pydicom.dataset import Dataset, FileMetaDataset

    from medstyle.imaging.dicom.header import may_show_text

    burned, sop_class, conversion = (
        str(dataset.get(name) or "").strip().upper() for name in ("BurnedInAnnotation", "SOPClassUID", "ConversionType")
    )
    image_type = dataset.get("ImageType") or ""
    kinds = {str(kind).strip().upper() for kind in ([image_type] if isinstance(image_type, str) else image_type)}
    if may_show_text(burned, sop_class, kinds, conversion):
        raise Refusal("E_BURNED_IN", "the pixels may show patient data: look, remove it, set BurnedInAnnotation to NO")
    patient_id = str(dataset.get("PatientID", ""))
    keep = [_KEEP, _PATIENT * options.keep_patient, _DEVICE * options.keep_device]
    clean = _filtered(dataset, frozenset(" ".join(keep).split()), secret)
    days = timedelta(days=1 + int.from_bytes(_digest("days", patient_id, secret)[:4]) % 3650)
    if options.shift_dates:
        for name in _DATES.split():
            if shifted := _shifted(str(dataset.get(name) or ""), days):
                setattr(clean, name, shifted)
    clean.PatientID = clean.PatientName = subject_key(patient_id, secret)
    for name in _EMPTY.split():
        if name not in clean:
            setattr(clean, name, None)
    clean.SpecificCharacterSet = "ISO_IR 192"
    clean.PatientIdentityRemoved = "YES"
    clean.LongitudinalTemporalInformationModified = "MODIFIED" if options.shift_dates else "REMOVED"
    clean.DeidentificationMethod = "medstyle: allow-list, keyed hashes"
    codes = [("113100", "Basic Application Confidentiality Profile")]
    if options.shift_dates:
        codes.append(("113107", "Retain Longitudinal Temporal Information Modified Dates Option"))
    if options.keep_patient:
        codes.append(("113108", "Retain Patient Characteristics Option"))
    if options.keep_device:
        codes.append(("113109", "Retain Device Identity Option"))
    clean.DeidentificationMethodCodeSequence = [_code(Dataset(), *code) for code in codes]
    clean.file_meta = FileMetaDataset()
    clean.file_meta.MediaStorageSOPClassUID = clean.get("SOPClassUID")
    clean.file_meta.MediaStorageSOPInstanceUID = clean.get("SOPInstanceUID")
    if meta := getattr(dataset, "file_meta", None):
        clean.file_meta.TransferSyntaxUID = meta.TransferSyntaxUID
    return clean


def _filtered(dataset: Dataset, keep: frozenset[str], secret: str | None) -> Dataset:
    from pydicom.dataset import Dataset

    clean = Dataset()
    for element in dataset:
        name = element.keyword
        if name in _UIDS.split() and element.value:
            setattr(clean, name, _mapped_uid(str(element.value), secret))
        elif name in keep and element.VR == "SQ":
            setattr(clean, name, [_filtered(item, keep, secret) for item in element.value])
        elif name in keep:
            clean.add(deepcopy(element))
    return clean


def _code(item: Dataset, value: str, meaning: str) -> Dataset:
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, "DCM", meaning
    return item


def _shifted(date: str, days: timedelta) -> str:
    try:
        return (datetime.strptime(date, "%Y%m%d") - days).strftime("%Y%m%d")
    except (ValueError, OverflowError):
        return ""


def _mapped_uid(uid: str, secret: str | None) -> str:
    return f"2.25.{UUID(bytes=_digest('uid', uid, secret)[:16], version=5).int}"


def _digest(use: str, value: str, secret: str | None) -> bytes:
    """Return a keyed hash; ``use`` keeps hashes for one purpose from being looked up in another."""
    key = secret or os.environ.get("MEDSTYLE_SECRET") or PUBLIC_SECRET
    return hmac.new(key.encode(), f"{use}\0{value}".encode(errors="surrogateescape"), hashlib.sha256).digest()
