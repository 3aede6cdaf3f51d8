"""Measure speed and memory of reading DICOM.

1. Files per second and peak memory from DICOM to voxels and to NIfTI files: ours, with everything
   checked, beside other readers of the same files. Every measurement is a process of its own that
   has read a few files before the clock starts, the rows take turns, and the files are in the page
   cache.
2. Peak memory of the stage `ingest` when the number of studies grows tenfold.

Readers that medstyle does not need are left out unless a folder holds them; no package there
replaces one that is installed:
pip install --no-deps --target TOOLS dcm2niix dicom2nifti python-gdcm itk-core itk-io

Usage: python benchmarks/ingest.py [--tools TOOLS] [--repeats 5] [--studies 10 100]
       [--slices 192 140] [--real FOLDER]
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import resource
import shutil
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

# Nothing else is imported here: what runs a program shall be smaller than the program.

ROOT = Path(__file__).parents[1]
REAL = ROOT.parent / "shared/data/dicom_corpus"
# Series that every reader accepts, by several makers, one of them compressed.
REAL_CASES = (
    "mr_oblique_philips", "mr_per_slice_rescale", "mr_sagittal_prone_HFP", "mr_sagittal_decubitus_HFDL",
    "deident_reference", "compressed_jpegll_series",
)  # fmt: skip
REAL_ROUNDS = 10  # there are few, so they are read again and again


def ours(root: Path, _: Path) -> int:
    """Check every file, assess the geometry and read all voxels as float32."""
    return sum(volume.voxels.size for volume in _loaded(root))


def _loaded(root: Path) -> Iterator[Any]:
    from medstyle.cohort.inventory import inventory

    for item in inventory([root]).volumes:
        yield item.load("ct" if item.attributes["Modality"] == "CT" else "mr_t1")


def pydicom_loop(root: Path, _: Path) -> int:
    """Read as most tutorials do: every file, sorted by height and rescaled, without checks."""
    import numpy as np
    from pydicom import dcmread

    voxels = 0
    for folder in _series(root):
        slices = sorted((dcmread(path) for path in folder.iterdir()), key=lambda one: one.ImagePositionPatient[2])
        stack = [
            one.pixel_array * np.float32(one.get("RescaleSlope", 1)) + np.float32(one.get("RescaleIntercept", 0))
            for one in slices
        ]
        voxels += np.stack(stack).size
    return voxels


def simpleitk(root: Path, _: Path) -> int:
    """Read by GDCM through SimpleITK."""
    import SimpleITK as sitk

    voxels = 0
    for folder in _series(root):
        reader = sitk.ImageSeriesReader()
        reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
        voxels += sitk.GetArrayFromImage(reader.Execute()).size
    return voxels


def monai_itk(root: Path, _: Path) -> int:
    """Read by MONAI's ITKReader."""
    import itk  # noqa: F401
    from monai.data import ITKReader

    return _monai(ITKReader(), root)


def monai_pydicom(root: Path, _: Path) -> int:
    """Read by MONAI's PydicomReader."""
    from monai.data import PydicomReader

    return _monai(PydicomReader(), root)


def _monai(reader: Any, root: Path) -> int:
    from monai.transforms import LoadImage

    load = LoadImage(reader, image_only=True)
    return sum(int(load(folder).numel()) for folder in _series(root))


def dicom2nifti_memory(root: Path, _: Path) -> int:
    """Convert by dicom2nifti without writing."""
    import dicom2nifti

    found = (dicom2nifti.dicom_series_to_nifti(str(folder), None, reorient_nifti=False) for folder in _series(root))
    return sum(one["NII"].get_fdata(dtype="float32").size for one in found)


def dicom2nifti_plain(root: Path, out: Path, suffix: str = ".nii") -> int:
    """Convert by dicom2nifti to files."""
    import dicom2nifti

    for folder in _series(root):
        dicom2nifti.dicom_series_to_nifti(str(folder), str(out / f"{folder.name}{suffix}"), reorient_nifti=False)
    return 0


