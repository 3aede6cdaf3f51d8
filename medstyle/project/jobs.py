"""The jobs that can be proposed, each with the settings of its recipe."""

from __future__ import annotations

from typing import Any, NamedTuple

Settings = dict[str, Any]


class Job(NamedTuple):
    """A way to train, of the recipe with the same name.

    Attributes:
        recipe: name of the file in `recipes/`.
        objective: section `train.objective`.
        network: section `train.network`, without its widths and neighbours.
        augmentation: section `train.augmentation`.
        training: section `train.training`, without steps and batch.
        protocol: `evaluate.protocol`.
        cost: duration of a step, as a multiple of one forward and backward pass of the generator,
            measured with the recipe's own settings.
        why: when it is the right one.
    """

    recipe: str
    objective: Settings
    network: Settings
    augmentation: Settings
    training: Settings
    protocol: str
    cost: float
    why: str


_PICTURE_AUGMENTATION: Settings = {"rotation_deg": 0, "scale": 0.05, "shift": 0.02, "flip": True, "gamma": 0}
_SLOW_CRITIC: Settings = {"learning_rate": 1.0e-3, "discriminator_learning_rate": 2.0e-4}

JOBS = {
    job.recipe: job
    for job in (
        Job(
            "paired_mr",
            {"kind": "paired_refined", "weights": {"l1": 1.0}, "detail": 0},
            {"fold": 2, "bottleneck_blocks": 2, "refiner": 16, "sharpness": 0.8}, {},
            {"learning_rate": 1.0e-3}, "plain", 1.5,
            "both contrasts of a subject show the same slices",
        ),
        Job(
            "paired_mr_ct",
            {"kind": "paired", "weights": {"l1": 1.0, "structure": 0.0, "adversarial": 0.0}, "detail": 0},
            {"fold": 2, "bottleneck_blocks": 2}, {"flip": False},
            {"learning_rate": 1.0e-3, "keep": "best"}, "synthrad2025", 1.15,
            "both scans of a patient show the same slices, and the target has Hounsfield units",
        ),
        Job(
            "unpaired_mr",
            {
                "kind": "unpaired_contrastive", "adversarial": "least_squares",
                "weights": {"adversarial": 1.0, "contrastive": 0, "identity": 0, "anatomy": 1.0, "cross_subject": 5.0},
                "discriminator_layers": 3,
            },
            {"bottleneck_blocks": 2, "residual": True}, {"bias": 0.3, "noise": 0.05, "elastic": 0.03},
            {"learning_rate": 1.0e-3, "discriminator_learning_rate": 5.0e-4}, "unpaired_scans", 2.6,
            "no subject, or too few, has both contrasts",
        ),
        Job(
            "unpaired_mr_ct",
            {
                "kind": "unpaired_contrastive",
                "weights": {"adversarial": 1.0, "contrastive": 1.0, "identity": 1.0, "anatomy": 1.0},
            },
            {"bottleneck_blocks": 4}, {}, {"learning_rate": 4.0e-4, "discriminator_learning_rate": 2.0e-4},
            "unpaired_scans", 5.0, "no patient, or too few, has both scans",
        ),
        Job(
            "harmonization",
            {
                "kind": "harmonization",
                "weights": {
                    "adversarial": 0.5, "self_reconstruction": 10.0, "cycle": 5.0, "contrastive": 0.5, "anatomy": 1.0,
                },
            },
            {"bottleneck_blocks": 2, "style_size": 4, "residual": True}, {},
            {"learning_rate": 2.0e-4, "discriminator_learning_rate": 2.0e-4}, "unpaired_scans", 6.0,
            "one contrast at several sites",
        ),
        Job(
            "paintings",
            {
                "kind": "unpaired_contrastive", "adversarial": "least_squares",
                "weights": {"adversarial": 0.5, "contrastive": 1.0, "identity": 0.5, "anatomy": 0, "texture": 5.0},
                "discriminator_layers": 3, "discriminator_scales": 1,
            },
            {"bottleneck_blocks": 4, "levels_without_skip": 1}, _PICTURE_AUGMENTATION, _SLOW_CRITIC, "unpaired", 4.5,
            "pictures of two classes that show different things",
        ),
        Job(
            "paired_pictures",
            {"kind": "paired", "weights": {"l1": 1.0, "structure": 0.1, "adversarial": 0.02}, "detail": 4.0},
            {"bottleneck_blocks": 2}, {"rotation_deg": 5, "scale": 0.05, "gamma": 0}, {"learning_rate": 1.0e-3},
            "paired_pictures", 1.9, "the pictures of both classes show the same thing",
        ),
    )
}  # fmt: skip
