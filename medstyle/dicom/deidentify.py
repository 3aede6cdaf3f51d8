"""De-identify DICOM images by an allow-list of header elements (PS3.15 Annex E)."""

from __future__ import annotations

import filecmp
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from pydicom import dcmread
from pydicom.datadict import dictionary_VR
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue

from medstyle.dicom.elements import Skip, quiet, words
from medstyle.dicom.header import Instance, read_frames
from medstyle.dicom.read import read_pixels
from medstyle.dicom.scan import find_files
from medstyle.dicom.uids import uid_from
from medstyle.dicom.write import code, save, settle_laterality
from medstyle.errors import Code, ParamsError, Refusal, reading
from medstyle.imaging.bounded import BoundedFile
from medstyle.imaging.verdict import FileVerdict
from medstyle.jobs.atomic import part_of
from medstyle.jobs.progress import track
from medstyle.pseudonyms import NO_SECRET, digest, own_secret, short_key, subject_key

__patient_data__ = True  # errors raised here may quote patient data: medstyle.errors.outline masks their text


@dataclass(frozen=True)
class Options:
    """Options of the Basic Application Level Confidentiality Profile (PS3.15 E.3).

    The default is strictest.

    Attributes:
        shift_dates: keep dates, shifted by a number of days that is the same for all files of a
            patient (113107).
        keep_patient: keep sex, age, size and weight (113108).
        keep_device: keep manufacturer, model and software, but not station or serial number
            (113109).
        keep_private: (group, last byte of the element, private creator) of elements known to be
            safe (113111).
    """

    shift_dates: bool = False
    keep_patient: bool = False
    keep_device: bool = False
    keep_private: tuple[tuple[int, int, str], ...] = ()

    @property
    def codes(self) -> list[tuple[str, str]]:
        """The codes of the profile and the chosen options, with meanings (PS3.16 CID 7050)."""
        chosen = [
            (True, "113100", "Basic Application Confidentiality Profile"),
            (self.shift_dates, "113107", "Retain Longitudinal Temporal Information Modified Dates Option"),
            (self.keep_patient, "113108", "Retain Patient Characteristics Option"),
            (self.keep_device, "113109", "Retain Device Identity Option"),
            (bool(self.keep_private), "113111", "Retain Safe Private Option"),
        ]
        return [(value, meaning) for on, value, meaning in chosen if on]


