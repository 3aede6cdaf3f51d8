"""Plant canaries (words and digits) in patient data, and find them again in any wrapping."""

from __future__ import annotations

import base64
import gzip
import io
import re
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pydicom
from pydicom.datadict import dictionary_VR
from pydicom.dataset import Dataset
from pydicom.uid import UID

from medstyle.dicom.elements import words

# Written backwards: what is searched holds a copy of this file, in which nothing may be found.
WORD = "EIPGAMZZ"[::-1]
IN_PATH = f"{WORD}PATH"  # what file and folder names hold
_BACKWARDS = {  # by value representation, where a word is not allowed
    "UI": "81249035768",
    "DA": "90307681",
    "TM": "035768.917131",
    "DT": "035768.91713190307681",
    "DS": "8124903.5768",
    "IS": "249035768",
}
DIGITS = {vr: text[::-1] for vr, text in _BACKWARDS.items()}
DATE_ELSEWHERE = "90-30-7681"[::-1]  # as other programs write it

# What a hospital fills in, one or more of every text, date, number and identifier representation.
ELEMENTS = words("""
PatientName PatientID IssuerOfPatientID OtherPatientIDs OtherPatientNames PatientBirthName PatientMotherBirthName
PatientBirthDate PatientBirthTime PatientAddress PatientTelephoneNumbers PatientComments PatientReligiousPreference
PatientSize PatientWeight EthnicGroup Occupation MilitaryRank BranchOfService CountryOfResidence RegionOfResidence
MedicalRecordLocator MedicalAlerts Allergies AdditionalPatientHistory PatientState SpecialNeeds CurrentPatientLocation
AdmissionID AdmittingDate AdmittingTime AdmittingDiagnosesDescription VisitComments AccessionNumber StudyID
StudyDescription ProtocolName SequenceName ReferringPhysicianName ReferringPhysicianAddress
ReferringPhysicianTelephoneNumbers PerformingPhysicianName OperatorsName PhysiciansOfRecord RequestingPhysician
NameOfPhysiciansReadingStudy InstitutionName InstitutionAddress InstitutionalDepartmentName StationName
DeviceSerialNumber DeviceUID InstanceCreatorUID InstanceCreationDate InstanceCreationTime StudyDate SeriesDate
AcquisitionDate ContentDate StudyTime SeriesTime AcquisitionTime ContentTime AcquisitionDateTime StudyComments
PerformedProcedureStepID PerformedProcedureStepDescription PerformedProcedureStepStartDate PerformedStationAETitle
CommentsOnThePerformedProcedureStep RequestedProcedureDescription ReasonForStudy ImageComments FrameComments
DerivationDescription ContrastBolusAgent ClinicalTrialSponsorName ClinicalTrialSubjectID ClinicalTrialSiteName
PlacerOrderNumberImagingServiceRequest FillerOrderNumberImagingServiceRequest ImagingServiceRequestComments
InterpretationText PositionReferenceIndicator CineRate StageName StudyVerifiedDate
""")


def value_of(keyword: str) -> str:
    """Return a legal value with a canary for the element ``keyword``."""
    vr = dictionary_VR(keyword)
    if vr == "UI":
        return f"2.25.{DIGITS[vr]}"
    if vr in DIGITS:
        return DIGITS[vr]
    if vr == "PN":
        return f"{WORD}^{keyword}"
    return f"{WORD} {keyword}"[: {"SH": 16, "AE": 16, "LO": 64}.get(vr)]


def plant(path: Path, subject: int, series: int, number: int, syntax: UID | None = None) -> None:
    """Fill the DICOM file with canaries.

    What belongs together still does, and the image stays as it is.
    """
    dataset = pydicom.dcmread(path)
    for keyword in ELEMENTS:
        setattr(dataset, keyword, value_of(keyword))
    dataset.PatientID = f"{WORD} PatientID {subject}"
    dataset.SeriesDescription = f"{dataset.SeriesDescription} {WORD}"
    root = f"2.25.{DIGITS['UI']}.{subject}"
    dataset.StudyInstanceUID, dataset.FrameOfReferenceUID = root, f"{root}.9"
    dataset.SeriesInstanceUID, dataset.SOPInstanceUID = f"{root}.{series}", f"{root}.{series}.{number}"
    _plant_sequences(dataset)
    _plant_private_and_repeating(dataset)
    meta = dataset.file_meta
    meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    meta.SourceApplicationEntityTitle = meta.SendingApplicationEntityTitle = f"{WORD} AE"
    meta.ImplementationVersionName = WORD
    meta.PrivateInformationCreatorUID, meta.PrivateInformation = f"2.25.{DIGITS['UI']}.7", f"{WORD}..".encode()
    meta.TransferSyntaxUID = syntax or meta.TransferSyntaxUID
    dataset.preamble = f"{WORD} preamble".encode().ljust(128, b"\0")
    dataset.save_as(path, enforce_file_format=True)


