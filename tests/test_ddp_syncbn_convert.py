"""Which layers SyncBatchNorm takes the place of, what it keeps of them, and the way back."""

import pytest
import torch
from torch import Tensor, nn

from ddp.context import DistContext
from ddp.mistake import Mistake
from ddp.syncbn import CpuSyncBatchNorm, convert_sync_batchnorm, revert_sync_batchnorm
from tests.ranks import run_ranks


class Shared(nn.Module):
    """One BatchNorm under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.BatchNorm2d(3)
        self.second = self.first


class FusedBatchNorm(nn.BatchNorm2d):
    """A BatchNorm with a forward pass of its own."""

    def forward(self, input: Tensor) -> Tensor:
        return torch.relu(super().forward(input))


def test_a_layer_used_under_two_names_stays_one_layer() -> None:
    """T14. Breaks if names are visited once for each layer, or if each name gets a layer of its own."""

    def work(ctx: DistContext) -> bool:
        module = convert_sync_batchnorm(Shared(), ctx.group, ctx.device)
        return module.first is module.second and isinstance(module.first, CpuSyncBatchNorm)

    assert all(run_ranks(work, 2))


def hooked(register: str) -> nn.Module:
    """A BatchNorm with a hook."""
    layer = nn.BatchNorm2d(3)
    getattr(layer, register)(lambda *call: None)
    return layer


@pytest.mark.parametrize(
    ("layer", "sentence"),
    [
        (FusedBatchNorm(3), "got FusedBatchNorm at 1, whose own forward pass would be lost"),
        (nn.LazyBatchNorm2d(), "got LazyBatchNorm2d at 1, whose own forward pass would be lost"),
        (hooked("register_forward_hook"), "without hooks for --sync-bn, got hooks at 1"),
        (hooked("register_forward_pre_hook"), "without hooks for --sync-bn, got hooks at 1"),
        (hooked("register_full_backward_hook"), "without hooks for --sync-bn, got hooks at 1"),
        (hooked("register_full_backward_pre_hook"), "without hooks for --sync-bn, got hooks at 1"),
    ],
)
def test_a_layer_that_would_lose_something_is_refused_by_name(layer: nn.Module, sentence: str) -> None:
    """T14. Breaks if a derived layer, a lazy one or one with hooks is replaced by one that does less."""

    def work(ctx: DistContext) -> str:
        with pytest.raises(Mistake, match=sentence):
            convert_sync_batchnorm(nn.Sequential(nn.ReLU(), layer), ctx.group, ctx.device)
        return "refused"

    assert run_ranks(work, 1) == ["refused"]


def net_of() -> nn.Module:
    """Convolution, BatchNorm over images, BatchNorm over features."""
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 16), nn.BatchNorm1d(16)
    )


def test_conversion_keeps_the_tensors_and_what_evaluation_computes() -> None:
    """T14. Breaks if the new layers have other tensors, or forget that they were evaluating."""

    def work(ctx: DistContext) -> bool:
        net = net_of().eval()
        images = torch.randn(4, 3, 8, 8)
        before, tensors = net(images), {name: id(tensor) for name, tensor in net.named_parameters()}
        net = convert_sync_batchnorm(net, ctx.group, ctx.device)
        same = tensors == {name: id(tensor) for name, tensor in net.named_parameters()}
        return same and torch.equal(before, net(images))

    assert all(run_ranks(work, 2))


def test_revert_gives_back_the_layers_the_tensors_and_the_sharing() -> None:
    """T14. Breaks if there is no way back, or if options, tensors or the sharing are lost on it."""

    def work(ctx: DistContext) -> bool:
        net = nn.Sequential(nn.BatchNorm1d(3), Shared(), nn.BatchNorm3d(3, eps=0.1, momentum=None, affine=False))
        net.eval()
        net[2].train()
        before = {name: id(tensor) for name, tensor in net.state_dict(keep_vars=True).items()}
        back = revert_sync_batchnorm(convert_sync_batchnorm(net, ctx.group, ctx.device))
        assert [type(each) for each in back.modules()] == [
            nn.Sequential, nn.BatchNorm1d, Shared, nn.BatchNorm2d, nn.BatchNorm3d
        ]  # fmt: skip
        assert back[1].first is back[1].second
        assert (back[2].eps, back[2].momentum, back[2].affine, back[2].training) == (0.1, None, False, True)
        assert not back[0].training
        assert isinstance(revert_sync_batchnorm(convert_sync_batchnorm(nn.BatchNorm1d(2), ctx.group, ctx.device)),
                          nn.BatchNorm1d)  # fmt: skip
        return before == {name: id(tensor) for name, tensor in back.state_dict(keep_vars=True).items()}

    assert run_ranks(work, 1) == [True]
