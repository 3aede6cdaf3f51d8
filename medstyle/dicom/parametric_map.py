"""Write values such as an uncertainty as a DICOM Parametric Map with their unit (PS3.3 A.75)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes

from medstyle.dicom.uids import uid_of
from medstyle.imaging.modality import DOMAINS
from medstyle.imaging.volume import Volume

__patient_data__ = True  # errors raised here may quote patient data: medstyle.errors.outline masks their text

UNITS = {"HU": codes.UCUM.HounsfieldUnit, "a.u.": codes.UCUM.ArbitraryUnit}


MEANING = {
    "uncertainty": ("standard deviation of the output", "Uncalibrated standard deviation of a synthetic {} image"),
    "interval": ("half width of the interval", "Half width of the interval of a synthetic {} image"),
}


def parametric_map(
    volume: Volume, sources: Sequence[Dataset], grids: Sequence[Dataset], series_uid: str, kind: str = "uncertainty"
) -> Dataset:
    """Build one object with a frame of 32-bit floating-point values per slice.

    Args:
        volume: in the unit of its domain.
        sources: headers of the images from which it was computed; patient, study and series number
            are copied from them.
        grids: the elements that define the position of each slice.
        series_uid: UID of the new series.
        kind: what the values are, a key of ``MEANING``.
    """
    from highdicom.content import PixelMeasuresSequence, PlaneOrientationSequence, PlanePositionSequence
    from highdicom.enum import CoordinateSystemNames
    from highdicom.pm import ParametricMap, RealWorldValueMapping

    values = volume.voxels.astype(np.float32)
    top = max(float(values.max()), 1e-6)
    unit = DOMAINS[volume.domain].unit
    label, (quantity, description) = kind.upper(), MEANING[kind]
    mapping = RealWorldValueMapping(label, quantity, UNITS[unit], (0.0, top), 1.0, 0.0)
    first, patient = grids[0], CoordinateSystemNames.PATIENT
    return ParametricMap(
        sources,
        values,
        series_instance_uid=series_uid,
        series_number=int(sources[0].SeriesNumber),
        sop_instance_uid=uid_of(series_uid, "0"),
        instance_number=1,
        manufacturer="medstyle project",
        manufacturer_model_name="medstyle",
        software_versions="medstyle",
        device_serial_number="0",
        contains_recognizable_visual_features=False,
        real_world_value_mappings=[mapping],
        window_center=top / 2,
        window_width=top,
        content_label=label,
        content_description=description.format(DOMAINS[volume.domain].label),
        pixel_measures=PixelMeasuresSequence(
            first.PixelSpacing, first.get("SliceThickness") or 1.0, first.get("SpacingBetweenSlices") or None
        ),
        plane_orientation=PlaneOrientationSequence(patient, first.ImageOrientationPatient),
        plane_positions=[PlanePositionSequence(patient, grid.ImagePositionPatient) for grid in grids],
    )
