"""Provide the preparation as MONAI dictionary transforms, to compose with MONAI's own.

Images are channel-first ``(1, W, H, D)``, as ``LoadImaged(ensure_channel_first=True)`` returns
them. Filters work slice by slice along the last axis, so reorient images to have slices there
(``Orientationd(axcodes="LPS")`` for axial scans).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Hashable, Mapping
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import InvertibleTransform, MapTransform, RandomizableTransform
from torch import Tensor

from medstyle.imaging.modality import Fingerprint
from medstyle.transforms.augment import Augmentation, augment
from medstyle.transforms.intensity import CorrectBias, Denoise, foreground_mask, noise_sigma
from medstyle.transforms.prepare import Preparation

Data = dict[Hashable, Any]
PREPARATION, AUGMENTATION = Preparation(), Augmentation()


class _Each(MapTransform):
    """Apply one function to the image of each of ``keys``."""

    def __init__(self, keys: KeysCollection, change: Callable[[Tensor], Tensor], allow_missing_keys: bool) -> None:
        super().__init__(keys, allow_missing_keys)
        self.change = change

    def __call__(self, data: Mapping[Hashable, Any]) -> Data:
        """Return a new dictionary with the images changed."""
        return {**data, **{key: self.change(data[key]) for key in self.key_iterator(dict(data))}}


class Denoised(_Each):
    """Remove noise by a filter of :data:`~medstyle.transforms.intensity.FILTERS`.

    See :class:`Denoise`.
    """

    def __init__(
        self, keys: KeysCollection, method: str = "nlm", rician: bool = True, allow_missing_keys: bool = False
    ) -> None:
        super().__init__(keys, Denoise(method, rician), allow_missing_keys)


class CorrectBiasd(_Each):
    """Correct the smooth shading of the coil (N4).

    See :class:`~medstyle.transforms.intensity.CorrectBias`.
    """

    def __init__(self, keys: KeysCollection, samples: int = 32, allow_missing_keys: bool = False) -> None:
        super().__init__(keys, CorrectBias(samples), allow_missing_keys)


class _Found(MapTransform):
    """Add a result for each image under ``key + postfix``."""

    def __init__(self, keys: KeysCollection, postfix: str, allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        self.postfix = postfix

    def __call__(self, data: Mapping[Hashable, Any]) -> Data:
        """Return a new dictionary with one more key for each image."""
        found: Data = {f"{key!s}{self.postfix}": self.find(data[key]) for key in self.key_iterator(dict(data))}
        return {**data, **found}

    @abstractmethod
    def find(self, image: Tensor) -> Any: ...


class ForegroundMaskd(_Found):
    """Add ``<key>_mask``, the mask of the body: bool, with the image's shape and geometry."""

    def __init__(self, keys: KeysCollection, postfix: str = "_mask", allow_missing_keys: bool = False) -> None:
        super().__init__(keys, postfix, allow_missing_keys)

    def find(self, image: Tensor) -> Tensor:
        """Return the mask of ``(1, W, H, D)``."""
        mask = torch.from_numpy(foreground_mask(np.asarray(image[0], np.float32)))[None]
        return MetaTensor(mask).copy_meta_from(image) if isinstance(image, MetaTensor) else mask


class NoiseSigmad(_Found):
    """Add ``<key>_sigma``, the standard deviation of the noise in the unit of the image."""

    def __init__(self, keys: KeysCollection, postfix: str = "_sigma", allow_missing_keys: bool = False) -> None:
        super().__init__(keys, postfix, allow_missing_keys)

    def find(self, image: Tensor) -> float:
        """Return the standard deviation in ``(1, W, H, D)``."""
        return noise_sigma(np.asarray(image[0], np.float32))


class Normalised(MapTransform, InvertibleTransform):
    """Map images of one domain to network units.

    Exactly invertible (``inverse``, MONAI's ``Invertd``).

    The values are scaled by those in the body. Nothing is clipped, so that every value can be
    restored. The fingerprint is stored with the image.

    Args:
        keys: images of ``domain``.
        domain: a key of DOMAINS; CT always uses the window of ``preparation``.
        preparation: its ``normalisation``, ``landmarks`` and ``ct_window`` are used.
        allow_missing_keys: as in MONAI.
    """

    def __init__(
        self,
        keys: KeysCollection,
        domain: str,
        preparation: Preparation = PREPARATION,
        allow_missing_keys: bool = False,
    ) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)
        self.domain, self.preparation = domain, preparation

    def __call__(self, data: Mapping[Hashable, Any]) -> Data:
        """Return a new dictionary with the images in network units."""
        out = dict(data)
        for key in self.key_iterator(out):
            image = MetaTensor(out[key]) if not isinstance(out[key], MetaTensor) else out[key]
            values = np.asarray(image, np.float32)
            mask = foreground_mask(values[0])[None]
            fingerprint = self.preparation.fingerprint(self.domain, values, mask)
            out[key] = MetaTensor(torch.from_numpy(fingerprint.forward(values))).copy_meta_from(image)
            self.push_transform(out[key], extra_info={"values": fingerprint.values, "scaled": fingerprint.scaled})
        return out

    def inverse(self, data: Mapping[Hashable, Any]) -> Data:
        """Return a new dictionary with the images in the domain's unit."""
        out = dict(data)
        for key in self.key_iterator(out):
            known = self.pop_transform(out[key])["extra_info"]
            values = Fingerprint(tuple(known["values"]), tuple(known["scaled"])).backward(np.asarray(out[key]))
            out[key] = MetaTensor(torch.from_numpy(values)).copy_meta_from(out[key])
        return out


class RandAugmentd(RandomizableTransform, MapTransform):
    """Change slices ``(C, H, W)`` in network units at random, all by the same map.

    See :func:`augment`.

    Args:
        keys: the images of one example; the first is the source, whose values may change too.
        settings: amounts.
        contrast: whether the source's values may change (not for CT).
        allow_missing_keys: as in MONAI.
    """

    def __init__(
        self,
        keys: KeysCollection,
        settings: Augmentation = AUGMENTATION,
        contrast: bool = True,
        allow_missing_keys: bool = False,
    ) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)
        RandomizableTransform.__init__(self, 1.0)
        self.settings, self.contrast, self.seed = settings, contrast, 0

    def randomize(self, data: Any = None) -> None:
        """Draw the seed of the next change."""
        super().randomize(None)
        self.seed = int(self.R.randint(2**31 - 1))

    def __call__(self, data: Mapping[Hashable, Any]) -> Data:
        """Return a new dictionary with the images changed."""
        out = dict(data)
        keys = list(self.key_iterator(out))
        if not keys:
            return out
        self.randomize()
        plain = [torch.as_tensor(np.asarray(out[key]))[None] for key in keys]
        moved = augment(plain, self.settings, [self.seed], torch.tensor([self.contrast]))
        for key, image in zip(keys, moved, strict=True):
            like = out[key]
            out[key] = MetaTensor(image[0]).copy_meta_from(like) if isinstance(like, MetaTensor) else image[0]
        return out
