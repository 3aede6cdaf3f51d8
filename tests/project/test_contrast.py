import numpy as np
import pytest

from medstyle.project.contrast import by_sequence, by_words, looks_like_labels


@pytest.mark.parametrize(
    ("text", "domain"),
    [
        ("t1", "mr_t1"), ("T1w_MPRAGE", "mr_t1"), ("scanT2", "mr_t2"), ("AX T2 FLAIR", "mr_flair"),
        ("T1 FLAIR", "mr_t1"),
        ("Ax T1 post GD", "mr_t1@contrast"), ("T1 AXIAL PRE GAD", "mr_t1"), ("PD TSE", "mr_pd"), ("ct_axial", "ct"),
        ("CT Head W/O contrast", "ct"), ("t1_regions", ""), ("brainmask", ""), ("ep2d_diff_ADC", ""),
    ],
)  # fmt: skip
def test_words_name_a_contrast(text: str, domain: str) -> None:
    finding = by_words(text)
    assert finding is not None
    assert finding.domain == domain


@pytest.mark.parametrize("text", ["patient", "IMG0001", "final", "scan", "strategy", "apt2go"])
def test_other_words_say_nothing(text: str) -> None:
    assert by_words(text) is None


@pytest.mark.parametrize(
    ("times", "domain"),
    [
        ((18, 5, None), "mr_t1"), ((2000, 3, 900), "mr_t1"), ((4500, 100, None), "mr_t2"), ((3000, 20, None), "mr_pd"),
        ((9000, 120, 2460), "mr_flair"), ((2500, 50, None), None), ((None, None, None), None),
    ],
)  # fmt: skip
def test_the_times_of_a_sequence_tell_its_contrast(times: tuple[float | None, ...], domain: str | None) -> None:
    names = ("RepetitionTime", "EchoTime", "InversionTime")
    found = by_sequence({name: str(value) for name, value in zip(names, times, strict=True) if value is not None})
    assert (found.domain if found else None) == domain


def test_labels_are_whole_numbers_in_patches() -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 200, (8, 32, 32))
    labels = np.kron(rng.integers(0, 60, (8, 4, 4)), np.ones((1, 8, 8), int))
    assert looks_like_labels(labels)
    assert looks_like_labels(labels > 30)
    assert not looks_like_labels(image)
    assert not looks_like_labels(image.astype(np.float32) / 7)
