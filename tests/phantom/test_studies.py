"""The digital brain phantom: physics, anatomy, determinism, and valid DICOM."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk

from medstyle.errors import UserError
from medstyle.imaging.volume import read_volume
from medstyle.params import parse
from medstyle.phantom.anatomy import AIR, CSF, GM, LESION, TISSUES, WM
from medstyle.phantom.studies import (
    DOMAINS,
    SITES,
    PhantomParams,
    Subject,
    acquire,
    draw_subject,
    write_phantom,
    write_subject,
)

COARSE = PhantomParams(subjects=2, matrix=64, slices=16, spacing_mm=(3.6, 3.6, 6.0), domains=DOMAINS, sites=2)


@pytest.fixture(scope="module")
def subject() -> Subject:
    """A subject with lesions on a grid fine enough for pure tissue."""
    params = dataclasses.replace(COARSE, matrix=96, slices=20, spacing_mm=(2.4, 2.4, 4.0))
    return next(s for s in (draw_subject(params, i) for i in range(9)) if len(s.lesions) >= 3)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("phantom")
    write_phantom(out, COARSE, workers=1)
    return out


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def series(folder: Path) -> list[pydicom.Dataset]:
    """Slices in spatial order."""
    files = [pydicom.dcmread(f) for f in folder.iterdir()]
    axis = np.cross(files[0].ImageOrientationPatient[:3], files[0].ImageOrientationPatient[3:])
    return sorted(files, key=lambda d: float(axis @ np.array(d.ImagePositionPatient, float)))


def pixels(slices: list[pydicom.Dataset]) -> np.ndarray:
    return np.stack(
        [d.pixel_array.astype(float) * d.get("RescaleSlope", 1) + d.get("RescaleIntercept", 0) for d in slices]
    )


# --- determinism
# ------------------------------------------------------------------------------------------------


def test_bytes_do_not_depend_on_the_number_of_workers(written: Path, tmp_path: Path) -> None:
    write_phantom(tmp_path, COARSE, workers=2)
    assert contents(tmp_path) == contents(written)


def test_another_seed_gives_another_head_and_other_identifiers(written: Path, tmp_path: Path) -> None:
    write_subject(tmp_path, dataclasses.replace(COARSE, seed=1, domains=("mr_t1",)), 0)
    ours, theirs = (series(p / "studies/PHANTOM-0000/01_mr_t1") for p in (written, tmp_path))
    assert np.corrcoef(pixels(ours).ravel(), pixels(theirs).ravel())[0, 1] < 0.95
    assert ours[0].StudyInstanceUID != theirs[0].StudyInstanceUID


def test_fewer_domains_or_more_subjects_leave_a_series_as_it_is(written: Path, tmp_path: Path) -> None:
    write_subject(tmp_path, dataclasses.replace(COARSE, subjects=9, domains=("mr_t1",)), 0)
    name = "studies/PHANTOM-0000/01_mr_t1"
    assert contents(tmp_path / name) == contents(written / name)


def test_subjects_differ_in_anatomy() -> None:
    white = [draw_subject(COARSE, i, lesions=False).fractions[WM] > 0.5 for i in (0, 1)]
    assert 2 * (white[0] & white[1]).sum() / (white[0].sum() + white[1].sum()) < 0.9


# --- anatomy
# ------------------------------------------------------------------------------------------------


def test_fractions_are_a_partition_with_adult_volumes(subject: Subject) -> None:
    assert np.abs(subject.fractions.sum(axis=0) - 1).max() < 1e-4
    assert subject.fractions.min() >= -1e-6
    litres = subject.fractions.sum(axis=(1, 2, 3)) * abs(np.linalg.det(subject.affine[:3, :3])) / 1e6
    # The slab of 80 mm holds most of a brain: whole ones have 0.5-0.9 l grey, 0.4-0.7 l white
    # matter.
    assert 0.3 < litres[GM] < 0.9
    assert 0.25 < litres[WM] < 0.7
    assert 0.03 < litres[CSF] < 0.45


def test_slices_are_oblique_and_the_affine_is_orthogonal(subject: Subject) -> None:
    axes = subject.affine[:3, :3] / np.linalg.norm(subject.affine[:3, :3], axis=0)
    assert np.allclose(axes.T @ axes, np.eye(3), atol=1e-12)
    assert 0.5 < np.rad2deg(np.arccos(axes[2, 2])) < 9


# --- lesions
# ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("domain", "sign"), [("mr_t1", -1), ("mr_t2", 1), ("mr_pd", 1), ("mr_flair", 1), ("ct", -1)])
@pytest.mark.parametrize("site", SITES, ids=lambda s: s.name)
def test_lesions_are_visible_with_the_right_sign(subject: Subject, domain: str, sign: int, site) -> None:
    before = draw_subject(
        dataclasses.replace(COARSE, matrix=96, slices=20, spacing_mm=(2.4, 2.4, 4.0)), subject.index, lesions=False
    )
    assert not before.lesion_ids.any()
    with_, without = (s.image(domain, site).voxels for s in (subject, before))
    for number in range(1, len(subject.lesions) + 1):
        here = subject.lesion_ids == number
        assert sign * (with_[here] - without[here]).mean() > 0.02 * abs(without[here].mean())
    away = subject.fractions[LESION] == 0
    assert np.abs(with_ - without)[away].mean() < 1e-3 * np.abs(without[away]).mean()


def test_lesions_are_numbered_placed_and_sized(subject: Subject) -> None:
    voxel_mm3 = abs(np.linalg.det(subject.affine[:3, :3]))
    assert set(np.unique(subject.lesion_ids)) == set(range(len(subject.lesions) + 1))
    for number, lesion in enumerate(subject.lesions, 1):
        assert 2 <= lesion.radius_mm <= 8
        where = np.argwhere(subject.lesion_ids == number)[:, ::-1].mean(axis=0)
        centre = subject.affine[:3, :3] @ where + subject.affine[:3, 3]
        assert np.linalg.norm(centre - lesion.centre_mm) < max(4.0, 0.6 * lesion.radius_mm)
        volume = (subject.lesion_ids == number).sum() * voxel_mm3
        assert volume < 1.6 * 4 / 3 * np.pi * lesion.radius_mm**3 + voxel_mm3


def test_some_subjects_have_no_lesions_and_sizes_vary() -> None:
    params = dataclasses.replace(COARSE, matrix=48, slices=14, spacing_mm=(4.8, 4.8, 7.0))
    found = [draw_subject(params, i).lesions for i in range(12)]
    assert 0 < sum(not lesions for lesions in found) < 8
    radii = [lesion.radius_mm for lesions in found for lesion in lesions]
    assert min(radii) < 3.0
    assert max(radii) > 5.0
    assert not any(draw_subject(dataclasses.replace(params, lesions=0), i).lesions for i in range(2))


# --- physics
# ------------------------------------------------------------------------------------------------


def expected_signal(domain: str, site: int, t1: float, t2: float, pd: float) -> float:
    """The textbook's equations once more, with the protocols' numbers written out."""
    tr, te = {
        "mr_t1": ((18, 5), (12, 3)),
        "mr_t2": ((4500, 100), (6000, 85)),
        "mr_pd": ((3000, 20), (3500, 22)),
        "mr_flair": ((9000, 120), (11000, 125)),
    }[domain][site]
    decay = pd * np.exp(-te / t2)
    if domain == "mr_t1":
        a = np.deg2rad((30, 20)[site])
        return decay * np.sin(a) * (1 - np.exp(-tr / t1)) / (1 - np.cos(a) * np.exp(-tr / t1))
    if domain == "mr_flair":
        return decay * abs(1 - 2 * np.exp(-(2460, 2590)[site] / t1) + np.exp(-tr / t1))
    return decay * (1 - np.exp(-tr / t1))


@pytest.mark.parametrize("site", [0, 1])
@pytest.mark.parametrize("domain", ["mr_t1", "mr_t2", "mr_pd", "mr_flair"])
def test_pure_tissue_has_the_signal_of_the_equation(subject: Subject, domain: str, site: int) -> None:
    sharp = dataclasses.replace(SITES[site], blur_mm=0.0)
    plain = dataclasses.replace(subject, water=np.zeros_like(subject.water))
    image = plain.image(domain, sharp).voxels
    for tissue in (WM, CSF):
        pure = plain.fractions[tissue] > 0.999
        assert pure.sum() > 10
        expected = expected_signal(domain, site, *plain.values(tissue, sharp))
        assert image[pure].mean() == pytest.approx(expected, rel=2e-3, abs=2e-4)  # inversion nulls fluid


def test_contrasts_order_the_tissues_as_in_the_clinic(subject: Subject) -> None:
    for site in SITES:
        t1, t2, flair = (
            {t: site.sequences[d].signal(*subject.values(t, site)) for t in (CSF, GM, WM, LESION)}
            for d in ("mr_t1", "mr_t2", "mr_flair")
        )
        assert t1[CSF] < t1[GM] < t1[WM]
        assert t2[WM] < t2[GM] < t2[CSF]
        assert flair[CSF] < 0.35 * flair[WM] < flair[WM] < flair[GM] < flair[LESION]


def test_air_has_rayleigh_noise_of_the_given_level(subject: Subject) -> None:
    params = dataclasses.replace(COARSE, noise=0.1, bias=0.0)
    scanned, truth = acquire(params, subject, "mr_t2")
    white = subject.site.sequences["mr_t2"].signal(*subject.values(WM))
    gain = truth.voxels.max() / subject.image("mr_t2").voxels.max()
    air = scanned.voxels[truth.voxels < 1e-6]
    sigma = 0.1 * gain * white
    assert air.mean() == pytest.approx(sigma * np.sqrt(np.pi / 2), rel=0.01)
    assert air.std() == pytest.approx(sigma * np.sqrt(2 - np.pi / 2), rel=0.01)


def test_bias_is_smooth_shared_and_of_the_given_range(subject: Subject) -> None:
    params = dataclasses.replace(COARSE, noise=0.0, bias=0.4)
    fields = []
    for domain in ("mr_t1", "mr_t2"):
        scanned, truth = acquire(params, subject, domain)
        inside = truth.voxels > 30
        fields.append(np.where(inside, scanned.voxels / np.maximum(truth.voxels, 30), np.nan))
    both = np.isfinite(fields[0]) & np.isfinite(fields[1])
    assert all(0.8 - 1e-3 <= f[both].min() < 0.95 and 1.0 < f[both].max() <= 1.2 + 1e-3 for f in fields)
    assert all(np.nanmax(np.abs(np.diff(f, axis=2))) < 0.03 for f in fields)
    assert np.corrcoef(fields[0][both], fields[1][both])[0, 1] > 0.5


def test_a_ct_has_the_hounsfield_units_of_its_tissues(subject: Subject) -> None:
    scanned, truth = acquire(dataclasses.replace(COARSE, noise=0.02), subject, "ct")
    assert truth.voxels[subject.fractions[AIR] == 1].min() == pytest.approx(-1000, abs=1)
    assert 20 < np.median(truth.voxels[subject.fractions[WM] > 0.99]) < 45
    assert 0 < np.median(truth.voxels[subject.fractions[CSF] > 0.99]) < 20
    assert 600 < truth.voxels.max() < 1400
    assert (scanned.voxels - truth.voxels).std() == pytest.approx(3.0, rel=0.02)


# --- DICOM
# ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("domain", DOMAINS)
def test_dciodvfy_finds_no_error(written: Path, domain: str) -> None:
    if not shutil.which("dciodvfy"):
        pytest.skip("dciodvfy (package dicom3tools) is not installed")
    file = next(written.glob(f"studies/PHANTOM-0001/*_{domain}/0003.dcm"))
    found = subprocess.run(["dciodvfy", "-new", str(file)], capture_output=True, text=True, check=False)
    lines = (found.stdout + found.stderr).splitlines()
    assert lines[0] == ("CTImage" if domain == "ct" else "MRImage")
    assert not [line for line in lines if line.startswith("Error")]


def test_a_study_shares_its_identity_and_nothing_else_does(written: Path) -> None:
    files = [pydicom.dcmread(f, stop_before_pixels=True) for f in written.glob("studies/*/*/*.dcm")]
    assert len(files) == COARSE.subjects * len(DOMAINS) * COARSE.slices
    assert len({f.SOPInstanceUID for f in files}) == len(files)
    assert len({f.SeriesInstanceUID for f in files}) == COARSE.subjects * len(DOMAINS)
    for keyword in ("StudyInstanceUID", "FrameOfReferenceUID"):
        assert len({(f.PatientID, f[keyword].value) for f in files}) == COARSE.subjects
    assert {f.PatientID for f in files} == {"PHANTOM-0000", "PHANTOM-0001"}
    assert all(f.QualityControlImage == "YES" for f in files)


def test_file_names_do_not_give_the_spatial_order(written: Path) -> None:
    folder = written / "studies/PHANTOM-0000/01_mr_t1"
    numbers = [pydicom.dcmread(f, stop_before_pixels=True).InstanceNumber for f in sorted(folder.iterdir())]
    assert sorted(numbers) == list(range(1, COARSE.slices + 1))
    assert numbers != sorted(numbers)


@pytest.mark.parametrize("domain", DOMAINS)
def test_truth_lies_on_the_series_grid_in_its_unit(written: Path, domain: str) -> None:
    slices = series(next(written.glob(f"studies/PHANTOM-0000/*_{domain}")))
    truth = read_volume(written / f"truth/PHANTOM-0000/{domain}.nii.gz", domain)
    first = slices[0]
    assert np.allclose(truth.origin_mm, np.array(first.ImagePositionPatient, float), atol=1e-3)
    last = truth.affine @ np.array([0, 0, len(slices) - 1, 1])
    assert np.allclose(last[:3], np.array(slices[-1].ImagePositionPatient, float), atol=1e-3)
    assert np.allclose(truth.direction[:, :2].T.ravel(), np.array(first.ImageOrientationPatient, float), atol=1e-5)
    assert np.allclose(truth.spacing_mm[:2], np.array(first.PixelSpacing, float)[::-1], atol=1e-4)
    stored = pixels(slices)
    assert stored.max() < (3071 if domain == "ct" else 4095)
    inside = truth.voxels > (-500 if domain == "ct" else 100)
    slope = (stored[inside] * truth.voxels[inside]).sum() / (truth.voxels[inside] ** 2).sum()
    assert slope == pytest.approx(1, abs=0.12)  # the bias field is all that is left


def test_truth_has_integer_labels_and_the_lesions(written: Path) -> None:
    for patient in ("PHANTOM-0000", "PHANTOM-0001"):
        folder = written / "truth" / patient
        facts = json.loads((folder / "subject.json").read_text())
        labels, lesions = (sitk.ReadImage(str(folder / f"{name}.nii.gz")) for name in ("labels", "lesions"))
        assert labels.GetPixelID() == lesions.GetPixelID() == sitk.sitkUInt8
        ids = sitk.GetArrayFromImage(lesions)
        assert ids.max() == len(facts["lesions"])
        assert ((sitk.GetArrayFromImage(labels) == LESION) >= (ids > 0)).all()
        assert list(facts["labels"].values()) == list(TISSUES)


def test_two_sites_differ_and_each_has_the_other_ones_truth(written: Path) -> None:
    one, two = (series(written / f"studies/PHANTOM-000{i}/01_mr_t1")[0] for i in (0, 1))
    assert (one.StationName, two.StationName) == ("SITE-A", "SITE-B")
    assert (one.MagneticFieldStrength, two.MagneticFieldStrength) == (1.5, 3)
    assert one.RepetitionTime != two.RepetitionTime
    assert one.ManufacturerModelName != two.ManufacturerModelName
    own = read_volume(written / "truth/PHANTOM-0000/mr_t1.nii.gz", "mr_t1")
    other = read_volume(written / "truth/PHANTOM-0000/mr_t1_SITE-B.nii.gz", "mr_t1")
    assert np.allclose(own.affine, other.affine)
    white = sitk.GetArrayFromImage(sitk.ReadImage(str(written / "truth/PHANTOM-0000/labels.nii.gz"))) == WM
    assert other.voxels[white].mean() < 0.8 * own.voxels[white].mean()
    assert not list((written / "truth").rglob("ct_*"))


# --- bad input
# ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("subjects", 0),
        ("matrix", 4),
        ("slices", 1),
        ("noise", -0.1),
        ("bias", 2.0),
        ("lesions", -1),
        ("sites", 3),
        ("seed", -1),
        ("domains", []),
        ("domains", ["mr_t1", "mr_t1"]),
        ("domains", ["photo"]),
        ("spacing_mm", [1.0, 1.0, 0.0]),
        ("spacing_mm", [1.0, 1.0]),
        ("unheard_of", 1),
    ],
)
def test_a_bad_value_is_named(key: str, value: object) -> None:
    with pytest.raises(UserError, match=key):
        parse(PhantomParams, {key: value}, "params.yaml: acquire")
