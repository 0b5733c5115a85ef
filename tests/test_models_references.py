"""Our models against what others publish: parameter counts, and the layout of weights of the pytorch-cifar zoo.

Layouts and counts are written out here from the papers' tables, without our models' code; models are built on the meta
device, where weights take no memory and no time.
"""

import re
from collections.abc import Iterator, Sequence

import pytest
import torch
from torchvision.models import get_model_weights

from models import zoo
from tests import meta_models
from tests.reference_counts import COUNTS

Size = tuple[int, ...]


@pytest.mark.parametrize("name", sorted(COUNTS))
def test_a_model_says_the_number_of_parameters_that_others_count(name: str) -> None:
    assert zoo.find(name).parameters == COUNTS[name]


# The layout of weights: convolution, then weight, bias, mean, variance and number of batches of its BatchNorm.


def conv_bn(inputs: int, outputs: int, size: int, *, bias: bool = False) -> Iterator[Size]:
    yield outputs, inputs, size, size
    if bias:
        yield (outputs,)
    yield from [(outputs,)] * 4
    yield ()


def vgg_layout(stages: Sequence[Sequence[int]]) -> Iterator[Size]:
    inputs = 3
    for outputs in [width for stage in stages for width in stage]:
        yield from conv_bn(inputs, outputs, 3, bias=True)
        inputs = outputs
    yield from [(10, 512), (10,)]


def resnet_layout(blocks: Sequence[int], *, bottleneck: bool) -> Iterator[Size]:
    yield from conv_bn(3, 64, 3)
    inputs = 64
    for stage, count in enumerate(blocks):
        width = 64 * 2**stage
        outputs = 4 * width if bottleneck else width
        for block in range(count):
            if bottleneck:
                yield from [*conv_bn(inputs, width, 1), *conv_bn(width, width, 3), *conv_bn(width, outputs, 1)]
            else:
                yield from [*conv_bn(inputs, width, 3), *conv_bn(width, width, 3)]
            if block == 0 and (stage > 0 or bottleneck):
                yield from conv_bn(inputs, outputs, 1)
            inputs = outputs
    yield from [(10, inputs), (10,)]


