"""Export a translator of scans as a MONAI bundle, and provide the transforms that it names.

The bundle's ``configs/inference.json`` composes MONAI's transforms with those of this module:
``python -m monai.bundle run --config_file configs/inference.json --input scan.nii.gz`` writes the
same voxels as ``medstyle translate``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Hashable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.inferers import Inferer
from monai.transforms import MapTransform
from torch import Tensor

from medstyle.errors import ModelError
from medstyle.imaging.modality import DOMAINS, Fingerprint
from medstyle.imaging.volume import Volume
from medstyle.inference.synthesise import WHOLE, slices_around, with_neighbours
from medstyle.inference.windows import blend
from medstyle.jobs.atomic import atomic_folder
from medstyle.networks.export import Rendering, export
from medstyle.networks.translator import Translator
from medstyle.params import parse
from medstyle.transforms.body import AIR, box_around, extent_of
from medstyle.transforms.prepare import LPS_TO_RAS, Preparation, Prepared, prepare

__patient_data__ = True  # errors raised here may quote patient data: medstyle.errors.outline masks their text

POSTFIX = "_prepared"  # of the key that holds what the way back to the source's grid needs


class PrepareVolumed(MapTransform):
    """Clean, resample and normalise scans as in training; MONAI's form of :func:`prepare`.

    An image ``(1, W, H, D)`` in RAS+ becomes ``(D, 2, H, W)``: axial slices in network units, and
    the mask of the body. ``<key>_prepared`` holds the way back.

    Args:
        keys: scans of ``domain``.
        domain: a key of DOMAINS.
        preparation: parameters of the chain.
    """

    def __init__(self, keys: KeysCollection, domain: str, preparation: Mapping[str, Any]) -> None:
        super().__init__(keys)
        self.domain, self.preparation = domain, parse(Preparation, dict(preparation), "preparation")

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return a new dictionary with the scans prepared."""
        out = dict(data)
        for key in self.key_iterator(out):
            image = out[key]
            voxels = np.ascontiguousarray(np.asarray(image[0], np.float32).transpose(2, 1, 0))
            found = prepare(Volume(voxels, LPS_TO_RAS @ np.asarray(image.affine), self.domain), self.preparation)
            mask = torch.from_numpy(found.foreground)[:, None]
            out[key] = torch.cat([found.slices, mask.to(found.slices)], 1)
            out[f"{key!s}{POSTFIX}"] = found
            out[f"{key!s}_meta"] = {name: value for name, value in image.meta.items() if name != "affine"}
        return out


class RestoreVolumed(MapTransform):
    """Map network output back to the source's grid and unit.

    Args:
        keys: outputs ``(D, 1, H, W)``; each becomes ``(1, W, H, D)`` in RAS+.
        like: key of the scan that they were made from.
        domain: of the outputs.
        fingerprint: how network units are mapped to those of ``domain``.
    """

    def __init__(
        self, keys: KeysCollection, like: str, domain: str, fingerprint: Mapping[str, Sequence[float]]
    ) -> None:
        super().__init__(keys)
        self.like, self.domain = like, domain
        self.fingerprint = Fingerprint(tuple(fingerprint["values"]), tuple(fingerprint["scaled"]))

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return a new dictionary with the outputs on the grid of the scan."""
        out = dict(data)
        prepared: Prepared = out[f"{self.like}{POSTFIX}"]
        for key in self.key_iterator(out):
            made = prepared.restore(out[key], self.domain, self.fingerprint)
            image = torch.from_numpy(made.voxels.transpose(2, 1, 0).copy())[None]
            out[key] = MetaTensor(image, affine=LPS_TO_RAS @ made.affine, meta=out[f"{self.like}_meta"])
        return out


class BodyInferer(Inferer):
    """Run the network on each slice in the box around the body, or on windows of a volume.

    Args:
        neighbours: slices that the network sees at once.
        multiple: what the sides of an input are multiples of.
        window: size of the windows of a network of volumes; None for one of slices.
    """

    def __init__(self, neighbours: int = 1, multiple: int = 1, window: Sequence[int] | None = None) -> None:
        super().__init__()
        self.neighbours, self.multiple, self.window = neighbours, multiple, window

    @torch.inference_mode()
    def __call__(self, inputs: Tensor, network: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        """Return ``(D, 1, H, W)`` for ``(D, 2, H, W)`` from :class:`PrepareVolumed`."""
        content, body = inputs[:, :1], inputs[:, 1].cpu().numpy() > 0
        if self.window is None and content.shape[2] * content.shape[3] > WHOLE:
            raise ModelError("slices of more than 1024 x 1024 pixels need `medstyle translate`")
        out = torch.full_like(content, AIR)
        if self.window is not None:
            inside = (..., *box_around(extent_of(body), content.shape[2:], self.multiple))
            size = tuple(self.window) or content[inside].movedim(0, 1).shape[1:]
            blend(
                lambda x: [self._run(x, network)],
                content[inside].movedim(0, 1)[None],
                size,
                [out[inside].movedim(0, 1)[None]],
            )
            return out
        for place in range(len(content)):
            extent = extent_of(body[slices_around(place, self.neighbours, len(content))])
            if extent is not None:
                box = (..., *box_around(extent, content.shape[2:], self.multiple))
                out[(place, *box)] = self._run(with_neighbours(content, place, self.neighbours)[box][None], network)[0]
        return out

    def _run(self, x: Tensor, network: Callable[..., Tensor]) -> Tensor:
        """Run the network on any size, padded to what it takes."""
        short = [-size % self.multiple for size in x.shape[2:]]
        padded = F.pad(x, [n for size in reversed(short) for n in (0, size)], mode="replicate")
        whole: list[Any] = [slice(size) for size in x.shape[2:]]
        return network(padded)[(..., *whole)]


def write_bundle(translator: Translator, folder: Path, domain: str | None = None) -> None:
    """Write a MONAI bundle: ``configs``, ``models`` and ``docs`` in the new ``folder``.

    ``models/model.ts`` is TorchScript and carries both configurations, as MONAI Deploy expects;
    ``models/model.safetensors`` has the same weights.

    Args:
        translator: from one scan to another.
        folder: appears when it is complete.
        domain: target; default: the one that the translator was trained for.

    Raises:
        ModelError: the translator is for pictures, or needs several contrasts.
    """
    from safetensors.torch import save_file

    config, target = translator.config, domain or translator.config.target
    translator.index(target)
    if DOMAINS[target].picture or DOMAINS[config.source].picture or config.contrasts:
        raise ModelError("a bundle holds a model from one scan to one scan; export this one as ONNX")
    metadata, inference = _metadata(translator, target), _inference(translator, target)
    with atomic_folder(folder) as scratch:
        for name in ("configs", "models", "docs"):
            (scratch / name).mkdir()
        for name, document in (("metadata", metadata), ("inference", inference)):
            (scratch / "configs" / f"{name}.json").write_text(json.dumps(document, indent=1) + "\n")
        export(translator, scratch / "models/plain.ts", target)
        network = torch.jit.load(scratch / "models/plain.ts")
        extra = {f"{name}.json": json.dumps(one) for name, one in (("metadata", metadata), ("inference", inference))}
        torch.jit.save(network, scratch / "models/model.ts", _extra_files=extra)
        (scratch / "models/plain.ts").unlink()
        weights = Rendering(translator, translator.style(target)).state_dict()
        save_file({name: value.contiguous() for name, value in weights.items()}, scratch / "models/model.safetensors")
        (scratch / "configs/translator.json").write_text(config.to_json())
        (scratch / "docs/README.md").write_text(f"{_describe(translator, target)}\n\n{RUN}")


RUN = """Run it where medstyle, MONAI, nibabel and fire are installed:

    python -m monai.bundle run --config_file configs/inference.json --bundle_root . --input scan.nii.gz