# An allow-list, because a list of elements to remove would be outdated by every edition of the
# standard. It consists of numbers, tables of numbers, and sequences of allowed elements.
_NUMBERS = words(
    "SliceThickness SpacingBetweenSlices SliceLocation ImagePositionPatient ImageOrientationPatient PixelSpacing "
    "ImagerPixelSpacing InstanceNumber SeriesNumber AcquisitionNumber TemporalPositionIdentifier "
    "NumberOfTemporalPositions TriggerTime FrameTime NumberOfFrames InStackPositionNumber TemporalPositionIndex "
    "DimensionIndexValues FrameAcquisitionNumber EchoTime EffectiveEchoTime RepetitionTime InversionTime "
    "InversionTimes FlipAngle EchoTrainLength EchoNumbers MagneticFieldStrength DiffusionBValue KVP "
    "GantryDetectorTilt ReconstructionDiameter Rows Columns SamplesPerPixel BitsAllocated BitsStored "
    "PixelRepresentation PixelPaddingValue PixelPaddingRangeLimit SmallestImagePixelValue LargestImagePixelValue "
    "RescaleIntercept RescaleSlope WindowCenter WindowWidth LossyImageCompressionRatio DimensionIndexPointer "
    "FunctionalGroupPointer LUTDescriptor LUTData RedPaletteColorLookupTableDescriptor "
    "GreenPaletteColorLookupTableDescriptor BluePaletteColorLookupTableDescriptor RedPaletteColorLookupTableData "
    "GreenPaletteColorLookupTableData BluePaletteColorLookupTableData"
)
_SEQUENCES = words(
    "ModalityLUTSequence SharedFunctionalGroupsSequence PerFrameFunctionalGroupsSequence PlanePositionSequence "
    "PlaneOrientationSequence PixelMeasuresSequence PixelValueTransformationSequence FrameContentSequence "
    "MRImageFrameTypeSequence CTImageFrameTypeSequence PETFrameTypeSequence MREchoSequence MRDiffusionSequence "
    "MRModifierSequence MRTimingAndRelatedParametersSequence DimensionOrganizationSequence DimensionIndexSequence"
)
_UIDS = words(
    "SOPInstanceUID StudyInstanceUID SeriesInstanceUID FrameOfReferenceUID ConcatenationUID DimensionOrganizationUID"
)
_IMAGE_TYPES = (
    "ORIGINAL|DERIVED|MIXED|PRIMARY|SECONDARY|AXIAL|OTHER|NONE|VOLUME|MPR|MIP|MAX_IP|MIN_IP|M|P|R|I|"
    "MAGNITUDE|PHASE|REAL|IMAGINARY|M_FFE|M_SE|M_IR|FFE|SE|IR|W|F|IP|OP|WATER|FAT|IN_PHASE|OPP_PHASE|"
    "ND|NORM|DIS2D|DIS3D|MOSAIC|FM|MFSPLIT|ADC|TRACEW|FA|DIFFUSION|PERFUSION|ASL|FMRI|CINE|DYNAMIC|"
    "ANGIO|TOF|VELOCITY|MULTIECHO|T1|T2|T2_STAR|PROTON_DENSITY|STIR|FLUID_ATTENUATED|TEMPERATURE|"
    "DENSITY MAP|DIFFUSION MAP|IMAGE ADDITION|MODULUS SUBTRACT|PHASE MAP|PHASE SUBTRACT|PROJECTION IMAGE|"
    "T1 MAP|T2 MAP|VELOCITY MAP|ADDITION|DIVISION|MAXIMUM|MEAN|MINIMUM|MULTIPLICATION|SUBTRACTION|RESAMPLED|"
    "SYNTHETIC"
)
_TERMS = {  # the allowed terms, because a code string can contain any 16 characters
    name: frozenset(terms.split("|"))
    for name, terms in {
        "ImageType": _IMAGE_TYPES,
        "FrameType": _IMAGE_TYPES,
        "Modality": "CT|MR|PT|CR|DX|MG|US|XA|RF|OT|XC|ES|GM",
        "BodyPartExamined": "HEAD|BRAIN|SKULL|NECK|CSPINE|TSPINE|LSPINE|SPINE|CHEST|HEART|LUNG|BREAST|"
        "ABDOMEN|LIVER|KIDNEY|PANCREAS|SPLEEN|PELVIS|PROSTATE|UTERUS|BLADDER|HIP|KNEE|ANKLE|FOOT|SHOULDER|ELBOW|WRIST|"
        "HAND|LEG|ARM|EXTREMITY|WHOLEBODY",
        "Laterality": "R|L",
        "ImageLaterality": "R|L|U|B",
        "PatientPosition": "HFP|HFS|HFDR|HFDL|FFDR|FFDL|FFP|FFS|LFP|LFS|RFP|RFS|AFDR|AFDL|PFDR|PFDL",
        "ScanningSequence": "SE|IR|GR|EP|RM",
        "SequenceVariant": "SK|MTC|SS|TRSS|SP|MP|OSP|NONE",
        "ScanOptions": "PER|RG|CG|PPG|FC|PFF|PFP|SP|FS",
        "MRAcquisitionType": "1D|2D|3D",
        "PhotometricInterpretation": "MONOCHROME1|MONOCHROME2|PALETTE COLOR|RGB",
        "RescaleType": "HU|US|OD",
        "ModalityLUTType": "HU|US|OD",
        "PresentationLUTShape": "IDENTITY|INVERSE",
        "LossyImageCompression": "00|01",
        "LossyImageCompressionMethod": "ISO_10918_1|ISO_14495_1|ISO_15444_1|ISO_15444_15|ISO_13818_2|ISO_14496_10",
        "BurnedInAnnotation": "NO",
        "SyntheticData": "YES|NO",
        "ComplexImageComponent": "MAGNITUDE|PHASE|REAL|IMAGINARY|MIXED",
        "AcquisitionContrast": "DIFFUSION|FLOW_ENCODED|FLUID_ATTENUATED|PERFUSION|PROTON_DENSITY|STIR|TAGGING|"
        "TEMPERATURE|T1|T2|T2_STAR|TOF|UNKNOWN|MIXED",
        "VolumetricProperties": "VOLUME|SAMPLED|DISTORTED|MIXED",
        "VolumeBasedCalculationTechnique": "NONE|MAX_IP|MIN_IP|VOLUME_RENDER|SURFACE_RENDER|MPR|CURVED_MPR|MIXED",
        "PixelPresentation": "MONOCHROME|COLOR|MIXED|TRUE_COLOR",
        "Units": "BQML|CNTS|NONE|CPS|PROPCNTS|PROPCPS|GML|CM2ML|PCNT|UMOLMIN/ML|ML/MIN/G|1CM|UMOLML|MLMINML|STDDEV",
    }.items()
}
_NEUTRAL = {  # replaces any other term in elements that must have one
    "ImageType": "OTHER",
    "FrameType": "OTHER",
    "Modality": "OT",
    "ScanningSequence": "RM",
    "SequenceVariant": "NONE",
    "RescaleType": "US",
    "ModalityLUTType": "US",
    "AcquisitionContrast": "UNKNOWN",
}
_NUMERIC, _TABLES = words("DS IS US SS UL SL FD FL AT"), words("OW OB US")  # value representations
_SEX = {"PatientSex": frozenset("MFO")}
_BODY = words("PatientSize PatientWeight")
_DEVICE = words("Manufacturer ManufacturerModelName SoftwareVersions")
_DATES = words("StudyDate SeriesDate AcquisitionDate ContentDate")
_EMPTY = words(  # type 2: present, may be empty
    "PatientBirthDate PatientSex StudyDate StudyTime ReferringPhysicianName StudyID AccessionNumber Manufacturer "
    "PositionReferenceIndicator"
)