def _plant_sequences(dataset: Dataset) -> None:
    def item(*keywords: str) -> Dataset:
        made = Dataset()
        for keyword in keywords:
            setattr(made, keyword, value_of(keyword))
        return made

    dataset.RequestAttributesSequence = [item("RequestedProcedureID", "ScheduledProcedureStepDescription")]
    dataset.ReferencedStudySequence = [item("ReferencedSOPClassUID", "ReferencedSOPInstanceUID")]
    dataset.OtherPatientIDsSequence = [item("PatientID", "IssuerOfPatientID")]
    original = item("AttributeModificationDateTime", "ModifyingSystem", "SourceOfPreviousValues")
    original.ModifiedAttributesSequence = [item("PatientName", "PatientBirthDate")]
    original.ModifiedAttributesSequence[0].OtherPatientIDsSequence = [item("PatientID", "PatientComments")]
    dataset.OriginalAttributesSequence = [original]
    icon = Dataset()
    icon.Rows = icon.Columns = 8
    icon.add_new("PixelData", "OB", f"{WORD} icon".encode().ljust(64, b"\0"))
    dataset.IconImageSequence = [icon]


def _plant_private_and_repeating(dataset: Dataset) -> None:
    block = dataset.private_block(0x0019, f"{WORD} CREATOR", create=True)
    nested = Dataset()
    nested.add_new("PatientName", "PN", f"{WORD}^PRIVATE")
    values = {"LO": WORD, "UT": f"{WORD} text", "OB": WORD.encode("utf-16-le"), "UN": WORD.encode("utf-16-be")}
    for number, (vr, value) in enumerate({**values, "DA": DIGITS["DA"], "SQ": [nested]}.items(), start=1):
        block.add_new(number, vr, value)
    overlay = {0x10: ("US", 48), 0x11: ("US", 48), 0x40: ("CS", "G"), 0x50: ("SS", [1, 1]), 0x100: ("US", 1)}
    overlay |= {0x102: ("US", 0), 0x22: ("LO", WORD), 0x1500: ("LO", WORD), 0x4000: ("LT", WORD)}
    overlay |= {0x3000: ("OW", f"{WORD} overlay".encode().ljust(288, b"\0"))}
    curve = {0x22: ("LO", WORD), 0x2500: ("LO", WORD), 0x3000: ("OW", f"{WORD} curve".encode())}
    for group, elements in ((0x6000, overlay), (0x5000, curve)):
        for element, (vr, value) in elements.items():
            dataset.add_new((group, element), vr, value)
    dataset.add_new(0xFFFCFFFC, "OB", f"{WORD} padding ".encode())


def search(root: Path, *skip: Path) -> list[str]:
    """Return every canary in the names and bytes of what lies below ``root``, but for the folders
    ``skip``."""
    found = []
    for path in sorted(root.rglob("*")):
        if not any(path.is_relative_to(place) for place in skip):
            name = path.relative_to(root).as_posix()
            found += [f"name {name}: {form}" for form in spotted(name.encode(errors="surrogateescape"))]
            found += find(path.read_bytes(), name) if path.is_file() else []
    return found


def find(data: bytes, where: str = "") -> list[str]:
    """Return where and in which form a canary is in ``data`` or in what is packed into it."""
    return [f"{where}{inside}: {form}" for inside, blob in _unpacked(data) for form in spotted(blob)]