The result is `eval/scan_synthetic.nii.gz`. It is synthetic: for research only, not for diagnosis.
"""


def _describe(translator: Translator, target: str) -> str:
    made = f"{DOMAINS[translator.config.source].label} -> {DOMAINS[target].label}"
    return f"medstyle {made}: synthetic image, research only; weights sha256 {translator.sha256}"


def _metadata(translator: Translator, target: str) -> dict[str, Any]:
    config = translator.config

    def image(domain: str) -> dict[str, Any]:
        about = DOMAINS[domain]
        return {
            "type": "image",
            "format": "hounsfield" if about.absolute else "magnitude",
            "modality": about.dicom,
            "num_channels": 1,
            "spatial_shape": ["*", "*", "*"],
            "dtype": "float32",
            "value_range": list(about.range),
            "is_patch_data": False,
            "channel_def": {"0": about.label},
        }

    packages = ("medstyle", "nibabel", "SimpleITK")
    return {
        "version": version("medstyle"),
        "changelog": {version("medstyle"): "exported by medstyle"},
        "monai_version": version("monai"),
        "pytorch_version": version("torch").partition("+")[0],
        "numpy_version": version("numpy"),
        "required_packages_version": {name: version(name) for name in packages if _present(name)},
        "task": f"Image synthesis: {config.source} to {target}",
        "description": _describe(translator, target),
        "authors": "medstyle project",
        "copyright": "see the licence of the model",
        "intended_use": "Research only. Synthetic images are not for diagnostic use.",
        "network_data_format": {"inputs": {"image": image(config.source)}, "outputs": {"pred": image(target)}},
    }


def _present(name: str) -> bool:
    from importlib.metadata import PackageNotFoundError

    try:
        return bool(version(name))
    except PackageNotFoundError:
        return False


def _inference(translator: Translator, target: str) -> dict[str, Any]:
    from dataclasses import asdict

    config, here = translator.config, "medstyle.inference.bundle"
    window = list(config.size) if config.architecture.dimensions == 3 else None
    save = {
        "_target_": "SaveImaged",
        "keys": "pred",
        "output_dir": "@output_dir",
        "output_postfix": "synthetic",
        "output_dtype": "$torch.float32",
        "separate_folder": False,
        "resample": False,
        "print_log": False,
    }
    prepared = {"_target_": f"{here}.PrepareVolumed", "keys": "image", "domain": config.source}
    restored = {"_target_": f"{here}.RestoreVolumed", "keys": "pred", "like": "image", "domain": target}
    load = {"_target_": "LoadImaged", "keys": "image", "reader": "NibabelReader", "ensure_channel_first": True}
    return {
        "imports": ["$import torch", "$import pathlib"],
        "bundle_root": ".",
        "input": "",
        "output_dir": "$@bundle_root + '/eval'",
        "device": "$torch.device('cpu')",
        "network_def": "$torch.jit.load(@bundle_root + '/models/model.ts', map_location=@device).eval()",
        "preprocessing": {
            "_target_": "Compose",
            "transforms": [load, {**prepared, "preparation": asdict(config.preparation)}],
        },
        "inferer": {
            "_target_": f"{here}.BodyInferer",
            "neighbours": config.architecture.neighbours,
            "multiple": translator.multiple,
            "window": window,
        },
        "postprocessing": {
            "_target_": "Compose",
            "transforms": [{**restored, "fingerprint": asdict(config.fingerprints[target])}, save],
        },
        "data": "$@preprocessing({'image': @input})",
        "run": ["$@postprocessing({**@data, 'pred': @inferer(@data['image'], @network_def)})"],
    }