def deidentify_folder(source: Path, out: Path, options: Options = Options()) -> list[FileVerdict]:
    """Write each DICOM image at or below ``source`` to ``out/<subject>/<series>/<image>.dcm``.

    These names are keyed hashes. A file appears complete or not at all, and none is overwritten.
    The same file, secret and options give the same bytes, so that an interrupted run can be
    repeated. Returns a verdict for each file: ``used`` means that it was written.

    Raises:
        UserError: there is no secret or no source, or ``out`` lies in it.
    """
    if own_secret() is None:
        raise ParamsError(f"deidentify: {NO_SECRET}")
    if not source.exists():
        raise ParamsError(f"{source}: no such file or folder")
    if out.resolve().is_relative_to(source.resolve()):
        raise ParamsError(f"{out}: lies in {source}, whose files are read; choose another folder")
    return [_written(path, out, options) for path in track(list(dict.fromkeys(find_files([source]))), "deidentify")]


def _written(path: Path, out: Path, options: Options) -> FileVerdict:
    try:
        clean = deidentify(path, options)
        folder = out / str(clean.PatientID) / short_key("series", clean.SeriesInstanceUID)
        final = folder / f"{short_key('instance', clean.SOPInstanceUID)}.dcm"
        scratch = part_of(final, own=True)
        folder.mkdir(parents=True, exist_ok=True)
        try:
            with quiet():
                save(clean, scratch)
            if not final.exists():
                scratch.rename(final)
                return FileVerdict(path, "used", "", "")
            if filecmp.cmp(scratch, final, shallow=False):
                raise Skip(Code.E_DUPLICATE, "the same image was written before")
            raise Refusal(Code.E_EXISTS, "another file of this SOP instance, or other options, made its output already")
        finally:
            scratch.unlink(missing_ok=True)
    except Skip as skip:
        return FileVerdict(path, "skipped", skip.code, skip.reason)
    except Refusal as refusal:
        return FileVerdict(path, "refused", refusal.code, refusal.reason)