LAYOUTS = {
    "vgg11-cifar": vgg_layout([[64], [128], [256] * 2, [512] * 2, [512] * 2]),
    "vgg13-cifar": vgg_layout([[64] * 2, [128] * 2, [256] * 2, [512] * 2, [512] * 2]),
    "vgg16-cifar": vgg_layout([[64] * 2, [128] * 2, [256] * 3, [512] * 3, [512] * 3]),
    "vgg19-cifar": vgg_layout([[64] * 2, [128] * 2, [256] * 4, [512] * 4, [512] * 4]),
    "resnet18-cifar": resnet_layout([2, 2, 2, 2], bottleneck=False),
    "resnet34-cifar": resnet_layout([3, 4, 6, 3], bottleneck=False),
    "resnet50-cifar": resnet_layout([3, 4, 6, 3], bottleneck=True),
    "resnet101-cifar": resnet_layout([3, 4, 23, 3], bottleneck=True),
    "resnet152-cifar": resnet_layout([3, 8, 36, 3], bottleneck=True),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_weights_are_laid_out_as_in_the_pytorch_cifar_zoo(name: str) -> None:
    module = meta_models.build(zoo.find(name), (3, 32, 32), 10)
    assert [tuple(tensor.shape) for tensor in module.state_dict().values()] == list(LAYOUTS[name])


# Counts by arithmetic.


def counted(inputs: int, outputs: int, size: int, groups: int = 1) -> int:
    """A convolution without bias and the two vectors of its BatchNorm."""
    return inputs // groups * outputs * size**2 + 2 * outputs


def resnet_he_count(depth: int) -> int:
    pairs = depth // 6  # convolutions of a stage are twice as many, and depth is 6 * pairs + 2
    first = counted(3, 16, 3) + 2 * pairs * counted(16, 16, 3)
    second = counted(16, 32, 3) + (2 * pairs - 1) * counted(32, 32, 3)
    third = counted(32, 64, 3) + (2 * pairs - 1) * counted(64, 64, 3)
    return first + second + third + 64 * 10 + 10


@pytest.mark.parametrize(("depth", "millions"), [(20, "0.27"), (32, "0.46"), (44, "0.66"), (56, "0.85"), (110, "1.7")])
def test_he_resnets_have_the_papers_millions_of_parameters(depth: int, millions: str) -> None:
    count = resnet_he_count(depth)
    assert COUNTS[f"resnet{depth}-he"] == count
    assert f"{count / 1e6:.2g}" == millions  # table 6


def preact_count(blocks: Sequence[int], *, bottleneck: bool) -> int:
    """From the ResNet of the same depth: BatchNorm sits on inputs, none in the stem and none in the shortcuts."""
    layout = list(resnet_layout(blocks, bottleneck=bottleneck))
    weights = sum(torch.Size(size).numel() for size in layout if len(size) in (2, 4)) + 10
    normalised, inputs = 0, 64
    for stage, count in enumerate(blocks):
        width = 64 * 2**stage
        for _ in range(count):
            normalised += inputs + (2 * width if bottleneck else width)
            inputs = 4 * width if bottleneck else width
    return weights + 2 * normalised


@pytest.mark.parametrize(
    ("depth", "blocks", "bottleneck"), [(18, (2, 2, 2, 2), False), (34, (3, 4, 6, 3), False), (50, (3, 4, 6, 3), True)]
)
def test_preactivated_resnets_lack_the_norms_of_stem_and_shortcuts(
    depth: int, blocks: Sequence[int], bottleneck: bool
) -> None:
    assert COUNTS[f"preact-resnet{depth}"] == preact_count(blocks, bottleneck=bottleneck)


@pytest.mark.parametrize(("groups", "group_width"), [(2, 64), (4, 64), (8, 64), (32, 4)])
def test_resnexts_have_three_stages_of_three_grouped_blocks(groups: int, group_width: int) -> None:
    total, inputs = counted(3, 64, 1), 64
    for width in (groups * group_width * factor for factor in (1, 2, 4)):
        total += counted(inputs, 2 * width, 1) * (inputs != 2 * width or width != groups * group_width)  # the shortcut
        for block_inputs in (inputs, 2 * width, 2 * width):
            total += counted(block_inputs, width, 1) + counted(width, width, 3, groups) + counted(width, 2 * width, 1)
        inputs = 2 * width
    assert COUNTS[f"resnext29-{groups}x{group_width}d"] == total + inputs * 10 + 10


@pytest.mark.parametrize(("depth", "blocks"), [(26, (2, 2, 2, 2)), (92, (3, 4, 20, 3))])
def test_dual_path_networks_append_channels_in_each_block(depth: int, blocks: Sequence[int]) -> None:
    total, inputs = counted(3, 64, 3), 64
    for stage, (count, growth) in enumerate(zip(blocks, (16, 32, 24, 128), strict=True)):
        width, residual = 96 * 2**stage, 256 * 2**stage
        total += counted(inputs, residual + growth, 1)  # the shortcut
        for block in range(count):
            total += counted(inputs, width, 1) + counted(width, width, 3, 32) + counted(width, residual + growth, 1)
            inputs = residual + (2 + block) * growth
    assert COUNTS[f"dpn{depth}"] == total + inputs * 10 + 10


# torchvision's classifiers against the counts that torchvision publishes with their weights.

AUXILIARY_HEAD = {"inception_v3": 768 * 128 + 2 * 128 + 128 * 768 * 25 + 2 * 768 + 768 * 1000 + 1000}
"""Published with it, built without it."""
FAMILIES = (
    *("alexnet", "vgg", "googlenet", "inception_v3", "resnet", "resnext", "wide_resnet", "densenet121", "mobilenet"),
    *("shufflenet", "efficientnet", "regnet", "convnext", "vit_", "swin_"),
)
TOO_LARGE = re.compile("efficientnet_(b[4-7]|v2_[ml])|regnet.*gf")
"""The small ones of these families show as much, in a fraction of the time."""
PUBLISHED = [
    name
    for name in zoo.torchvision_names()
    if name.startswith(FAMILIES)
    and not TOO_LARGE.match(name)
    and "IMAGENET1K_V1" in get_model_weights(name).__members__
]


def test_every_family_has_published_counts() -> None:
    assert all(any(name.startswith(family) for name in PUBLISHED) for family in FAMILIES)


@pytest.mark.parametrize("name", PUBLISHED)
def test_torchvisions_classifiers_have_the_parameters_that_it_publishes(name: str) -> None:
    spec = zoo.find(name)
    # A RegNet reads its widths from tensors, which on the meta device have no values.
    module = spec.build(spec.shape, 1000) if "regnet" in name else meta_models.build(spec, spec.shape, 1000)
    count = meta_models.count(module)
    assert count + AUXILIARY_HEAD.get(name, 0) == get_model_weights(name)["IMAGENET1K_V1"].meta["num_params"]
