"""`ringmark judge`: what it counts, what it draws, and what it refuses."""

from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from ddp.mistake import Mistake
from launch.argv import UsageError
from launch.judge import JudgeOptions, judge, judged
from models.dcgan import Generator, dcgan_digits
from models.lenet import lenet5
from models.spec import ModelMistake


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A run's folder of a GAN whose images differ, and the weights of a classifier which tells them apart."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("gan")
    gan, classifier = dcgan_digits.build((1, 32, 32), 10), lenet5.build((1, 32, 32), 10)
    torch.save(gan.state_dict(), folder / "model.pt")
    torch.save(classifier.state_dict(), folder / "lenet5.pt")
    return folder, folder / "lenet5.pt"


def flags(runs: tuple[Path, Path], *more: str) -> list[str]:
    return ["--generator", str(runs[0]), "--judge-weights", str(runs[1]), *more]


def test_it_counts_the_classes_and_draws_a_grid(
    runs: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert judge(flags(runs, "--count", "30", "--out", str(tmp_path))) == 0
    first, counts, verdict, samples = capsys.readouterr().out.splitlines()
    assert first == "30 images by dcgan-digits, seed 0, as lenet5 sees them:"
    numbers = [int(each.split(": ")[1]) for each in counts.split("  ")]
    assert len(numbers) == 10
    assert sum(numbers) == 30
    assert verdict.startswith(f"{sum(number > 0 for number in numbers)} of 10 classes present, mean confidence 0.")
    assert samples == f"samples: {tmp_path / 'samples.png'}"
    with Image.open(tmp_path / "samples.png") as picture:
        assert picture.size == (10 * 34 + 2, 3 * 34 + 2)


class Brightest(nn.Module):
    """Class 1 if an image is brighter on the whole than the data's mean; more confident the more it differs from it."""

    def forward(self, images: Tensor) -> Tensor:
        level = images.mean(dim=(1, 2, 3))
        return torch.stack([-level, level], dim=1)


def test_the_judge_sees_normalised_images_and_a_person_sees_pixels() -> None:
    torch.manual_seed(0)
    generator = Generator(4, (4,), 1).eval()
    generator.get_buffer("mean").fill_(0.2)
    generator.get_buffer("std").fill_(0.1)
    pixels, chosen, confidence = judged(generator, Brightest(), 300, seed=1)
    assert pixels.shape == (300, 1, 8, 8)
    assert 0 <= float(pixels.min()) < 0.5 < float(pixels.max()) <= 1
    levels = ((pixels - 0.2) / 0.1).mean(dim=(1, 2, 3))
    assert torch.equal(chosen, (levels > 0).long())
    torch.testing.assert_close(confidence, torch.sigmoid(2 * levels.abs()))
    torch.testing.assert_close(judged(generator, Brightest(), 260, seed=1)[0], pixels[:260])
    assert not torch.equal(judged(generator, Brightest(), 300, seed=2)[0], pixels)


def test_what_does_not_fit_is_refused(runs: tuple[Path, Path]) -> None:
    with pytest.raises(ModelMistake, match=r"expected a model .* got 'dcgan-digit'; did you mean dcgan-digits"):
        judge(flags(runs, "--model", "dcgan-digit"))
    with pytest.raises(ModelMistake, match=r"expected a file of weights, got no file .*nowhere\.pt"):
        judge(["--generator", "nowhere.pt", "--judge-weights", str(runs[1])])
    with pytest.raises(ModelMistake, match="expected the model's tensors in"):
        judge(flags(runs, "--judge-model", "mlp"))
    with pytest.raises(Mistake, match="expected a model with a part called generator, got lenet5"):
        judge(["--generator", str(runs[1]), "--judge-weights", str(runs[1]), "--model", "lenet5"])
    with pytest.raises(UsageError, match="--count of at least 1"):
        judge(flags(runs, "--count", "0"))
    assert JudgeOptions(generator=runs[0], judge_weights=runs[1]).count == 1000