def _base64(text: bytes) -> Iterator[bytes]:
    """Give the digits of ``text`` in base64 that its neighbours do not change, for each of its
    three alignments."""
    for before in range(3):
        whole = base64.b64encode(bytes(before) + text)
        yield whole[-(-before * 8 // 6) : (before + len(text)) * 8 // 6]


def _forms() -> Iterator[tuple[str, bytes, bool]]:
    """Give (name, bytes, whether they are in lower case) for every canary."""
    for text in (WORD, *DIGITS.values(), DATE_ELSEWHERE):
        yield f"{text} in UTF-8", text.lower().encode(), True
        for code in ("utf-16-le", "utf-16-be"):
            yield f"{text} in {code}", text.lower().encode(code), True
        yield f"{text} in hexadecimal", text.encode().hex().encode(), True
        for alignment, digits in enumerate(_base64(text.encode())):
            yield f"{text} in base64 ({alignment})", digits, False


FORMS = tuple(_forms())


def spotted(blob: bytes) -> list[str]:
    """Return each form of a canary that is in ``blob`` as it is, with what surrounds the first of
    them."""
    lower, found = blob.lower(), []
    for name, needle, ignoring_case in FORMS:
        text = lower if ignoring_case else blob
        start = text.find(needle)
        while start >= 0 and name.endswith("UTF-8") and _inside_a_number(text, start, start + len(needle)):
            start = text.find(needle, start + 1)
        if start >= 0:
            found.append(f"{name}: {blob[max(0, start - 20) : start + len(needle) + 40]!r}")
    return found


def _inside_a_number(text: bytes, start: int, end: int) -> bool:
    return text[start:end][:1].isdigit() and (text[start - 1 : start].isdigit() or text[end : end + 1].isdigit())


def _unpacked(data: bytes, depth: int = 0) -> Iterator[tuple[str, bytes]]:
    """Give ``data`` and what is inside: members of zips, gzip and zlib streams anywhere, base64,
    deflated DICOM."""
    yield "", data
    if depth == 4:
        return
    inner: list[tuple[str, bytes]] = []
    if zipfile.is_zipfile(io.BytesIO(data)):
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            inner += [(f"!{m.filename}", m.filename.encode() + m.comment + archive.read(m)) for m in archive.infolist()]
    if data[128:132] == b"DICM" and b"1.2.840.10008.1.2.1.99" in data[:600]:
        start = 144 + struct.unpack_from("<L", data, 140)[0]  # the length of the file meta information
        inner.append(("!deflated", zlib.decompressobj(-15).decompress(data[start:])))
    for match in re.finditer(rb"\x1f\x8b\x08|\x78[\x01\x5e\x9c\xda]", data):
        window = memoryview(data)[match.start() : match.start() + (1 << 24)]
        try:
            inner.append((f"!{match.start()}", zlib.decompressobj(47).decompress(window, 1 << 26)))
        except zlib.error:
            continue  # two bytes that look like the start of a stream
    for match in re.finditer(rb"[A-Za-z0-9+/]{64,}={0,2}", data):
        digits = match[0].rstrip(b"=")
        digits = digits[: len(digits) - (len(digits) % 4 == 1)]  # one digit alone is no byte
        inner.append((f"!base64 at {match.start()}", base64.b64decode(digits + b"=" * (-len(digits) % 4))))
    for name, blob in inner:
        for inside, deeper in _unpacked(blob, depth + 1):
            yield name + inside, deeper


def zipped(name: str, data: bytes) -> bytes:
    """Return a zip of one file."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, data)
    return buffer.getvalue()


DISGUISES: dict[str, Callable[[bytes], bytes]] = {
    "as it is": bytes,
    "UTF-16, little endian": lambda data: data.decode("latin-1").encode("utf-16-le"),
    "UTF-16, big endian": lambda data: data.decode("latin-1").encode("utf-16-be"),
    "hexadecimal": lambda data: data.hex().encode(),
    "base64": base64.b64encode,
    "base64, one byte later": lambda data: base64.b64encode(b"x" + data),
    "base64, two bytes later": lambda data: base64.b64encode(b"xx" + data),
    "gzip": gzip.compress,
    "zip": lambda data: zipped("member", data),
    "a stream amid others": lambda data: b"x\x9cjunk" + zlib.compress(data) + b"more",
    "a zip in base64 in JSON": lambda data: b'{"image": "' + base64.b64encode(zipped("member", data)) + b'"}',
}
