"""Write a structured report on a derived series, for readers and machines (TID 1500, PS3.16)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes

from medstyle.dicom.elements import quiet
from medstyle.dicom.scan import Series
from medstyle.dicom.uids import IMPLEMENTATION_UID, uid_of
from medstyle.dicom.write import save
from medstyle.imaging.modality import DOMAINS
from medstyle.jobs.atomic import atomic_folder

__patient_data__ = True  # errors raised here may quote patient data: medstyle.errors.outline masks their text

SCHEME = "99MEDSTYLE"  # of the concepts that the standard has no code for
RESEARCH = "Research only. Synthetic image made by a neural network; not for diagnostic use."


@dataclass(frozen=True)
class Finding:
    """What a report says.

    Attributes:
        model, version, gate: as the registry knows the model.
        software: version of this package.
        sha256: hash of the weights.
        domain: of the derived series.
        ood_score: distance from the training images in their standard deviations.
        ood_verdict: ``ok``, ``warn`` or ``refuse``.
        uncertainty: mean standard deviation inside the body in the unit of ``domain``; None if it
            was not measured.
        notes: what else a reader should know.
    """

    model: str
    version: str
    gate: str
    software: str
    sha256: str
    domain: str
    ood_score: float
    ood_verdict: str
    uncertainty: float | None = None
    notes: tuple[str, ...] = ()


def write_report(finding: Finding, source: Series, derived: Sequence[Path], out_dir: Path) -> Path:
    """Write a Comprehensive SR of the source's study; return its file, in a new folder.

    The image library names every image of the source and of the derived series (TID 1600). The
    measurement group has the model as the algorithm (TID 4019), the two scores as numbers, and the
    rest as text. UIDs are derived from those of the derived series.

    Args:
        finding: what is said.
        source: the series that the derived one was made from.
        derived: the files of the derived series, of a map too if there is one.
        out_dir: parent of the new folder.
    """
    from highdicom.sr import ComprehensiveSR

    with quiet():
        headers = [dcmread(path, stop_before_pixels=True) for path in derived]
        first = headers[0]
        evidence = [*headers, *_evidence(source, first)]
        series_uid = uid_of(first.SeriesInstanceUID, "report")
        report = ComprehensiveSR(
            evidence=evidence,
            content=_content(finding, source, first, evidence),
            series_instance_uid=series_uid,
            series_number=int(first.get("SeriesNumber") or 0) % 10**8 + 600,
            sop_instance_uid=uid_of(series_uid, "0"),
            instance_number=1,
            manufacturer="medstyle project",
            is_complete=True,
            is_verified=False,
            series_description="REPORT AI NOT FOR DIAGNOSIS",
        )
        report.ManufacturerModelName, report.DeviceSerialNumber = "medstyle", "0"
        report.SoftwareVersions = [finding.software[:64], f"model sha256:{finding.sha256[:16]}"]
        for name in ("SeriesDate", "SeriesTime", "ContentDate", "ContentTime"):
            setattr(report, name, first.get(name))
        report.SyntheticData = "YES"
        with atomic_folder(out_dir / f"report-{series_uid[-12:]}", own=True) as scratch:
            save(report, scratch / "0001.dcm")
    return out_dir / f"report-{series_uid[-12:]}" / "0001.dcm"


def _evidence(source: Series, patient: Dataset) -> list[Dataset]:
    """Return what must be known of the images of the source, one data set for each."""
    found = {}
    for frame in source.frames:
        instance, image = frame.instance, Dataset()
        image.SOPClassUID, image.SOPInstanceUID = instance.sop_class, instance.sop_uid
        image.SeriesInstanceUID = source.series_uid or uid_of("series", *instance.series)
        image.StudyInstanceUID = patient.StudyInstanceUID
        for name in ("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber"):
            setattr(image, name, patient.get(name))
        image.Rows, image.Columns = instance.rows, instance.columns
        found[instance.sop_uid] = image
    return list(found.values())


def _content(finding: Finding, source: Series, derived: Dataset, evidence: Sequence[Dataset]) -> Any:
    from highdicom.sr import (
        AlgorithmIdentification,
        DeviceObserverIdentifyingAttributes,
        MeasurementReport,
        MeasurementsAndQualitativeEvaluations,
        ObservationContext,
        ObserverContext,
        SourceImageForMeasurementGroup,
        TrackingIdentifier,
    )

    device = DeviceObserverIdentifyingAttributes(
        uid=IMPLEMENTATION_UID, name="medstyle", manufacturer_name="medstyle project", model_name="medstyle"
    )
    algorithm = AlgorithmIdentification(
        name=finding.model[:64],
        family=codes.cid7162.ArtificialIntelligence,
        version=f"{finding.version}; weights sha256:{finding.sha256}",
        manufacturer="medstyle project",
    )
    images = [SourceImageForMeasurementGroup(one.SOPClassUID, one.SOPInstanceUID) for one in evidence]
    group = MeasurementsAndQualitativeEvaluations(
        tracking_identifier=TrackingIdentifier(uid_of(derived.SeriesInstanceUID, "tracking"), "synthetic series"),
        algorithm_id=algorithm,
        measurements=_measurements(finding),
        qualitative_evaluations=_evaluations(finding),
        source_images=images,
        finding_type=_concept("synthetic-series", "Synthetic series"),
    )
    group[0].ContentSequence.extend(_texts(finding, source, derived))
    return MeasurementReport(
        observation_context=ObservationContext(ObserverContext(codes.DCM.Device, device)),
        procedure_reported=_concept("image-synthesis", "Image synthesis by a neural network"),
        imaging_measurements=[group],
        title=codes.DCM.ImagingMeasurementReport,
    )


def _concept(value: str, meaning: str) -> Any:
    from highdicom.sr import CodedConcept

    return CodedConcept(value, SCHEME, meaning)


def _measurements(finding: Finding) -> list[Any]:
    from highdicom.sr import Measurement

    name = _concept("ood-score", "Out-of-distribution score")  # in standard deviations of the training images
    found = [Measurement(name, finding.ood_score, codes.UCUM.NoUnits)]
    if finding.uncertainty is not None:
        unit = codes.UCUM.HounsfieldUnit if DOMAINS[finding.domain].unit == "HU" else codes.UCUM.ArbitraryUnit
        name = _concept("uncertainty", "Mean uncalibrated standard deviation of the output")
        found.append(Measurement(name, finding.uncertainty, unit))
    return found


def _evaluations(finding: Finding) -> list[Any]:
    from highdicom.sr import QualitativeEvaluation

    gate = finding.gate if finding.gate in ("passed", "failed") else "not-asked"
    answers = {
        _concept("ood-verdict", "Out-of-distribution verdict"): (finding.ood_verdict, finding.ood_verdict),
        _concept("gate", "Verdict of the quality gate on the model"): (gate, gate.replace("-", " ")),
        _concept("purpose", "Purpose of use"): ("research-only", "Research only"),
    }
    return [QualitativeEvaluation(name, _concept(*answer)) for name, answer in answers.items()]


def _texts(finding: Finding, source: Series, derived: Dataset) -> list[Any]:
    from highdicom.sr import RelationshipTypeValues, TextContentItem, UIDRefContentItem

    label = DOMAINS[finding.domain].label
    texts = {
        "What was made": f"synthetic {label} from {len(source.frames)} source images",
        "Weights": f"sha256:{finding.sha256}",
        "Software": f"medstyle {finding.software}",
        "Notice": " ".join([RESEARCH, *finding.notes]),
    }
    contains = RelationshipTypeValues.CONTAINS
    uids = {"Source series": source.series_uid, "Derived series": derived.SeriesInstanceUID}
    return [
        *(UIDRefContentItem(_named(name), uid, contains) for name, uid in uids.items() if uid),
        *(TextContentItem(_named(name), text, contains) for name, text in texts.items()),
    ]


def _named(name: str) -> Any:
    return _concept(name.lower().replace(" ", "-"), name)
