"""SyncBatchNorm: batch statistics over all ranks. torch's own layer on GPUs; on the CPU, where torch has none, ours.

torch.nn.SyncBatchNorm refuses CPU tensors. The layer here computes the same function with one all_gather in the
forward and one all_reduce in the backward pass, in at least float32, and so is the reference that the GPU layer can
be tested against.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ddp.context import DistContext, new_group
from ddp.mistake import Mistake, require

CONVERTIBLE = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
PLAIN = "plain_batchnorm"
"""Attribute of a converted layer that holds the class it had before."""


def _per_channel(values: Tensor, like: Tensor) -> Tensor:
    """Shape [C] -> [1, C, 1, ...] of the same rank as `like` [N, C, ...]."""
    return values.view(1, -1, *[1] * (like.dim() - 2))


def _reduced_dims(tensor: Tensor) -> list[int]:
    return [dim for dim in range(tensor.dim()) if dim != 1]


def _merge_statistics(mean: Tensor, variance: Tensor, count: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Statistics of a union from those of its parts.

    mean, variance [ranks, C] (biased), count [ranks, 1] -> mean [C], biased variance [C], count [1].
    Source: Chan, Golub, LeVeque, "Updating formulae and a pairwise algorithm for computing sample variances", 1979.
    """
    total = count.sum(0)
    merged_mean = (mean * count).sum(0) / total
    squares = (variance + (mean - merged_mean) ** 2) * count
    return merged_mean, squares.sum(0) / total, total