def dicom2nifti_gz(root: Path, out: Path) -> int:
    """Convert by dicom2nifti to compressed files."""
    return dicom2nifti_plain(root, out, ".nii.gz")


def ours_plain(root: Path, out: Path) -> int:
    """Check, read and write each volume."""
    from medstyle.imaging.volume import write_volume

    for number, volume in enumerate(_loaded(root)):
        write_volume(out / f"{number}.nii", volume)
    return 0


def ours_gz(root: Path, out: Path) -> int:
    """Run the whole stage."""
    from medstyle.cohort.rules import Rule
    from medstyle.stages.ingest import Params, run

    rules = (Rule("mr_t1", {"Modality": "MR"}), Rule("ct", {"Modality": "CT"}))
    params = Params(str(root), rules, subject=r"([^/]+)/[^/]+$")  # a folder is a subject, whoever its patient is
    run(params, out / "scans", out / "report.json", log=lambda line: None)
    return 0


def dcm2niix(root: Path, out: Path, level: str = "n") -> int:
    """Convert by dcm2niix, which checks little."""
    places = [Path(os.environ.get("TOOLS", "")) / "bin", Path(sys.executable).parent]
    program = shutil.which("dcm2niix", path=os.pathsep.join(map(str, places))) or shutil.which("dcm2niix")
    if program is None:
        raise ModuleNotFoundError(name="dcm2niix")
    command = [program, "-z", level, "-b", "n", "-f", "%j", "-o", out, root]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return 0


def dcm2niix_gz(root: Path, out: Path) -> int:
    """Convert and compress in one thread."""
    return dcm2niix(root, out, "i")


def dcm2niix_pigz(root: Path, out: Path) -> int:
    """Convert and compress by pigz on every core."""
    if not shutil.which("pigz"):
        raise ModuleNotFoundError(name="pigz")
    return dcm2niix(root, out, "y")


Row = Callable[[Path, Path], int]
TABLES: dict[str, dict[str, Row]] = {
    "to voxels in memory": {
        "medstyle: inventory + load, all checks": ours,
        "pydicom, a bare loop": pydicom_loop,
        "SimpleITK ImageSeriesReader": simpleitk,
        "MONAI LoadImage, ITKReader": monai_itk,
        "MONAI LoadImage, PydicomReader": monai_pydicom,
        "dicom2nifti, in memory": dicom2nifti_memory,
    },
    "to NIfTI, not compressed": {
        "medstyle: inventory + load + write_volume": ours_plain,
        "dcm2niix -z n": dcm2niix,
        "dicom2nifti": dicom2nifti_plain,
    },
    "to NIfTI, compressed": {
        "medstyle: the stage ingest": ours_gz,
        "dcm2niix -z i": dcm2niix_gz,
        "dcm2niix -z y, with pigz": dcm2niix_pigz,
        "dicom2nifti": dicom2nifti_gz,
    },
}


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tools", type=Path, help="folder that pip filled with --target, or a virtual environment")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--studies", type=int, nargs=2, default=(10, 100))
    parser.add_argument("--slices", type=int, nargs=2, default=(192, 140), help="of the MR and the CT series")
    parser.add_argument("--real", type=Path, default=REAL, help="folder whose series are read as well")
    parser.add_argument("--tables", nargs="+", choices=[*TABLES, "memory"], default=[*TABLES, "memory"])
    parser.add_argument("--measure", help=argparse.SUPPRESS)  # table/row/data, in the measurement's own process
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.tools:
        os.environ["TOOLS"] = str(arguments.tools)
        sys.path.append(str(next(arguments.tools.glob("lib/python3*/site-packages"), arguments.tools)))
    if arguments.measure:
        print(json.dumps(measure(arguments.measure, arguments.folder)))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_data(folder, *arguments.slices, arguments.real)
        for table in arguments.tables:
            if table != "memory":
                print_table(table, folder, arguments)
        if "memory" in arguments.tables:
            print_memory(folder, arguments)


