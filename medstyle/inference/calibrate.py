"""Calibrate the intervals of a translator on subjects of the store with both domains."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from medstyle.data.store import SliceStore
from medstyle.inference.synthesise import synthesise
from medstyle.networks.conformal import LEVEL, Interval, bound, least, scale, within
from medstyle.networks.translator import Translator
from medstyle.transforms.body import AIR, is_body

MOST = 100  # subjects: more change the bound less than another draw of them would


class Errors(NamedTuple):
    """Errors of a subject's voxels within the body of the source, both ``(n,)``, in network units.

    Attributes:
        error: absolute difference of output and target.
        scale: see :func:`medstyle.networks.conformal.scale`.
    """

    error: NDArray[np.float32]
    scale: NDArray[np.float32]


def calibration_subjects(translator: Translator, store: SliceStore, split: str) -> list[str]:
    """Return the subjects of ``split`` with all domains, one session per person, at most 100."""
    config = translator.config
    return store.complete(split, {config.source, *config.contrasts, config.target})[:MOST]


def calibrate(translator: Translator, store: SliceStore) -> Interval:
    """Return the interval of the translator from the validation subjects of the store.

    A subject's score is the smallest factor for which the interval covers a share ``LEVEL`` of its
    voxels; that of the new one is bounded by :func:`medstyle.networks.conformal.bound`. With fewer
    than 9 subjects, or without a default style, nothing is computed. The target is the acquired
    one, cleaned and aligned as those of the training are.
    """
    if not {"domain", "latent"} & set(translator.config.architecture.style):
        return Interval()
    subjects = calibration_subjects(translator, store, "validation")
    if len(subjects) < least():
        return Interval(len(subjects))
    scores = np.array([scores_of(one) for one in errors_of(translator, store, "validation", subjects)])
    factor, constant = (bound(column) for column in scores.T)
    return Interval(len(subjects), factor, constant, LEVEL)


def scores_of(one: Errors, level: float = LEVEL) -> tuple[float, float]:
    """Return a subject's score for intervals in proportion to the scale, and of constant width."""
    return within(one.error / np.maximum(one.scale, 1e-9), level), within(one.error, level)


def errors_of(translator: Translator, store: SliceStore, split: str, subjects: list[str]) -> Iterator[Errors]:
    """Translate the stored slices of subjects that have all domains; yield their errors."""
    config = translator.config
    domains = (config.source, *config.contrasts, config.target)
    rows = {name: {(row.subject, row.slice): i for i, row in enumerate(store.rows(name, split))} for name in domains}
    for subject in subjects:
        common = sorted(key for key in set.intersection(*map(set, rows.values())) if key[0] == subject)
        stacks = [store.array(name, split)[[rows[name][key] for key in common]].astype(np.float32) for name in domains]
        content, target = torch.from_numpy(np.concatenate(stacks[:-1], 1)), stacks[-1][:, 0]
        body = np.asarray(is_body(stacks[0][:, 0]), np.bool_)
        made = torch.full_like(content[:, :1], AIR)
        deviation = torch.zeros_like(made)
        synthesise(translator, content, body=body, out=made, deviation=deviation)
        error, sigma = np.abs(made[:, 0].numpy() - target), deviation[:, 0].numpy()
        yield Errors(error[body], scale(sigma, body)[body])
