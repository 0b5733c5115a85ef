"""Blends of two samples, against the papers' definitions in plain loops."""

import pytest
import torch
from torch import Tensor

from ddp.augment_config import AugmentConfig
from ddp.mistake import Mistake
from ddp.mixing import Mixing, mixing_for

MIXUP, CUTMIX = AugmentConfig(mixup=0.2), AugmentConfig(cutmix=1.0)


def mixing_of(config: AugmentConfig, samples: int = 50_000, seed: int = 0) -> Mixing:
    mixing = mixing_for(config, samples, seed)
    assert mixing is not None
    return mixing


def images_of(count: int, seed: int, height: int = 9, width: int = 9) -> Tensor:
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(seed))


def test_nothing_is_mixed_unless_asked_for_and_one_sample_has_no_other() -> None:
    assert mixing_for(AugmentConfig(), 10, 0) is None
    with pytest.raises(Mistake, match=r"expected at least 2 training samples with --mixup 0.2, got 1; use more data"):
        mixing_for(MIXUP, 1, 0)


def test_partners_are_any_other_sample_of_the_training_set() -> None:
    mixing = mixing_of(MIXUP, samples=5)
    counts = torch.zeros(5, 5, dtype=torch.int64)
    for epoch in range(2000):
        counts[torch.arange(5), mixing.partners(torch.arange(5), epoch)] += 1
    assert (counts.diagonal() == 0).all()
    others = counts[~torch.eye(5, dtype=torch.bool)]
    assert (others - 500).abs().max() < 5 * 19.4  # of 2000 draws, each of four
    partners = mixing_of(MIXUP).partners(torch.arange(50_000), 0)
    assert (partners != torch.arange(50_000)).all()
    assert 0 <= partners.min() < 100
    assert 49_900 < partners.max() < 50_000


@pytest.mark.parametrize("alpha", [0.2, 1.0, 4.0])
def test_the_share_of_mixup_is_beta_distributed(alpha: float) -> None:
    count = 20_000
    images = torch.zeros(count, 1, 1, 1)
    mixed, share = mixing_of(AugmentConfig(mixup=alpha)).blend(images, images + 1, torch.arange(count), 3)
    assert share.dtype == torch.float32
    assert torch.equal(mixed.view(-1), share)
    variance = 1 / (4 * (2 * alpha + 1))
    assert float(share.mean()) == pytest.approx(0.5, abs=5 * (variance / count) ** 0.5)
    assert float(share.var()) == pytest.approx(variance, rel=0.03)


@pytest.mark.parametrize("alpha", [1e-4, 1e4])
def test_extreme_alphas_give_shares(alpha: float) -> None:
    images = torch.zeros(1000, 1, 1, 1)
    _, share = mixing_of(AugmentConfig(mixup=alpha)).blend(images, images, torch.arange(1000), 0)
    assert ((share >= 0) & (share <= 1)).all()


def test_mixup_blends_image_by_image() -> None:
    images, others = images_of(40, 1), images_of(40, 2)
    mixed, share = mixing_of(MIXUP).blend(images, others, torch.arange(40), 0)
    for position in range(40):
        part = float(share[position])
        torch.testing.assert_close(mixed[position], (1 - part) * images[position] + part * others[position])


@pytest.mark.parametrize(("height", "width"), [(8, 8), (9, 13)])
def test_cutmix_takes_one_rectangle_whose_area_is_the_share(height: int, width: int) -> None:
    count = 2000
    images, others = torch.zeros(count, 3, height, width), torch.ones(count, 3, height, width)
    mixed, share = mixing_of(CUTMIX).blend(images, others, torch.arange(count), 0)
    assert torch.equal(mixed.mean((1, 2, 3)), share)
    assert torch.equal(mixed[:, 0], mixed[:, 2])
    for taken in mixed[:, 0].bool():
        rows, columns = taken.any(1).nonzero().view(-1), taken.any(0).nonzero().view(-1)
        if len(rows):
            assert taken[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()
            assert int(taken.sum()) == int(rows[-1] - rows[0] + 1) * int(columns[-1] - columns[0] + 1)
    spots = mixed[:, 0].mean(0)  # how often each pixel is taken: the same seen from all four sides
    assert (spots - spots.flip(0)).abs().max() < 0.08
    assert (spots - spots.flip(1)).abs().max() < 0.08


def test_the_sides_of_cutmix_are_the_root_of_the_drawn_share() -> None:
    # In a large image rounding is small, and with alpha 1 the drawn share is uniform.
    count = 3000
    images = torch.zeros(count, 1, 100, 60)
    mixed, share = mixing_of(CUTMIX).blend(images, images + 1, torch.arange(count), 0)
    taken = mixed[:, 0].bool()
    height, width = taken.any(2).sum(1), taken.any(1).sum(1)
    inside = ~(taken[:, 0].any(1) | taken[:, -1].any(1) | taken[:, :, 0].any(1) | taken[:, :, -1].any(1))
    assert (height[inside] / 100 - width[inside] / 60).abs().max() <= 2 / 60
    # Unclipped in both directions with probability (1 - sqrt(s))^2 for a share s that is uniform: 1/6 of all.
    assert float(inside.float().mean()) == pytest.approx(1 / 6, abs=0.04)
    # The mean share, by the clipped mean length: E[(sqrt(s) (1 - sqrt(s) / 4))^2] = 1/2 - 1/5 + 1/48.
    assert float(share.mean()) == pytest.approx(1 / 2 - 1 / 5 + 1 / 48, abs=0.02)


@pytest.mark.parametrize("config", [MIXUP, CUTMIX])
def test_a_blend_has_the_same_bits_in_any_batch_but_not_in_another_epoch(config: AugmentConfig) -> None:
    mixing, indices = mixing_of(config), torch.randperm(37, generator=torch.Generator().manual_seed(0))
    images, others = images_of(37, 1), images_of(37, 2)
    mixed, share = mixing.blend(images, others, indices, 4)
    partners = mixing.partners(indices, 4)
    for size in (1, 2, 5, 16):
        parts = [
            mixing.blend(*part, 4)
            for part in zip(images.split(size), others.split(size), indices.split(size), strict=True)
        ]
        assert torch.equal(torch.cat([part[0] for part in parts]), mixed)
        assert torch.equal(torch.cat([part[1] for part in parts]), share)
        assert torch.equal(torch.cat([mixing.partners(part, 4) for part in indices.split(size)]), partners)
    again = mixing_of(config, seed=1)
    assert not torch.equal(mixing.partners(indices, 5), partners)
    assert not torch.equal(again.partners(indices, 4), partners)
    assert not torch.equal(mixing.blend(images, others, indices, 5)[1], share)
    assert not torch.equal(again.blend(images, others, indices, 4)[1], share)


@pytest.mark.parametrize("config", [MIXUP, CUTMIX])
def test_the_memory_format_stays_and_the_originals_too(config: AugmentConfig) -> None:
    images, others = (images_of(6, seed).to(memory_format=torch.channels_last) for seed in (1, 2))
    kept = images.clone(), others.clone()
    mixed, _ = mixing_of(config).blend(images, others, torch.arange(6), 0)
    assert mixed.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(images, kept[0])
    assert torch.equal(others, kept[1])
