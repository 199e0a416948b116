"""Random parts of pictures: within bounds, of the asked area and shape, the same for the same draws, one part for all alike."""

from __future__ import annotations

import pytest
import torch
from torchvision.tv_tensors import BoundingBoxes, Image, Mask

from tlcore.tasks.random_parts import random_part, vary_together

pytestmark = pytest.mark.unit


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(("height", "width"), [(200, 300), (64, 64), (17, 400), (400, 3), (1, 1)])
def test_parts_lie_inside_and_are_large_enough(height: int, width: int) -> None:
    draws = seeded(0)
    for _ in range(200):
        top, left, high, wide = random_part(height, width, 0.3, draws)
        assert 0 <= top <= top + high <= height and 0 <= left <= left + wide <= width
        assert high >= 1 and wide >= 1


def test_area_and_shape_are_as_asked() -> None:
    draws = seeded(1)
    parts = [random_part(400, 400, 0.25, draws) for _ in range(500)]
    areas = [high * wide / 400**2 for _, _, high, wide in parts]
    shapes = [wide / high for _, _, high, wide in parts]
    assert 0.24 < min(areas) < 0.3 and 0.9 < max(areas) <= 1.0
    assert 0.74 < min(shapes) < 0.8 and 1.25 < max(shapes) < 1.35


def test_where_no_shape_fits_it_is_the_largest_from_the_middle() -> None:
    assert random_part(10, 1000, 0.9, seeded(2)) == (0, 493, 10, 13)


def test_the_same_draws_give_the_same_part_whatever_the_global_generator_does() -> None:
    picture = Image(torch.arange(3 * 40 * 50, dtype=torch.uint8).reshape(3, 40, 50))
    torch.manual_seed(5)
    (first,) = vary_together((picture,), (20, 20), 0.1, seeded(3))
    state = torch.get_rng_state()
    torch.manual_seed(6)
    (second,) = vary_together((picture,), (20, 20), 0.1, seeded(3))
    assert torch.equal(first, second)
    torch.manual_seed(5)
    assert torch.equal(state, torch.get_rng_state())


def test_mask_and_boxes_go_with_their_picture() -> None:
    """A white square on black, its mask and its box; both mirrored and plain parts are among the draws."""
    pixels = torch.zeros(3, 60, 80, dtype=torch.uint8)
    pixels[:, 20:40, 10:40] = 255
    mask = Mask(pixels[:1] // 255)
    for seed in range(12):
        boxes = BoundingBoxes(torch.tensor([[10.0, 20.0, 30.0, 20.0]]), format="XYWH", canvas_size=(60, 80))  # type: ignore[call-arg]
        picture, shown, moved = vary_together((Image(pixels), mask, boxes), (120, 160), 0.6, seeded(seed))
        white = picture[0] > 127
        assert ((shown[0] == 1) == white).float().mean() > 0.97
        x, y, wide, high = (round(side) for side in moved[0].tolist())
        assert white[y : y + high, x : x + wide].float().mean() > 0.9
        assert white.sum() == pytest.approx(wide * high, rel=0.1)
