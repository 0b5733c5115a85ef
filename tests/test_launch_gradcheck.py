"""`ringmark gradcheck` from the command line: what it prints, and its exit codes."""

import subprocess
import sys
from pathlib import Path

import pytest

from launch.argv import UsageError
from launch.gradcheck import gradcheck

USER_FILE = """
import torch
from torch import nn

class Gain(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight):
        ctx.save_for_backward(x, weight)
        return x * weight

    @staticmethod
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        return grad * weight, FACTOR * (grad * x).sum(0)

class Net(nn.Module):
    def __init__(self, size, classes):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(size))
        self.out = nn.Linear(size, classes)

    def forward(self, x):
        return self.out(Gain.apply(x.flatten(1), self.gain))

def net(shape, classes):
    return Net(shape[0] * shape[1] * shape[2], classes)
"""


@pytest.fixture
def model(tmp_path: Path, request: pytest.FixtureRequest) -> str:
    (tmp_path / "mine.py").write_text(USER_FILE.replace("FACTOR", request.param))
    return f"{tmp_path / 'mine.py'}:net"


def ringmark(*argv: str) -> subprocess.CompletedProcess[str]:
    script = (
        "import sys; from launch.cli import console; code = console(); "
        "print('torch' in sys.modules, file=sys.stderr); sys.exit(code)"
    )
    return subprocess.run(
        [sys.executable, "-c", script, "gradcheck", *argv], capture_output=True, text=True, timeout=100, check=False
    )


@pytest.mark.parametrize("model", ["2"], indirect=True)
def test_a_wrong_backward_pass_ends_with_code_1_and_the_parameters_name(model: str) -> None:
    done = ringmark("--model", model, "--image-size", "4")
    assert done.returncode == 1, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == f"{model}: 2 samples of 3x4x4 in float64, seed 0"
    rows = {line.split()[0]: line for line in lines if line.strip()}
    assert "48" in rows["gain"]
    assert rows["gain"].rstrip().endswith("5.0e-01   WRONG")
    assert "WRONG" not in rows["out.weight"]
    assert lines[-1] == "2 of 4 comparisons fail at a tolerance of 0.0001; the worst is gain, relative error 5.0e-01"


def test_a_model_of_the_zoo_ends_with_code_0() -> None:
    done = ringmark("--model", "lenet5", "--seed", "3")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == "lenet5: 2 samples of 3x32x32 in float64, seed 3"
    assert done.stdout.splitlines()[-1].startswith("all 11 comparisons agree within 0.0001; the largest relative error")


@pytest.mark.parametrize("model", ["1"], indirect=True)
def test_a_right_backward_pass_of_the_users_own_is_right(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert gradcheck(["--model", model, "--image-size", "4"]) == 0
    assert "all 4 comparisons agree" in capsys.readouterr().out


@pytest.mark.parametrize("model", ["1.01"], indirect=True)
def test_the_tolerance_is_the_users(model: str) -> None:
    assert gradcheck(["--model", model, "--image-size", "4", "--tolerance", "0.001"]) == 1
    assert gradcheck(["--model", model, "--image-size", "4", "--tolerance", "0.5"]) == 0


@pytest.mark.parametrize("model", ["1"], indirect=True)
def test_a_parameter_without_gradient_is_named(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    file = Path(model.rpartition(":")[0])
    file.write_text(file.read_text().replace("self.out = nn", "self.idle = nn.Parameter(torch.ones(2)); self.out = nn"))
    assert gradcheck(["--model", model, "--image-size", "4"]) == 1
    out = capsys.readouterr().out
    assert "the worst is idle" in out
    assert "no gradient, because the loss does not depend on them: idle" in out


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--batch-size", "1"], "expected --batch-size of at least 2, got 1"),
        (["--tolerance", "0"], r"expected --tolerance in \(0, 1\), got 0.0"),
        (["--image-size", "0"], "expected --image-size of at least 1, got 0"),
    ],
)
def test_options_that_cannot_be_are_refused(argv: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        gradcheck(argv)


def test_a_mistake_is_one_line_with_exit_code_2_before_torch_is_imported() -> None:
    done = ringmark("--model", "lenett")
    assert done.returncode == 2
    said, torch_imported = done.stderr.splitlines()
    assert "did you mean lenet5" in said
    assert torch_imported == "False"


def test_help_needs_no_torch() -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "launch", "gradcheck", "--help"],
        cwd=Path(__file__).resolve().parent.parent, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0
    assert "usage: ringmark gradcheck" in done.stdout
    assert " torch\n" not in done.stderr
