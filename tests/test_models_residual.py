"""What the blocks of the residual families carry around their convolutions."""

import torch
from torch import Tensor, nn

from models.dpn import DualPathBlock, Stage
from models.googlenet import Inception
from models.preact_resnet import PreActBlock, two_convolutions
from models.resnet_he import HeBlock
from models.resnext import ResNeXtBlock
from models.senet import senet18

X = torch.randn(2, 4, 7, 7, generator=torch.Generator().manual_seed(0))


def silence(body: nn.Module) -> None:
    """Make the body's last layer give zeros."""
    last = [layer for layer in body.modules() if isinstance(layer, nn.Conv2d | nn.BatchNorm2d)][-1]
    for parameter in last.parameters():
        nn.init.zeros_(parameter)


def test_a_he_block_thins_its_input_out_and_pads_it_with_zeros() -> None:
    block = HeBlock(4, 6, stride=2)
    silence(block.body)
    carried = torch.cat([X[:, :, ::2, ::2], torch.zeros(2, 2, 4, 4)], dim=1)
    torch.testing.assert_close(block(X), carried.relu())


def test_a_preactivated_block_carries_its_input_as_it_is() -> None:
    block = PreActBlock(4, 4, 1, two_convolutions(4, 4, 1))
    silence(block.body)
    torch.testing.assert_close(block(X), X)


def test_where_the_shape_changes_the_normalised_input_is_carried() -> None:
    block = PreActBlock(4, 6, 2, two_convolutions(4, 6, 2))
    silence(block.body)
    torch.testing.assert_close(block(X), block.shortcut(block.norm(X).relu()))


def test_squeeze_and_excitation_weighs_what_is_added_not_what_is_carried() -> None:
    block = next(layer for layer in senet18.build((3, 32, 32), 10).modules() if isinstance(layer, PreActBlock)).eval()
    x = torch.randn(2, 64, 5, 5)
    body: Tensor = block.body(block.norm(x).relu())
    weights = block.gate.fc2(block.gate.fc1(body.mean((2, 3), keepdim=True)).relu()).sigmoid()
    torch.testing.assert_close(block(x), x + weights * body)
    assert weights.shape == (2, 64, 1, 1)


def test_a_resnext_block_adds_before_its_last_relu() -> None:
    block = ResNeXtBlock(4, 2, groups=2, stride=1)
    silence(block.body)
    torch.testing.assert_close(block(X), X.relu())


def test_a_dual_path_block_adds_some_channels_and_appends_the_others() -> None:
    block = DualPathBlock(4, Stage(blocks=2, width=32, residual=3, growth=2), 1, first=False)
    new = block.body(X)
    expected = torch.cat([X[:, :3] + new[:, :3], X[:, 3:], new[:, 3:]], dim=1).relu()
    torch.testing.assert_close(block(X), expected)
    first = DualPathBlock(4, Stage(blocks=2, width=32, residual=3, growth=2), 2, first=True)
    assert first(X).shape == (2, 3 + 2 + 2, 4, 4)


def test_the_paths_of_an_inception_module_see_one_three_and_five_pixels() -> None:
    module = Inception(4, (1, 2, 3, 2, 5, 6)).eval()
    for parameter in module.parameters():
        nn.init.ones_(parameter)  # with positive inputs, so that no ReLU hides a pixel
    x = X.abs().requires_grad_()
    reach = []
    for path in module.paths:
        (gradient,) = torch.autograd.grad(path[:-2](x)[..., 3, 3].sum(), x)  # without the last norm and ReLU
        reach.append(int(gradient.abs().sum((0, 1)).ne(0).any(0).sum()))
    assert reach[:3] == [1, 3, 5]
    assert module(X).shape == (2, module.outputs, 7, 7)
    assert module.outputs == 1 + 3 + 5 + 6
