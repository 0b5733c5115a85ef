"""Segmentation models: their counts by hand arithmetic, logits for every pixel, a gradient for every parameter."""

import pytest
import torch
from torch import Tensor, nn
from torchvision.models._utils import IntermediateLayerGetter

from models import zoo
from models.deeplab import DeepLabV2, LargeFOV, SmallDeepLabV3, SummedASPP
from models.fcn import FCN, BilinearUpsampling
from models.pspnet import PSPNet, PyramidPooling
from models.segmenter import DilatedResNet, FromTorchvision
from models.segnet import SegNet
from models.spec import ModelMistake
from models.unet import UNet
from tests.reference_counts import COUNTS

NAMES = sorted(name for name in zoo.own_names() if zoo.find(name).task == "segmentation")
TINY = (4, "M", 8, "M", 8, "M", 8, "M", 8, 8, "M")
"""VGG of five stages, as narrow as can be."""


class TinyBackbone(nn.Module):
    """Stands in for a dilated ResNet: features of two stages at a quarter of the size."""

    def __init__(self) -> None:
        super().__init__()
        self.earlier, self.last = nn.Conv2d(3, 8, 4, stride=4), nn.Conv2d(8, 16, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        earlier = self.earlier(x)
        return self.last(earlier), earlier


class TinyTorchvision(nn.Module):
    """Has the parts of torchvision's segmentation models, from which FromTorchvision takes what it needs."""

    def __init__(self) -> None:
        super().__init__()
        layers = {"stem": nn.Conv2d(3, 8, 4, stride=4), "last": nn.Conv2d(8, 16, 1)}
        self.backbone = IntermediateLayerGetter(nn.ModuleDict(layers), {"stem": "aux", "last": "out"})
        self.classifier, self.aux_classifier = nn.Conv2d(16, 5, 1), nn.Conv2d(8, 5, 1)


TINY_NETS = {
    "unet": lambda: UNet(3, 5, width=4),
    "unet-bilinear": lambda: UNet(3, 5, width=4, bilinear=True),
    "fcn32s": lambda: FCN(TINY, 5, stride=32, width=8, dropout=0.0),
    "fcn16s": lambda: FCN(TINY, 5, stride=16, width=8, dropout=0.0),
    "fcn8s": lambda: FCN(TINY, 5, stride=8, width=8, dropout=0.0),
    "fcn-torchvision": lambda: FromTorchvision(TinyTorchvision()),
    "segnet": lambda: SegNet(TINY, 5),
    "pspnet": lambda: PSPNet(TinyBackbone(), (16, 8), 5),
    "deeplab-v1": lambda: LargeFOV(TINY, 5, width=8),
    "deeplab-v2": lambda: DeepLabV2(TinyBackbone(), 16, 5),
    "deeplab-v3-small": lambda: SmallDeepLabV3(3, 5, width=4),
}
AUXILIARY = ("fcn-torchvision", "pspnet")


def test_others_counted_the_parameters_of_every_large_model() -> None:
    """What a model says of itself is compared with theirs, and with what is built, for all models elsewhere."""
    assert [name for name in NAMES if not name.endswith("-small") and name not in COUNTS] == []


@pytest.mark.parametrize(
    "name", ["unet", "unet-bilinear", "fcn8s-vgg16", "fcn-resnet50", "segnet", "pspnet-resnet50", "deeplab-v1-largefov"]
)
def test_a_large_model_gives_logits_for_each_pixel(name: str) -> None:
    spec = zoo.find(name)
    with torch.device("meta"):
        logits = spec.build(spec.shape, spec.classes).eval()(torch.zeros(1, *spec.shape))
    assert logits.shape == (1, spec.classes, *spec.shape[1:])


@pytest.mark.parametrize("name", ["unet-small", "deeplab-v3-small"])
def test_a_small_model_has_its_parameters_and_a_gradient_for_each(name: str) -> None:
    spec = zoo.find(name)
    module = zoo.build(spec, spec.shape, spec.classes, (spec.classes, *spec.shape[1:]))
    assert sum(parameter.numel() for parameter in module.parameters()) == spec.parameters
    module(torch.randn(2, *spec.shape)).square().sum().backward()
    assert all(parameter.grad is not None for parameter in module.parameters())


@pytest.mark.parametrize("size", [(64, 64), (50, 71)])
@pytest.mark.parametrize("name", TINY_NETS)
def test_every_pixel_gets_logits_and_every_parameter_a_gradient(name: str, size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    module = TINY_NETS[name]()
    images = torch.randn(2, 3, *size)
    outputs = module(images)
    assert isinstance(outputs, dict) == (name in AUXILIARY)
    parts = outputs if isinstance(outputs, dict) else {"out": outputs}
    assert {part: tuple(logits.shape) for part, logits in parts.items()} == dict.fromkeys(parts, (2, 5, *size))
    sum(logits.square().sum() for logits in parts.values()).backward()
    assert [each for each, parameter in module.named_parameters() if parameter.grad is None] == []
    assert module.eval()(images).shape == (2, 5, *size)


@pytest.mark.parametrize("name", ["fcn8s-vgg16", "deeplab-v3-resnet50", "segnet", "pspnet-resnet50"])
def test_a_model_on_a_backbone_for_colours_refuses_grey_images(name: str) -> None:
    with pytest.raises(ModelMistake, match=rf"expected images of 3 channels for {name}, got samples of 1x64x64"):
        zoo.find(name).build((1, 64, 64), 5)


@pytest.mark.parametrize("factor", [2, 8, 16, 32])
def test_a_transposed_convolution_begins_as_bilinear_interpolation(factor: int) -> None:
    """Breaks if the kernel is off by half a pixel, or mixes classes: inside, a ramp stays the same ramp, finer."""
    enlarge = BilinearUpsampling(2, factor).double()
    coarse = torch.stack([torch.arange(6.0).repeat(6, 1), torch.zeros(6, 6)])[None].double()
    fine = enlarge(coarse).detach()
    assert fine.shape == (1, 2, 6 * factor, 6 * factor)
    centres = (torch.arange(6 * factor).double() + 0.5) / factor - 0.5
    inside = slice(factor, 5 * factor)
    torch.testing.assert_close(fine[0, 0, inside, inside], centres[inside].repeat(4 * factor, 1), rtol=0, atol=1e-12)
    assert not fine[0, 1].any()


def test_an_fcn_begins_with_its_coarse_scores_and_learns_the_finer_ones() -> None:
    """Long et al. fill the layers that score earlier stages with zeros: at first fcn16s is fcn32s, enlarged in two."""
    torch.manual_seed(0)
    coarse = FCN(TINY, 5, stride=32, width=8).double().eval()
    finer = FCN(TINY, 5, stride=8, width=8).double().eval()
    finer.load_state_dict({**finer.state_dict(), **coarse.stages.state_dict(prefix="stages.")})
    finer.score.load_state_dict(coarse.score.state_dict())
    image = torch.randn(1, 3, 192, 192, dtype=torch.float64)
    one, other = coarse(image), finer(image)
    # Bilinear in one step of 32 or three of 2, 2 and 8 is not quite the same, but close; unrelated scores are not.
    assert (one - other).norm() < 0.3 * one.norm()
    with torch.no_grad():
        finer.skips[0].weight.fill_(1.0)
    assert (one - finer(image)).norm() > 0.3 * one.norm()


def test_segnet_puts_values_back_where_the_maxima_were() -> None:
    net = SegNet((1, "M"), 1).eval()
    net.encoder[0] = net.decoder[0] = nn.Identity()
    image = torch.tensor([[1.0, 2, 5, 4], [3, 0, 6, 7], [9, 1, 0, 0], [1, 1, 0, 8]])[None, None]
    expected = torch.tensor([[0.0, 0, 0, 0], [3, 0, 0, 7], [9, 0, 0, 0], [0, 0, 0, 8]])
    assert torch.equal(net(image)[0, 0], expected)


def test_pyramid_pooling_appends_averages_of_the_image_and_its_parts() -> None:
    pyramid = PyramidPooling(1, 1).eval()
    for level in pyramid.levels:
        assert isinstance(level, nn.Sequential)
        level[1] = nn.Identity()
    x = torch.arange(36.0).view(1, 1, 6, 6)
    out = pyramid(x)
    assert out.shape == (1, 5, 6, 6)
    assert torch.equal(out[:, :1], x)
    torch.testing.assert_close(out[0, 1], torch.full((6, 6), 17.5))
    torch.testing.assert_close(out[0, 2, 0, 0], x[..., :3, :3].mean())
    assert torch.equal(out[:, 4:], x)


def test_the_branches_of_deeplab_v2_are_summed_at_their_rates() -> None:
    """A single bright pixel reaches the taps of each rate, and nothing else."""
    head = SummedASPP(1, 1, rates=(2, 3))
    for parameter in head.parameters():
        nn.init.ones_(parameter)
    bright = torch.zeros(1, 1, 9, 9)
    bright[..., 4, 4] = 1
    out = head(bright)[0, 0] - 2  # without the two biases
    taps = {(4, 4)} | {(4 + r * i, 4 + r * j) for r in (2, 3) for i in (-1, 0, 1) for j in (-1, 0, 1)}
    assert {tuple(place) for place in out.nonzero().tolist()} == taps
    assert out[4, 4] == 2


def test_largefov_keeps_an_eighth_of_the_size() -> None:
    assert LargeFOV(TINY, 5, width=8).features(torch.zeros(1, 3, 64, 48)).shape == (1, 8, 8, 6)


@pytest.mark.parametrize("stage", [0, 1])
def test_a_dilated_resnet_keeps_an_eighth_of_the_size(stage: int) -> None:
    with torch.device("meta"):
        features = DilatedResNet((1, 1, 1, 1))(torch.zeros(1, 3, 64, 48))
    assert features[stage].shape == (1, (2048, 1024)[stage], 8, 6)
