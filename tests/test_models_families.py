"""Families of models for small images, and the first models of a course: counts, and what makes each family."""

import math

import pytest
import torch
from torch import Tensor, nn

from models import zoo
from models.dla import Tree
from models.efficientnet import Block as EfficientBlock
from models.linear import LogOdds
from models.mobilenet import InvertedResidual
from models.recurrent import Rows, Series
from models.shufflenet import ChannelShuffle, Unit
from tests.reference_counts import COUNTS

FILES = {"alexnet", "dla", "efficientnet", "linear", "mobilenet", "pnasnet", "recurrent", "regnet", "shufflenet"}
NAMES = sorted(name for name, path in zoo.own_names().items() if path.stem in FILES)
SMALL = sorted(set(NAMES) - {"alexnet-grey", "alexnet-cifar", "linear-regression", "sine-rnn"})
"""Classifiers of images of any size."""


def on_meta(name: str, shape: tuple[int, ...] | None = None) -> nn.Module:
    """A model without memory, whose passes compute shapes alone."""
    spec = zoo.find(name)
    with torch.device("meta"):
        return spec.build(shape or spec.shape, spec.classes)


def convolutions(module: nn.Module) -> list[nn.Conv2d]:
    return [layer for layer in module.modules() if isinstance(layer, nn.Conv2d)]


@pytest.mark.parametrize("name", NAMES)
def test_a_model_has_as_many_parameters_as_it_says_and_as_others_count(name: str) -> None:
    count = sum(parameter.numel() for parameter in on_meta(name).parameters())
    assert count == zoo.find(name).parameters
    assert count == COUNTS.get(name, count)


def shufflenet_count(widths: tuple[int, int, int], groups: int) -> int:
    """From table 1 of the paper: both 1x1 kernels by group, 9 weights for each channel, and 2 for each BatchNorm."""
    total, inputs = 3 * 24 + 2 * 24, 24
    for outputs, units in zip(widths, (4, 8, 4), strict=True):
        for number in range(units):
            computed = outputs - inputs if number == 0 else outputs
            middle, first_groups = computed // 4, 1 if inputs == 24 else groups
            total += inputs * middle // first_groups + 9 * middle + middle * computed // groups
            total += 2 * (middle + middle + computed)
            inputs = outputs
    return total + 10 * inputs + 10


@pytest.mark.parametrize(
    ("name", "widths", "groups"), [("shufflenet-g2", (200, 400, 800), 2), ("shufflenet-g3", (240, 480, 960), 3)]
)
def test_shufflenets_have_the_parameters_of_the_papers_table(
    name: str, widths: tuple[int, int, int], groups: int
) -> None:
    assert zoo.find(name).parameters == shufflenet_count(widths, groups)


PIXELS = {
    **{"mobilenet-v1-cifar": 2, "mobilenet-v2-cifar": 4, "efficientnet-b0-cifar": 2, "dla": 4, "simple-dla": 4},
    **{"shufflenet-g2": 4, "shufflenet-v2-cifar": 4, "regnet-x-200mf-cifar": 8, "pnasnet-a": 8, "pnasnet-b": 8},
}
"""Height and width of what is left of 32 pixels at the last convolution; of ImageNet's stems it would be 1."""


@pytest.mark.parametrize("name", SMALL)
def test_images_of_other_sizes_colours_and_classes_give_logits_and_every_weight_a_gradient(name: str) -> None:
    torch.manual_seed(0)
    module, sizes = zoo.find(name).build((2, 8, 8), 3), []
    logits = module(torch.randn(3, 2, 8, 8))
    assert logits.shape == (3, 3)
    logits.square().sum().backward()
    for parameter in module.parameters():
        assert parameter.grad is not None
        assert parameter.grad.isfinite().all()
    if name in PIXELS:
        last = convolutions(module)[-1]
        last.register_forward_hook(lambda layer, given, output: sizes.append(tuple(output.shape[2:])))
        with torch.no_grad():
            module(torch.zeros(2, 2, 32, 32))
        assert sizes == [(PIXELS[name],) * 2]


