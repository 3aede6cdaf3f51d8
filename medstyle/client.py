"""Query a served model over HTTP, from a machine that has neither the model nor its packages."""

from __future__ import annotations

import base64
import io
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from urllib3 import BaseHTTPResponse, PoolManager, Retry, Timeout
from urllib3.exceptions import HTTPError

from medstyle.errors import Code, OutputError, Refusal, ServiceError
from medstyle.jobs.atomic import atomic
from medstyle.jobs.progress import track

Image = str | Path | bytes


@dataclass(frozen=True)
class Answer:
    """A synthetic image from a server.

    Attributes:
        image: bytes of a file of the same kind as the request; a zip for a DICOM series.
        uncertainty, interval: maps of the same kind; empty unless requested, the interval also if
            the model is not calibrated.
        content_type: media type of ``image``.
        domain: domain of the image.
        ood_score, ood_verdict: how much the source deviates from the training images; ``ok``,
            ``warn`` or ``refuse``.
        weights_sha256: hash of the model that made it.
        warnings: what is wrong with it, or empty.
    """

    image: bytes
    uncertainty: bytes
    interval: bytes
    content_type: str
    domain: str
    ood_score: float
    ood_verdict: str
    weights_sha256: str
    warnings: str

    def save(self, path: str | Path) -> None:
        """Write the image to ``path`` (a folder for a DICOM series), and its maps beside it."""
        place = Path(path)
        _write(self.image, place)
        for kind, data in (("uncertainty", self.uncertainty), ("interval", self.interval)):
            if data:
                _write(data, place.with_name(f"{kind}_{place.name}"))


class Client:
    """A served model; a ``with`` block closes its connections at the end.

    Args:
        url: address of `medstyle serve` or ``mlflow models serve``.
        retries: how often a request is repeated if it finds no connection or a busy server (503),
            with growing pauses or those that the server asks for.
        timeout_s: time limit for an answer in seconds.
    """

    def __init__(self, url: str = "http://127.0.0.1:5101", *, retries: int = 8, timeout_s: float = 660.0) -> None:
        again = Retry(retries, status_forcelist=[503], allowed_methods=None, backoff_factor=0.2, raise_on_status=False)
        self._http = PoolManager(retries=again, timeout=Timeout(connect=10.0, read=timeout_s))
        self.url = url.rstrip("/")

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *error: object) -> None:
        """Close the connections."""
        self.close()

    def close(self) -> None:
        """Close the connections; a later call opens new ones."""
        self._http.clear()

    def translate(
        self,
        image: Image,
        *,
        reference: Image | None = None,
        target: str | None = None,
        seed: int | None = None,
        uncertainty: bool = False,
        sharpness: float | None = None,
    ) -> Answer:
        """Translate one image.

        Args:
            image: a file (DICOM, NIfTI, NPY, PNG, JPEG), a folder with a DICOM study, or a file's
                bytes.
            reference: image of ``target`` that defines the style.
            target: default: the domain that the model was trained for.
            seed: seed of a random style.
            uncertainty: also request the maps of uncertainty and, if calibrated, of the interval.
            sharpness: share of fine detail in [0, 1], for a model with a refiner.

        Raises:
            Refusal: ``E_SERVER`` the server refuses the image or cannot translate it, with the
                server's reason.
            UserError: the file does not exist, or the server does not answer or stays busy.
        """
        row = {"image": _read(image), **({"reference": _read(reference)} if reference is not None else {})}
        options = {"target": target, "seed": seed, "uncertainty": uncertainty, "sharpness": sharpness}
        params = {name: value for name, value in options.items() if value is not None}
        content = {"dataframe_records": [row], "params": params}
        try:
            answer = self._http.request("POST", f"{self.url}/invocations", json=content)
        except HTTPError as error:
            raise ServiceError(
                f"{self.url}: no answer ({type(error).__name__}); is `medstyle serve` running?"
            ) from None
        if answer.status == 503:
            raise ServiceError(f"{self.url}: {_reason(answer)}")
        if answer.status != 200:
            raise Refusal(Code.E_SERVER, f"{_reason(answer)} (status {answer.status})")
        [made] = answer.json()["predictions"]
        made |= {name: base64.b64decode(made[name]) for name in ("image", "uncertainty", "interval")}
        return Answer(**made)

    def translate_folder(self, folder: str | Path, out: str | Path, **options: Any) -> dict[str, str]:
        """Translate each file in ``folder``, and each folder in it as one DICOM study.

        Show the progress.

        Results get the same names in ``out``. Existing results are not made again, so that the same
        call continues an interrupted one. ``options`` are those of :meth:`translate`.

        Returns:
            The refused items: name -> reason.
        """
        place, refused = Path(out), {}
        place.mkdir(parents=True, exist_ok=True)
        items = [one for one in sorted(Path(folder).iterdir()) if not (place / one.name).exists()]
        for item in track(items, "translate"):
            try:
                self.translate(item, **options).save(place / item.name)
            except Refusal as error:
                refused[item.name] = error.reason
        return refused


def _read(image: Image) -> str:
    """Return an image in base64.

    A folder becomes a zip of numbered files, to hide patients' names.
    """
    if isinstance(image, bytes):
        return base64.b64encode(image).decode()
    path = Path(image)
    if path.is_file():
        return base64.b64encode(path.read_bytes()).decode()
    files = [file for file in sorted(path.rglob("*")) if file.is_file()]
    if not files:
        raise ServiceError(f"{path}: no such file, or a folder without files")
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for number, file in enumerate(files):
            archive.write(file, f"{number:06d}.dcm")
    return base64.b64encode(buffer.getvalue()).decode()


def _reason(answer: BaseHTTPResponse) -> str:
    try:
        return str(answer.json()["message"]).removeprefix("row 0: ")
    except (ValueError, KeyError, TypeError):
        return "the answer has no explanation"


def _write(data: bytes, path: Path) -> None:
    """Write a file, or the content of a zip as a folder, atomically, without overwriting."""
    if path.exists():
        raise OutputError(f"{path}: exists already; remove it or choose another name")
    with atomic(path, own=True) as part:
        if data.startswith(b"PK") and path.suffix != ".zip":
            zipfile.ZipFile(io.BytesIO(data)).extractall(part)
        else:
            part.write_bytes(data)