def deidentify(path: Path, options: Options = Options()) -> Dataset:
    """Return the elements that describe the image in a DICOM file, and its decoded pixels.

    UIDs are replaced by ``2.25.`` UIDs that are derived from them and the secret, so that
    references within a study remain valid. Texts are kept only if the standard defines them;
    private elements, overlays, comments, descriptions and times are dropped. Decoding the pixels
    removes whatever a codestream, unused bits or bytes after the pixels may contain.

    Raises:
        Skip: not an image.
        Refusal: an unusable image, as for :func:`read_frames`; ``E_BURNED_IN`` if the pixels
            themselves may show who the patient is.
    """
    with quiet(), reading():
        instance = read_frames(path)[0].instance
        pixels = read_pixels(instance)
        with BoundedFile(path) as file:
            dataset = dcmread(file, stop_before_pixels=True, force=True)
        clean = _header(dataset, instance, options)
    if instance.samples > 1:
        clean.PhotometricInterpretation, clean.PlanarConfiguration = "RGB", 0
    clean.BitsAllocated, clean.HighBit = pixels.itemsize * 8, instance.bits_stored - 1
    if "LOSSY" in instance.flags:
        clean.LossyImageCompression = "01"
    data = pixels.tobytes()
    clean.PixelData = data + b"\0" * (len(data) % 2)
    clean["PixelData"].VR = "OW" if pixels.itemsize > 1 else "OB"
    return clean