def test_a_shuffle_deals_the_channels_of_each_group_to_all_groups() -> None:
    channels = torch.arange(12.0).view(1, 12, 1, 1)
    shuffled = ChannelShuffle(3)(channels)
    assert shuffled.flatten().tolist() == [0, 4, 8, 1, 5, 9, 2, 6, 10, 3, 7, 11]
    assert torch.equal(ChannelShuffle(4)(shuffled), channels)
    assert torch.equal(shuffled, nn.ChannelShuffle(3)(channels))


@pytest.mark.parametrize("groups", [2, 3])
def test_each_group_of_a_shuffle_units_outputs_hears_of_all_groups_of_its_inputs(groups: int) -> None:
    """Breaks without the shuffle, or with one by a wrong number of groups: then a group hears of itself alone."""
    torch.manual_seed(0)
    width = 8 * groups * groups
    images = torch.randn(2, width, 4, 4, requires_grad=True)
    Unit(width, width, 1, groups).body(images)[:, : width // groups].square().sum().backward()
    assert images.grad is not None
    heard = images.grad.abs().sum((0, 2, 3)).view(groups, -1).sum(1)
    assert (heard > 1e-3).all()


def test_a_mobile_block_filters_each_channel_by_itself_and_ends_without_relu() -> None:
    torch.manual_seed(0)
    block = InvertedResidual(8, 8, 6, stride=1)
    images = torch.randn(2, 8, 4, 4)
    assert [(layer.kernel_size[0], layer.in_channels, layer.groups) for layer in convolutions(block)] == [
        *((1, 8, 1), (3, 48, 48), (1, 48, 1))
    ]
    assert torch.equal(block(images) - block.body(images), (images + block.body(images)) - block.body(images))
    assert (block.body(images) < 0).any()
    assert InvertedResidual(8, 8, 6, stride=2).shortcut is None


@pytest.mark.parametrize("name", ["mobilenet-v1-cifar", "mobilenet-v2-cifar", "efficientnet-b0-cifar"])
def test_only_the_stem_of_a_mobile_net_filters_over_several_channels(name: str) -> None:
    _stem, *others = convolutions(on_meta(name))
    assert all(layer.kernel_size == (1, 1) or layer.groups == layer.in_channels for layer in others)


def test_an_efficient_block_is_left_out_at_random_in_training_only() -> None:
    torch.manual_seed(0)
    images = torch.randn(64, 16, 2, 2)
    block = EfficientBlock(16, (6, 16, 1, 3), 0.5)
    left_out = (block(images) == images).flatten(1).all(1)
    assert 10 < int(left_out.sum()) < 54  # each sample by itself
    assert not (block.eval()(images) == images).flatten(1).all(1).any()
    assert convolutions(block)[2].out_channels == 4  # the squeeze is a quarter of the block's inputs, not of its width


@pytest.mark.parametrize(("name", "width"), [("regnet-x-200mf-cifar", 8), ("regnet-y-400mf-cifar", 16)])
def test_the_groups_of_a_regnet_are_of_one_width(name: str, width: int) -> None:
    _stem, *grouped = [layer for layer in convolutions(on_meta(name)) if layer.kernel_size == (3, 3)]
    assert {layer.in_channels // layer.groups for layer in grouped} == {width}


def test_a_tree_of_two_levels_joins_all_below_it_and_a_simple_one_its_two_branches() -> None:
    roots = {
        name: [layer[0].in_channels // layer[0].out_channels for layer in on_meta(name).modules() if is_root(layer)]
        for name in ("dla", "simple-dla")
    }
    assert roots == {"dla": [2, 2, 4, 2, 4, 2], "simple-dla": [2] * 8}


def test_the_root_of_a_tree_sees_the_block_on_the_input_the_tree_below_and_both_blocks_upon_it() -> None:
    torch.manual_seed(0)
    tree, images = Tree(4, 8, 2, 2).eval(), torch.randn(2, 4, 8, 8)
    assert tree.first is not None
    assert tree.inner is not None
    below = tree.inner(images)
    left = tree.left(below)
    seen = torch.cat([tree.first(images), below, left, tree.right(left)], dim=1)
    assert torch.equal(tree(images), tree.root(seen))


def is_root(layer: nn.Module) -> bool:
    """A 1x1 convolution with stride 1 that is followed by a ReLU."""
    if not isinstance(layer, nn.Sequential) or len(layer) != 3 or not isinstance(layer[0], nn.Conv2d):
        return False
    return layer[0].kernel_size == (1, 1)


def test_logistic_regression_of_two_classes_is_the_logistic_function_of_one_linear_one() -> None:
    module = zoo.find("logistic-regression").build((1, 4, 4), 2)
    assert isinstance(module, LogOdds)
    images = torch.randn(5, 1, 4, 4)
    torch.testing.assert_close(module(images).softmax(1)[:, 1], torch.sigmoid(module.linear(images.flatten(1)))[:, 0])
    sizes = {
        name: sum(each.numel() for each in zoo.find(name).build((1, 4, 4), 2).parameters())
        for name in ("logistic-regression", "softmax-regression")
    }
    assert sizes == {"logistic-regression": 17, "softmax-regression": 34}


def test_linear_regression_gives_one_number_for_each_thing_to_predict() -> None:
    assert zoo.find("linear-regression").task == "regression"
    assert zoo.find("linear-regression").build((5,), 3)(torch.zeros(2, 5)).shape == (2, 3)


@pytest.mark.parametrize("cell", [nn.LSTM, nn.RNN, nn.GRU])
def test_an_image_is_read_row_by_row_with_all_channels_of_a_row_at_once(cell: type[nn.LSTM]) -> None:
    torch.manual_seed(0)
    net, images = Rows(cell, (2, 3, 4), 5), torch.randn(6, 2, 3, 4)
    state = None
    for row in range(3):
        step = torch.cat([images[:, 0, row], images[:, 1, row]], dim=1)
        output, state = net.recurrent(step[:, None], state)
    torch.testing.assert_close(net(images), net.head(output[:, 0]))
    torch.testing.assert_close(net(images.contiguous(memory_format=torch.channels_last)), net(images))


def test_a_series_is_followed_without_a_look_ahead_at_any_length() -> None:
    torch.manual_seed(0)
    net, series = Series(1, 2), torch.randn(3, 7, 1)
    whole = net(series)
    assert whole.shape == (3, 7, 2)
    torch.testing.assert_close(net(series[:, :4]), whole[:, :4])
    changed = series.clone()
    changed[:, 4] += 1
    assert torch.equal(net(changed)[:, :4], whole[:, :4])
    assert not torch.isclose(net(changed)[:, 4:], whole[:, 4:]).any()


@pytest.mark.parametrize(("size", "left"), [(65, 1), (96, 1), (97, 2), (224, 5)])
def test_alexnet_takes_images_of_65_pixels_and_more(size: int, left: int) -> None:
    module = on_meta("alexnet-grey", (1, size, size))
    linear = next(layer for layer in module.modules() if isinstance(layer, nn.Linear))
    assert linear.in_features == 256 * left**2
    assert module(torch.empty(2, 1, size, size, device="meta")).shape == (2, 10)


def test_alexnet_refuses_images_that_it_shrinks_away() -> None:
    with pytest.raises(ValueError, match="at least 65x65 for alexnet-grey, got 28x28; add --image-size 224"):
        on_meta("alexnet-grey", (1, 28, 28))


def test_the_alexnet_for_cifar_gives_every_weight_a_gradient() -> None:
    torch.manual_seed(0)
    module = zoo.find("alexnet-cifar").build((3, 32, 32), 4)
    output: Tensor = module(torch.randn(2, 3, 32, 32))
    output.square().sum().backward()
    assert output.shape == (2, 4)
    assert all(each.grad is not None and math.isfinite(float(each.grad.sum())) for each in module.parameters())
