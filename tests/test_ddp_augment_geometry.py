"""Crops, rotations and blanked squares of batches, against torchvision's functions on single images."""

import math

import pytest
import torch
from torch import Tensor
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms.v2 import InterpolationMode, functional

from ddp.augment_geometry import Boxes, cut_out, random_boxes, random_turns, warped
from ddp.draws import Draws

BILINEAR = InterpolationMode.BILINEAR


def images_of(count: int, channels: int = 3, size: int = 21) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(256, (count, channels, size, size), generator=generator, dtype=torch.uint8)


def box_of(boxes: Boxes, position: int) -> tuple[int, int, int, int]:
    edges = (boxes.top, boxes.left, boxes.height, boxes.width)
    top, left, height, width = (int(edge[position]) for edge in edges)
    return top, left, height, width


def levels_apart(first: Tensor, second: Tensor) -> int:
    return int((first.int() - second.int()).abs().max())


@pytest.mark.parametrize(("channels", "size"), [(3, 21), (1, 16), (3, 30)])
def test_a_resized_crop_is_that_of_torchvision(channels: int, size: int) -> None:
    images = images_of(60, channels)
    boxes = random_boxes(Draws(0, 0, torch.arange(60)), 21, 21, (0.08, 1.0))
    ours = warped(images, size, boxes, None)
    for position, image in enumerate(images):
        single = functional.resized_crop(image, *box_of(boxes, position), [size, size], BILINEAR, antialias=False)
        assert levels_apart(ours[position], single) <= 1


def test_a_rotation_is_that_of_torchvision() -> None:
    images = images_of(60)
    turns = random_turns(Draws(0, 0, torch.arange(60)), 180)
    ours = warped(images, 21, None, turns)
    for position, image in enumerate(images):
        degrees = math.degrees(math.atan2(turns[1, position], turns[0, position]))
        assert levels_apart(ours[position], functional.rotate(image, degrees, BILINEAR)) <= 1


def test_a_turned_crop_is_a_crop_of_the_turned_image() -> None:
    image = images_of(1, size=20)
    half = torch.tensor([[0.0], [1.0]])  # a quarter turn, exact in pixels
    corner = [torch.tensor([edge]) for edge in (2, 4, 10, 10)]
    ours = warped(image, 10, Boxes(*corner), half)
    assert levels_apart(ours[0], image[0, :, 2:12, 4:14].rot90(1, (1, 2))) <= 1
    stretched = warped(image, 20, Boxes(*corner), torch.tensor([[1.0], [0.0]]))
    whole = warped(image, 20, Boxes(*corner), None)
    assert levels_apart(stretched[0, :, 1:-1, 1:-1], whole[0, :, 1:-1, 1:-1]) <= 1  # edges see what lies beside the box


def test_no_crop_and_no_turn_leave_an_image_as_it_is() -> None:
    images = images_of(3)
    whole = Boxes(*(torch.full((3,), edge) for edge in (0, 0, 21, 21)))
    assert torch.equal(warped(images, 21, whole, None), images)
    assert torch.equal(warped(images, 21, None, torch.tensor([[1.0] * 3, [0.0] * 3])), images)


def test_boxes_are_distributed_as_those_of_torchvision() -> None:
    count, shares = 4000, (0.2, 1.0)
    boxes = random_boxes(Draws(0, 0, torch.arange(count)), 32, 32, shares)
    assert (boxes.top >= 0).all()
    assert (boxes.left >= 0).all()
    assert (boxes.top + boxes.height <= 32).all()
    assert (boxes.left + boxes.width <= 32).all()
    for start, length in ((boxes.top, boxes.height), (boxes.left, boxes.width)):
        for room in (0, 1, 2, 5):
            assert start[length == 32 - room].unique().tolist() == list(range(room + 1))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        image = torch.empty(1, 32, 32)
        drawn = [RandomResizedCrop.get_params(image, list(shares), [3 / 4, 4 / 3]) for _ in range(count)]
    ours, theirs = torch.stack([boxes.top, boxes.left, boxes.height, boxes.width]), torch.tensor(drawn).t()
    pairs = list(zip(ours, theirs, strict=True))
    pairs += [(ours[2] * ours[3], theirs[2] * theirs[3]), (ours[2] / ours[3], theirs[2] / theirs[3])]
    for mine, other in pairs:
        assert largest_gap(mine, other) < 1.95 * (2 / count) ** 0.5  # Kolmogorov-Smirnov, one in a thousand


def largest_gap(first: Tensor, second: Tensor) -> float:
    """Of two samples' distribution functions."""
    values = torch.cat([first, second]).unique()
    below = [torch.searchsorted(each.sort().values, values, right=True) / len(each) for each in (first, second)]
    return float((below[0] - below[1]).abs().max())


def test_an_area_that_never_fits_gives_the_whole_image() -> None:
    # A box of the whole area and an aspect ratio other than 1 is wider or higher than the image.
    boxes = random_boxes(Draws(0, 0, torch.arange(2000)), 200, 200, (0.9999, 1.0))
    whole = (boxes.height == 200) & (boxes.width == 200)
    assert whole.float().mean() > 0.9
    assert (boxes.top[whole] == 0).all()


def test_angles_are_uniform_up_to_the_largest_either_way() -> None:
    cosine, sine = random_turns(Draws(0, 0, torch.arange(20_000)), 30.0)
    degrees = torch.atan2(sine, cosine) * (180 / math.pi)
    assert degrees.abs().max() <= 30 + 1e-4
    assert degrees.mean().abs() < 5 * 30 / 3**0.5 / 20_000**0.5
    assert float(degrees.std()) == pytest.approx(30 / 3**0.5, rel=0.02)


@pytest.mark.parametrize("side", [1, 4, 5])
def test_cutout_blanks_one_clipped_square_about_any_pixel(side: int) -> None:
    images = images_of(3000, size=8) // 2 + 1  # 1 to 128: neither of the fillings below
    before = images.clone()
    out = cut_out(images, Draws(0, 0, torch.arange(3000)), side, (0, 200, 255))
    assert torch.equal(images, before)
    blank = out[:, 1] == 200
    seen = set()
    for position in range(len(images)):
        rows, columns = blank[position].any(1).nonzero().view(-1), blank[position].any(0).nonzero().view(-1)
        top, bottom, left, right = (int(edge) for edge in (rows[0], rows[-1], columns[0], columns[-1]))
        seen.add((top, bottom, left, right))
        expected = images[position].clone()
        for channel, value in enumerate((0, 200, 255)):
            expected[channel, top : bottom + 1, left : right + 1] = value
        assert torch.equal(out[position], expected)
    spans = {(max(0, c - side // 2), min(8, c - side // 2 + side) - 1) for c in range(8)}
    assert seen == {(*rows, *columns) for rows in spans for columns in spans}