def _header(dataset: Dataset, instance: Instance, options: Options) -> Dataset:
    if "BURNED_IN_UNKNOWN" in instance.flags:
        raise Refusal(
            Code.E_BURNED_IN,
            "the pixels may show patient data: inspect and remove it, then set BurnedInAnnotation to NO",
        )
    if not all(dataset.get(name) for name in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")):
        raise Refusal(Code.E_DECODE, "the UID of its study, its series or itself is missing; export the file again")
    patient = instance.patient_id or instance.study_uid  # without it, all patients without an ID would be one
    clean = _filtered(dataset, options)
    if options.shift_dates:
        days = timedelta(days=1 + int.from_bytes(digest("days", patient)[:4]) % 3650)
        for name in _DATES:
            if shifted := _shifted(str(dataset.get(name) or ""), days):
                setattr(clean, name, shifted)
    clean.PatientID = clean.PatientName = subject_key(patient)
    for name in _EMPTY:
        if name not in clean:
            setattr(clean, name, None)
    settle_laterality(clean)
    clean.SOPClassUID = instance.sop_class
    clean.SpecificCharacterSet = "ISO_IR 192"
    clean.PatientIdentityRemoved = "YES"
    clean.LongitudinalTemporalInformationModified = "MODIFIED" if options.shift_dates else "REMOVED"
    clean.DeidentificationMethod = "medstyle: allow-list, keyed hashes"
    clean.DeidentificationMethodCodeSequence = [code(value, "DCM", meaning) for value, meaning in options.codes]
    return clean


def _filtered(dataset: Dataset, options: Options) -> Dataset:
    """Return the allowed elements of a data set or an item.

    Values that cannot be converted are dropped.
    """
    clean = Dataset()
    terms = _TERMS | (_SEX if options.keep_patient else {})
    numbers = _NUMBERS + (_BODY if options.keep_patient else ())
    for name in (*_SEQUENCES, *_UIDS, *terms, *numbers, "StackID"):
        with suppress(Exception):  # damaged values raise anything
            if name in dataset:
                clean.add(_kept(dataset[name], name, terms, options))
    if options.keep_patient and re.fullmatch(r"\d{3}[DWMY]", age := str(dataset.get("PatientAge"))):
        clean.PatientAge = age
    for name in _DEVICE if options.keep_device else ():
        if dataset.get(name):
            setattr(clean, name, dataset[name].value)
    for group, element, creator in options.keep_private:
        with suppress(Exception):
            item = dataset.get_private_item(group, element, creator)
            value = [_filtered(one, options) for one in item.value] if item.VR == "SQ" else item.value
            clean.private_block(group, creator, create=True).add_new(element, item.VR, value)
    _cut(clean)
    return clean


def _kept(element: DataElement, name: str, terms: Mapping[str, frozenset[str]], options: Options) -> DataElement:
    values = list(element.value) if isinstance(element.value, MultiValue) else [element.value]
    values = [value or "" for value in values]
    if name in _SEQUENCES:
        return DataElement(element.tag, "SQ", [_filtered(item, options) for item in element.value])
    if name in _UIDS:
        return DataElement(element.tag, "UI", [_mapped_uid(str(value)) for value in values if value])
    if name in terms:
        neutral = _NEUTRAL.get(name)
        said = [str(value).strip() for value in values]
        texts = [text if text in terms[name] | {""} else _term(name, text, neutral) for text in said]
        return DataElement(element.tag, dictionary_VR(element.tag), [text for text in texts if text is not None])
    if name == "StackID":  # needed to distinguish stacks
        return DataElement(element.tag, "SH", short_key("stack", str(element.value)))
    if element.VR not in (_TABLES if name.endswith("Data") else _NUMERIC):
        raise ValueError  # a file may declare anything as text
    if element.VR in ("DS", "IS"):
        for value in filter(None, values):
            float(value)  # raises if there is text instead of a number
    return element


def _term(name: str, text: str, neutral: str | None) -> str | None:
    """Return the replacement for a term that no standard defines.

    Each term of an image or frame type gets its own replacement, because it separates volumes: a
    vendor's words for magnitude and phase, for example.
    """
    return f"{neutral}_{short_key('term', text)[:8].upper()}" if name in ("ImageType", "FrameType") else neutral


def _cut(dataset: Dataset) -> None:
    """Cut each table to the number of entries in its descriptor, because the rest may be text."""
    for name in ("LUT", "RedPaletteColorLookupTable", "GreenPaletteColorLookupTable", "BluePaletteColorLookupTable"):
        descriptor, data = dataset.get(f"{name}Descriptor"), dataset.get(f"{name}Data")
        if descriptor is None or data is None:
            continue
        entries, bits = int(descriptor[0]) or 1 << 16, int(descriptor[2])
        if isinstance(data, bytes):
            packed = bits <= 8 and len(data) != 2 * entries  # eight bits may stand in sixteen, one for each entry
            setattr(dataset, f"{name}Data", data[: entries * (1 if packed else 2)])
        else:
            setattr(dataset, f"{name}Data", list(data)[:entries])


def _shifted(date: str, days: timedelta) -> str:
    try:
        return (datetime.strptime(date, "%Y%m%d") - days).strftime("%Y%m%d")
    except (ValueError, OverflowError):
        return ""


def _mapped_uid(uid: str) -> str:
    return uid_from(digest("uid", uid))


def private_element(text: str) -> tuple[int, int, str]:
    """Parse ``GROUP,ELEMENT,CREATOR``, such as ``2005,xx0E,Philips MR Imaging DD 001``.

    Raise UserError.
    """
    match = re.fullmatch(r"\(?([0-9a-fA-F]{4}),(?:[0-9a-fA-FxX]{2})?([0-9a-fA-F]{2})\)?,(.+)", text.strip())
    if match is None or int(match[1], 16) % 2 == 0:
        raise ParamsError(
            f"{text}: not a private element; write GROUP,ELEMENT,CREATOR: 2005,xx0E,Philips MR Imaging DD 001"
        )
    return int(match[1], 16), int(match[2], 16), match[3].strip()
