"""Define the model that MLflow serves, logged as models-from-code, with safetensors and no pickle.

Each row of a request has one image as bytes: DICOM, NIfTI, PNG, JPEG, NPY, or a zip of one DICOM
series or of all series that the translator needs. The answer has the synthetic image in the same
container, in base64, with its scores.
"""

from __future__ import annotations

import base64
import io
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.protos.databricks_pb2 import BAD_REQUEST, INTERNAL_ERROR
from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema

from medstyle.errors import Code, ParamsError

MAX_BYTES = 1 << 30  # limit for the content of a zip, counted while it is unpacked
SEEDS = 2**63
MAX_MEMBERS = 20_000
CONTENT = {
    "dicom": ("application/dicom", ".dcm"),
    "zip": ("application/zip", ".zip"),
    "nifti": ("application/x-nifti", ".nii"),
    "nifti.gz": ("application/x-nifti", ".nii.gz"),
    "png": ("image/png", ".png"),
    "jpeg": ("image/jpeg", ".jpg"),
    "npy": ("application/x-npy", ".npy"),
}
MAPS = ("uncertainty", "interval")  # columns of an answer, and names of the maps of a translation
SIGNATURE = ModelSignature(
    inputs=Schema([ColSpec(DataType.binary, "image"), ColSpec(DataType.binary, "reference", required=False)]),
    outputs=Schema(
        [
            ColSpec(DataType.string, "image"),
            ColSpec(DataType.string, "content_type"),
            ColSpec(DataType.string, "domain"),
            ColSpec(DataType.double, "ood_score"),
            ColSpec(DataType.string, "ood_verdict"),
            ColSpec(DataType.string, "uncertainty"),
            ColSpec(DataType.string, "interval"),
            ColSpec(DataType.string, "weights_sha256"),
            ColSpec(DataType.string, "warnings"),
        ]
    ),
    params=ParamSchema(
        [
            ParamSpec("target", DataType.string, ""),
            ParamSpec("seed", DataType.long, -1),
            ParamSpec("uncertainty", DataType.boolean, False),
            ParamSpec("output", DataType.string, "same"),
            ParamSpec("sharpness", DataType.double, -1.0),
        ]
    ),
)


def container_of(data: bytes) -> str:
    """Return the container by its first bytes.

    Raises :class:`Refusal` (``E_FORMAT``) for others.
    """
    from medstyle.errors import Refusal

    if data[128:132] == b"DICM" or data[:2] == b"\x08\x00":
        return "dicom"
    for magic, name in (
        (b"PK\x03\x04", "zip"),
        (b"\x1f\x8b", "nifti.gz"),
        (b"\x89PNG", "png"),
        (b"\xff\xd8\xff", "jpeg"),
    ):
        if data.startswith(magic):
            return name
    if data.startswith(b"\x93NUMPY"):
        return "npy"
    if data[344:347] in (b"n+1", b"ni1"):
        return "nifti"
    raise Refusal(Code.E_FORMAT, "not DICOM, NIfTI, PNG, JPEG, NPY or a zip of DICOM; send the file's bytes in base64")


def unpack(data: bytes, folder: Path) -> None:
    """Unpack a zip under generated names, so that no name in it can lead out of ``folder``.

    The size is limited.
    """
    from medstyle.jobs.unzip import unzip

    unzip(io.BytesIO(data), lambda number, name: folder / f"{number:06d}.dcm", MAX_MEMBERS, MAX_BYTES)


class Failure(MlflowException):  # type: ignore[misc]
    """An error whose message is kept unchanged.

    MLflow's server would prepend the request's data.
    """

    def __init__(self, message: str, error_code: int) -> None:
        self._message = message
        super().__init__(message, error_code)

    @property
    def message(self) -> str:
        """The message to the client."""
        return self._message

    @message.setter
    def message(self, value: str) -> None:
        pass


