"""Mixed precision by torch.amp: autocast around the forward pass, and gradient scaling for fp16."""

from contextlib import AbstractContextManager
from typing import Literal

import torch

Amp = Literal["off", "bf16", "fp16"]
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def autocast(amp: Amp, device: torch.device) -> AbstractContextManager[object]:
    """The context in which the forward pass and the loss are computed."""
    return torch.autocast(device.type, dtype=DTYPES.get(amp), enabled=amp != "off")


def set_tf32(allowed: bool) -> None:
    """Whether float32 products and convolutions on a GPU may round their factors to TF32's 10 bits of mantissa.

    torch's own default allows it in convolutions only.
    """
    torch.set_float32_matmul_precision("high" if allowed else "highest")
    torch.backends.cudnn.allow_tf32 = allowed


def grad_scaler(amp: Amp, device: torch.device) -> torch.amp.GradScaler:
    """A scaler that does nothing unless the precision is fp16: bf16 has the range of float32."""
    return torch.amp.GradScaler(device.type, enabled=amp == "fp16")
