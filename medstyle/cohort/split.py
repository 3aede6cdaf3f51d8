"""Split subjects into training, validation and test."""

from __future__ import annotations

from collections.abc import Sequence

from medstyle.errors import ParamsError

__patient_data__ = True  # errors raised here may quote patient data: medstyle.errors.outline masks their text


def split_subjects(subjects: Sequence[str], shares: tuple[float, float], seed: int) -> dict[str, str]:
    """Assign every subject to train, validation or test.

    The order is a hash of (seed, subject), so a new subject hardly affects the others. Each
    non-zero share gets at least one subject as long as one is left for training.

    Args:
        subjects: subject keys.
        shares: share of the subjects for validation and for test, each in [0, 1).
        seed: seed of the assignment.
    """
    import hashlib

    order = sorted(set(subjects), key=lambda key: hashlib.sha256(f"{seed}/{key}".encode()).hexdigest())
    validation, test = (max(1, round(share * len(order))) if share > 0 else 0 for share in shares)
    if validation + test >= len(order):
        raise ParamsError(
            f"split: {len(order)} subjects are too few for shares {shares}: {validation} validation and {test} test "
            "would leave none to train on; add subjects or lower denoise.validation and denoise.test"
        )
    names = ["test"] * test + ["validation"] * validation + ["train"] * (len(order) - test - validation)
    return dict(sorted(zip(order, names, strict=True)))
