"""The box that a generator sees is the body with a margin of air, in one of a few sizes."""

import numpy as np
import pytest

from medstyle.transforms.body import BOX, MARGIN, box_around, extent_of


@pytest.mark.parametrize("multiple", [1, 4, 24])
@pytest.mark.parametrize("extent", [(40, 60, 30, 90), (0, 10, 0, 10), (120, 127, 90, 111), (50, 50, 50, 50)])
def test_the_box_holds_the_body_with_its_margin_and_has_sides_of_a_multiple(extent, multiple):
    size = (128, 112)
    for box, (low, high), length in zip(
        box_around(extent, size, multiple), (extent[:2], extent[2:]), size, strict=True
    ):
        side = box.stop - box.start
        assert 0 <= box.start <= max(0, low - MARGIN)
        assert min(length, high + 1 + MARGIN) <= box.stop <= length
        assert side == length or (side % multiple, side % BOX) == (0, 0)


def test_the_box_is_the_whole_slice_where_there_is_no_body_or_no_room():
    assert box_around(extent_of(np.zeros((3, 40, 50), bool)), (40, 50), 4) == (slice(0, 40), slice(0, 50))
    assert box_around((5, 35, 5, 45), (40, 50), 4) == (slice(0, 40), slice(0, 50))


def test_the_extent_is_that_of_all_slices_together():
    body = np.zeros((2, 30, 40), bool)
    body[0, 3, 7] = body[1, 20, 30] = True
    assert extent_of(body) == (3, 20, 7, 30)