class _SyncBatchNormFunction(torch.autograd.Function):
    """Normalise [N, C, ...] by the mean and variance of all ranks' samples; a rank may have none (N = 0)."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, group: dist.ProcessGroup
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        channels = x.size(1)
        count = x.numel() // channels
        local = wide.new_zeros(2 * channels + 1)
        if count > 0:
            variance, mean = torch.var_mean(wide, _reduced_dims(x), correction=0)
            local[:channels], local[channels:-1], local[-1] = mean, variance, count
        gathered = [torch.empty_like(local) for _ in range(group.size())]
        dist.all_gather(gathered, local, group=group)
        means, variances, counts = torch.stack(gathered).split([channels, channels, 1], dim=1)
        mean, variance, total = _merge_statistics(means, variances, counts)
        inverse_std = torch.rsqrt(variance + eps)
        normalised = (wide - _per_channel(mean, x)) * _per_channel(inverse_std, x)
        ctx.save_for_backward(normalised, weight, inverse_std, total)
        ctx.group = group
        out = normalised
        if weight is not None:
            out = out * _per_channel(weight.to(wide.dtype), x)
        if bias is not None:
            out = out + _per_channel(bias.to(wide.dtype), x)
        ctx.mark_non_differentiable(mean, variance, total)
        return out.to(x.dtype), mean, variance, total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None, None]:
        """Gradients of weight and bias stay this rank's own: DDP averages them like every other parameter's."""
        normalised, weight, inverse_std, total = ctx.saved_tensors
        grad_out = grads[0].to(normalised.dtype)
        dims = _reduced_dims(grad_out)
        sums = torch.cat([grad_out.sum(dims), (grad_out * normalised).sum(dims)])
        grad_bias, grad_weight = sums.chunk(2)
        grad_weight, grad_bias = grad_weight.clone(), grad_bias.clone()
        dist.all_reduce(sums, group=ctx.group)
        mean_grad, mean_grad_normalised = (sums / total).chunk(2)
        scale = inverse_std if weight is None else inverse_std * weight.to(inverse_std.dtype)
        grad_x = grad_out - _per_channel(mean_grad, grad_out)
        grad_x = (grad_x - normalised * _per_channel(mean_grad_normalised, grad_out)) * _per_channel(scale, grad_out)
        needs_weight, needs_bias = ctx.needs_input_grad[1:3]
        return (
            grad_x.to(grads[0].dtype),
            grad_weight.to(weight.dtype) if needs_weight else None,
            grad_bias.to(weight.dtype) if needs_bias else None,
            None,
            None,
        )


class CpuSyncBatchNorm(_BatchNorm):
    """BatchNorm over the samples of all ranks of a group, on the CPU. Input [N, C, ...], N may be 0 and may differ."""

    group: dist.ProcessGroup | None = None

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"expected an input of at least 2 dimensions [N, C, ...], got {input.dim()}")

    def forward(self, input: Tensor) -> Tensor:
        """Batch statistics in training, running statistics in evaluation; the latter needs no other rank."""
        self._check_input_dim(input)
        if not self.training:
            return super().forward(input)
        assert self.group is not None
        out, mean, variance, total = _SyncBatchNormFunction.apply(input, self.weight, self.bias, self.eps, self.group)
        if self.track_running_stats:
            self._update_running_statistics(mean, variance, total)
        return out

    @torch.no_grad()
    def _update_running_statistics(self, mean: Tensor, variance: Tensor, total: Tensor) -> None:
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        momentum = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        unbiased = variance * (total / (total - 1))
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), momentum)
        self.running_var.lerp_(unbiased.to(self.running_var.dtype), momentum)


def _converted(old: nn.Module, group: dist.ProcessGroup, device: torch.device) -> _BatchNorm:
    assert isinstance(old, _BatchNorm)
    new: CpuSyncBatchNorm | nn.SyncBatchNorm
    if device.type == "cuda":
        new = nn.SyncBatchNorm(old.num_features, old.eps, old.momentum, old.affine, old.track_running_stats, group)
    else:
        new = CpuSyncBatchNorm(old.num_features, old.eps, old.momentum, old.affine, old.track_running_stats)
        new.group = group
    vars(new)[PLAIN] = type(old)
    return _with_tensors_of(old, new)


def _with_tensors_of(old: _BatchNorm, new: _BatchNorm) -> _BatchNorm:
    new._parameters = old._parameters
    new._buffers = old._buffers
    new.training = old.training
    return new


def _replace_layers(module: nn.Module, convert: Callable[[str, nn.Module], nn.Module]) -> nn.Module:
    """Put `convert(name, layer)` in the place of every layer; one used under several names is converted once."""
    replaced: dict[int, nn.Module] = {}

    def once(name: str, old: nn.Module) -> nn.Module:
        if id(old) not in replaced:
            replaced[id(old)] = convert(name, old)
        return replaced[id(old)]

    for parent_name, parent in list(module.named_modules()):
        for name, child in list(parent._modules.items()):
            if child is not None:
                parent._modules[name] = once(f"{parent_name}.{name}".lstrip("."), child)
    return once("", module)


def convert_sync_batchnorm(module: nn.Module, group: dist.ProcessGroup, device: torch.device) -> nn.Module:
    """Replace every BatchNorm of a model by one over all ranks, in place; parameters and buffers stay the same tensors.

    A layer that is used under several names stays one layer. Raises Mistake for a layer that is derived from
    BatchNorm (its own forward would be lost) or that has hooks.
    """

    def convert(name: str, old: nn.Module) -> nn.Module:
        if isinstance(old, nn.SyncBatchNorm | CpuSyncBatchNorm) or not isinstance(old, _BatchNorm):
            return old
        if type(old) not in CONVERTIBLE:
            raise Mistake(
                f"expected plain BatchNorm layers for --sync-bn, got {type(old).__name__} at {name or 'the top'}, "
                "whose own forward pass would be lost; build the model from nn.BatchNorm1d/2d/3d or omit --sync-bn"
            )
        if old._forward_hooks or old._forward_pre_hooks or old._backward_hooks or old._backward_pre_hooks:
            raise Mistake(
                f"expected BatchNorm layers without hooks for --sync-bn, got hooks at {name}; add them after wrapping"
            )
        return _converted(old, group, device)

    return _replace_layers(module, convert)


def revert_sync_batchnorm(module: nn.Module) -> nn.Module:
    """Undo `convert_sync_batchnorm`, in place: each layer becomes what it was, and its tensors stay the same.

    A layer that the model itself made as SyncBatchNorm stays one.
    """

    def revert(name: str, old: nn.Module) -> nn.Module:
        plain = vars(old).get(PLAIN)
        if plain is None:
            return old
        assert isinstance(old, _BatchNorm)
        new = plain(old.num_features, old.eps, old.momentum, old.affine, old.track_running_stats)
        return _with_tensors_of(old, new)

    return _replace_layers(module, revert)


def node_group(ctx: DistContext) -> dist.ProcessGroup:
    """The group of this rank's node, which may be this rank alone. Every rank of the launch must call this.

    Raises Mistake on a part of the launch: torch makes groups with all of its processes.
    """
    everyone = dist.get_world_size()
    require(
        ctx.world_size == everyone,
        f"all {everyone} ranks of the launch with --sync-bn-scope node",
        ctx.world_size,
        "use --sync-bn-scope world",
    )
    nodes = ctx.gather(ctx.node_rank)
    own: dist.ProcessGroup | None = None
    for node in sorted(set(nodes)):
        members = [rank for rank, each in enumerate(nodes) if each == node]
        group = new_group(members, ctx.timeout_s)
        own = own if group is None else group
    assert own is not None
    return own


@torch.no_grad()
def merge_running_statistics(module: nn.Module, group: dist.ProcessGroup) -> None:
    """Give all ranks the same BatchNorm statistics: those of the mixture of what each rank saw.

    Without SyncBN each rank's running statistics describe its own samples, and with it over nodes those of its node.
    The ranks' share of samples is equal, so the mixture's mean is the mean of means, and its variance the mean variance
    plus the variance of the means.
    """
    layers = [
        layer
        for layer in module.modules()
        if isinstance(layer, _BatchNorm) and layer.running_mean is not None and layer.training  # others stood still
    ]
    if not layers:
        return
    means = [layer.running_mean for layer in layers if layer.running_mean is not None]
    variances = [layer.running_var for layer in layers if layer.running_var is not None]
    first = torch.cat([mean.double() for mean in means])
    second = torch.cat([var.double() for var in variances]) + first**2
    packed = torch.stack([first, second])
    dist.all_reduce(packed, group=group)
    first, second = packed / group.size()
    merged_variance = second - first**2
    sizes = [mean.numel() for mean in means]
    for mean, variance, new_mean, new_variance in zip(
        means, variances, first.split(sizes), merged_variance.split(sizes), strict=True
    ):
        mean.copy_(new_mean)
        variance.copy_(new_variance)