class ServedTranslator(mlflow.pyfunc.PythonModel):  # type: ignore[misc]
    """Answers every row.

    One bad image is an error of its own request and does not affect others.
    """

    def load_context(self, context: Any) -> None:
        """Load the translator folder among the model's artifacts."""
        from medstyle.networks.translator import Translator

        self.translator = Translator.load(context.artifacts["translator"])

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """Translate the column ``image``.

        See the module for containers, ``SIGNATURE`` for parameters.
        """
        from medstyle.errors import UserError, outline

        params = params or {}
        references = model_input["reference"] if "reference" in model_input else [None] * len(model_input)
        rows = []
        for number, (image, reference) in enumerate(zip(model_input["image"], references, strict=True)):
            try:
                rows.append(self._answer(bytes(image or b""), params, bytes(reference or b"")))
            except UserError as error:
                raise Failure(f"row {number}: {error}", BAD_REQUEST) from None
            except Exception as error:
                print(outline(error), end="", file=sys.stderr)
                raise Failure(f"row {number}: unexpected {type(error).__name__}; see the log", INTERNAL_ERROR) from None
        return pd.DataFrame(rows)

    def _answer(self, data: bytes, params: dict[str, Any], reference: bytes) -> dict[str, Any]:

        container = container_of(data)
        output = params.get("output") or "same"
        if output not in ("same", "npy"):
            raise ParamsError(f"output {output!r} is not known; use same or npy")
        if output == "npy" and container != "npy":
            raise ParamsError("output npy needs an npy input")
        asked = float(params.get("sharpness", -1.0))
        translator = self.translator.sharpened(asked if asked != -1.0 else None)
        config = translator.config
        target = params.get("target") or config.target
        translator.index(target)
        seed, uncertainty = _seed(params.get("seed", -1)), bool(params.get("uncertainty"))
        from medstyle.inference.files import Request, read_reference, translate_path

        with _folder() as folder:
            options: dict[str, Any] = {
                "target": target,
                "seed": seed if seed >= 0 else None,
                "uncertainty": uncertainty,
            }
            style = _put(reference, folder / "style") if reference else None
            if container == "npy":
                return self._array(
                    data, {**options, "reference": style and read_reference(style, translator, target)}, translator
                )
            content_type, suffix = CONTENT[container]
            inside = _put(data, folder / "image")
            [result, *more] = translate_path(
                inside,
                folder / ("out" if container == "zip" else f"out{suffix}"),
                translator,
                Request(
                    source_domain=None if container == "zip" else config.source, force=True, reference=style, **options
                ),
            )
            if more:
                raise ParamsError(f"the zip holds {len(more) + 1} series of {config.source}; send one")
            made = Path(result["out"])
            maps = {kind: sorted(p for p in folder.rglob(f"*{kind}*") if p != made) for kind in MAPS}
            single = result["shape"][0] == 1
            return {
                "image": _encode(made, container),
                "content_type": content_type,
                **{kind: _encode(files[0], container) if files else "" for kind, files in maps.items()},
                **self._facts(target, result["ood_score"], result["ood_verdict"], single, result["warnings"]),
            }

    def _array(self, data: bytes, options: dict[str, Any], translator: Any) -> dict[str, Any]:
        """Return voxel values as a float32 NPY of the input shape, ``(H, W)`` or ``(D, H, W)``."""
        from medstyle.errors import Refusal
        from medstyle.imaging.volume import Volume
        from medstyle.inference.translate import translate_volume

        try:
            array = np.load(io.BytesIO(data), allow_pickle=False)
            with np.errstate(over="ignore"):
                voxels = array.astype(np.float32).reshape(-1, *array.shape[-2:])
        except Exception:  # its header may claim too much, or be what Python cannot parse
            raise Refusal(Code.E_DECODE, "the NPY is damaged or holds objects") from None
        if array.ndim not in (2, 3) or array.dtype.kind not in "fiu" or not array.size or not np.isfinite(voxels).all():
            raise Refusal(
                Code.E_SHAPE, f"expected finite numbers (H, W) or (D, H, W), got {array.shape}, kind {array.dtype.kind}"
            )
        volume = Volume(voxels, np.eye(4), translator.config.source)
        result = translate_volume(volume, translator, **options)
        assert isinstance(result.image, Volume)
        single, warnings = len(voxels) == 1, list(result.warnings)
        maps = {kind: getattr(result, kind) for kind in MAPS}
        return {
            "image": _npy(result.image.voxels.reshape(array.shape)),
            "content_type": CONTENT["npy"][0],
            **{kind: _npy(one.voxels.reshape(array.shape)) if one else "" for kind, one in maps.items()},
            **self._facts(options["target"], result.ood.score, result.ood.verdict, single, warnings),
        }

    def _facts(self, target: str, score: float, verdict: str, single: bool, found: list[str]) -> dict[str, Any]:
        warnings = list(found)
        if verdict != "ok":
            warnings.append(f"out-of-distribution verdict: {verdict}")
        if single:
            warnings.append("a single slice is normalised by itself; send the series for consistent intensities")
        return {
            "domain": target,
            "ood_score": score,
            "ood_verdict": verdict,
            "weights_sha256": self.translator.sha256,
            "warnings": "; ".join(warnings),
        }


def _seed(value: Any) -> int:
    try:
        seed = int(value)
    except (TypeError, ValueError, OverflowError):
        seed = SEEDS
    if seed >= SEEDS:
        raise ParamsError(f"seed: send a whole number below {SEEDS}")
    return seed


@contextmanager
def _folder() -> Iterator[Path]:
    """Yield a folder of mode 0700 that is always removed, and hide its name in error messages."""
    from medstyle.errors import UserError

    with tempfile.TemporaryDirectory() as name:
        try:
            yield Path(name)
        except UserError as error:
            raise ParamsError(str(error).replace(f"{name}/", "")) from None


def _put(data: bytes, path: Path) -> Path:
    """Write an image for the readers: a zip becomes a folder of slices, others a file."""
    container = container_of(data)
    if container == "zip":
        path.mkdir()
        unpack(data, path)
        return path
    file = path.with_name(path.name + CONTENT[container][1])
    file.write_bytes(data)
    return file


def _npy(array: np.ndarray) -> str:
    file = io.BytesIO()
    np.save(file, array.astype(np.float32))
    return base64.b64encode(file.getvalue()).decode()


def _encode(path: Path, container: str) -> str:
    """Encode the output: a file, the only file of a folder, or a folder as a zip."""
    if path.is_dir():
        files = sorted(path.iterdir())
        if container == "dicom":
            return base64.b64encode(files[0].read_bytes()).decode()
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
            for file in files:
                archive.write(file, file.name)
        return base64.b64encode(buffer.getvalue()).decode()
    return base64.b64encode(path.read_bytes()).decode()


mlflow.models.set_model(ServedTranslator())