def measure(what: str, folder: Path) -> dict[str, Any]:
    """Run one row over one data set.

    Return files per second, peak memory in MiB and cores kept busy.
    """
    table, row, data = what.split("/")
    if table == "memory":
        ours_gz(folder / data, _empty(folder / "out"))
        return {"mib": _own_peak_mib()}
    function = TABLES[table][row]
    rounds = REAL_ROUNDS if data == "real" else 1
    try:
        function(folder / "first" / data, _empty(folder / "out"))
        _empty(folder / "out")
        start, cpu = time.perf_counter(), _cpu_s()
        for number in range(rounds):
            out = folder / "out" / str(number)
            out.mkdir()
            voxels = function(folder / data, out)
        seconds, cpu = time.perf_counter() - start, _cpu_s() - cpu
    except ModuleNotFoundError as error:
        return {"absent": error.name or "a module"}
    except Exception as error:
        return {"failed": type(error).__name__}
    files = sum(path.is_file() for path in (folder / data).rglob("*")) * rounds
    children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    return {
        "files_per_s": files / seconds,
        "mib": children or _own_peak_mib(),
        "cores": cpu / seconds,
        "voxels": voxels or _voxels_in(out),
    }


def _empty(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return folder


def _series(root: Path) -> list[Path]:
    return sorted(path for path in root.iterdir() if path.is_dir())


def _own_peak_mib() -> float:
    """Return the peak of this process; ru_maxrss starts with the peak of the parent process."""
    status = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in status if line.startswith("VmHWM")).split()[1]) / 1024


def _cpu_s() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def _voxels_in(folder: Path) -> int:
    """Count the voxels of the NIfTI files below ``folder`` by their headers."""
    voxels = 0
    for path in folder.rglob("*.nii*"):
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            dimensions, *extents = struct.unpack("<8h", file.read(348)[40:56])
        product = 1
        for extent in extents[:dimensions]:
            product *= extent
        voxels += product
    return voxels


def measured(what: str, folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Run a measurement in a separate process."""
    command = [sys.executable, __file__, "--measure", what, "--folder", str(folder)]
    if arguments.tools:
        command += ["--tools", str(arguments.tools)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def print_table(table: str, folder: Path, arguments: argparse.Namespace) -> None:
    """Measure the rows of a table in turns and print medians, with a note for each missing row."""
    kinds = [path.name for path in sorted(folder.iterdir()) if path.name in ("mr", "ct", "real")]
    found: dict[tuple[str, str], list[dict[str, Any]]] = {(row, kind): [] for row in TABLES[table] for kind in kinds}
    for _ in range(arguments.repeats):
        for (row, kind), results in found.items():
            if not results or "files_per_s" in results[0]:
                results.append(measured(f"{table}/{row}/{kind}", folder, arguments))
    print(f"\n| {table}: files/s, MiB, cores kept busy | " + " | ".join(kinds) + " |\n|---|" + "---|" * len(kinds))
    notes = []
    for row in TABLES[table]:
        cells = []
        for kind in kinds:
            results = found[row, kind]
            if "files_per_s" not in results[0]:
                cells.append("fails: " + results[0]["failed"] if "failed" in results[0] else "")
                continue
            rate, mib, cores = (statistics.median(one[k] for one in results) for k in ("files_per_s", "mib", "cores"))
            cells.append(f"{rate:.0f}, {mib:.0f}, {cores:.1f}")
            expected = found[next(iter(TABLES[table])), kind][0]["voxels"]
            if results[0]["voxels"] != expected:
                notes.append(f"{row}, {kind}: {results[0]['voxels']} voxels where ours has {expected}")
        if absent := next((one["absent"] for kind in kinds for one in found[row, kind] if "absent" in one), ""):
            notes.append(f"{row}: left out, {absent} is not installed (see --tools)")
        else:
            print(f"| {row} | " + " | ".join(cells) + " |")
    print("\n".join(["", *notes]) if notes else "")


def print_memory(folder: Path, arguments: argparse.Namespace) -> None:
    """Print the peak memory of the stage for both numbers of studies, and the ratio."""
    peaks = []
    print("| studies of 24 x 256 x 256 | files | peak of the stage ingest, MiB |\n|---|---|---|")
    for studies in arguments.studies:
        name = f"studies{studies}"
        for number in range(studies):
            write_mr(folder / name / f"{number:03d}", 24, f"{name}.{number}")
        peaks.append(measured(f"memory/stage/{name}", folder, arguments)["mib"])
        print(f"| {studies} | {24 * studies} | {peaks[-1]:.0f} |")
    print(f"\n{arguments.studies[1] / arguments.studies[0]:g} x the studies: {peaks[1] / peaks[0]:.2f} x the peak")


def write_data(folder: Path, mr_slices: int, ct_slices: int, real: Path) -> None:
    """Write the data sets, one folder per series, and small ones of the same kind to start with."""
    write_mr(folder / "mr/1", mr_slices, "mr")
    write_mr(folder / "first/mr/1", 4, "mr0")
    write_ct(folder / "ct/1", ct_slices, "ct")
    write_ct(folder / "first/ct/1", 4, "ct0")
    cases = [case for case in REAL_CASES if (real / case).is_dir()]
    for case in cases or sorted(path.name for path in real.iterdir() if path.is_dir()) if real.is_dir() else ():
        shutil.copytree(real / case, folder / "real" / case, copy_function=shutil.copyfile)
    if (folder / "real").is_dir():
        (folder / "first/real").symlink_to(folder / "real")


def write_mr(folder: Path, slices: int, name: str) -> None:
    """Write a head of noisy tissue as MR, 256 x 256, 12 bits."""
    import numpy as np

    rng = np.random.default_rng(0)
    z, y, x = np.meshgrid(*(np.linspace(-1, 1, n) for n in (slices, 256, 256)), indexing="ij", sparse=True)
    r = (x / 0.75) ** 2 + (y / 0.9) ** 2 + (z / 1.1) ** 2
    signal = np.select([r < 0.5, r < 0.8, r < 1], [700.0, 1100.0, 250.0], 0.0)
    noise = rng.standard_normal((2, *r.shape), np.float32) * 25
    _write(folder, np.hypot(signal + noise[0], noise[1]), (1.0, 1.0, 1.0), "mr_t1", name)


def write_ct(folder: Path, slices: int, name: str) -> None:
    """Write a body in air as CT, 512 x 512, 12 bits."""
    import numpy as np

    rng = np.random.default_rng(0)
    _, y, x = np.meshgrid(*(np.linspace(-1, 1, n) for n in (slices, 512, 512)), indexing="ij", sparse=True)
    r = x**2 + (y / 0.7) ** 2 + np.zeros((slices, 1, 1))
    values = np.select([r < 0.02, r < 0.4, r < 0.7], [600.0, 45.0, -90.0], -1000.0)
    noise = rng.standard_normal(r.shape, np.float32) * np.where(r < 0.7, np.float32(18), np.float32(6))
    _write(folder, values + noise, (0.8, 0.8, 2.0), "ct", name)


def _write(folder: Path, values: Any, spacing_mm: tuple[float, float, float], domain: str, name: str) -> None:
    import numpy as np

    from medstyle.dicom.acquired import write_series
    from medstyle.dicom.uids import uid_of
    from medstyle.imaging.volume import Volume

    attributes = {
        "PatientID": name,
        "PatientName": name,
        "StudyInstanceUID": uid_of(name, "study"),
        "SeriesInstanceUID": uid_of(name, "series"),
        "FrameOfReferenceUID": uid_of(name, "frame"),
        "StudyID": "1",
        "SeriesNumber": 1,
        "SeriesDescription": "benchmark",
        "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL" if domain == "ct" else "M"],
        "Manufacturer": "none",
    }
    if domain != "ct":
        attributes |= {"ScanningSequence": "SE", "SequenceVariant": "NONE", "EchoTime": "10", "RepetitionTime": "500"}
    volume = Volume(np.asarray(values, np.float32), np.diag([*spacing_mm, 1.0]), domain)
    write_series(folder, volume, attributes, range(1, len(volume.voxels) + 1))


if __name__ == "__main__":
    main()
