"""torchvision's own weights for its classifiers: downloaded only on request, into torch.hub's cache.

Imports torch in functions only, so that a name can be refused at once.
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from models import zoo
from models.spec import ModelMistake

if TYPE_CHECKING:
    from torch import nn


def check_downloadable(model: str) -> None:
    """Raise ModelMistake unless it is one of torchvision's classifiers. Imports no torch."""
    if model in zoo.own_names() or model not in zoo.torchvision_names():
        raise ModelMistake(
            f"expected one of torchvision's models for --download-weights, got {model}; choose one, such as resnet18, "
            "or give a file by --weights"
        )


def _weights(model: str, name: str) -> Any:
    """The member of the model's weights enum. Raises ModelMistake with the names that exist if there is none."""
    from torchvision.models import get_model_weights

    check_downloadable(model)
    known = get_model_weights(model).__members__
    if name not in known:
        have = ", ".join(known) or "no weights"
        raise ModelMistake(
            f"expected weights of {model} by name ({have}) in --download-weights, got {name!r}; "
            + ("choose one of them" if known else "omit it")
        )
    return known[name]


def _cached(url: str) -> Path:
    """Where torch.hub keeps the file of that address."""
    import torch

    return Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]


def fetch(model: str, name: str, say: Callable[[str], None]) -> Path:
    """The file of those weights, downloaded unless it is in torch.hub's cache; says so before it does.

    The file's hash is compared with the one in its name. Raises ModelMistake for a name that does not exist, and where
    the download fails.
    """
    import torch

    weights = _weights(model, name)
    url, path = weights.url, _cached(weights.url)
    if path.is_file():
        return path
    size_mb = weights.meta.get("_file_size")
    say(f"downloading {weights}" + (f", {size_mb:.0f} MB" if size_mb else "") + f", from {url} to {path}")
    hashed = re.search(r"-([0-9a-f]{8,})\.", path.name)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(path), hash_prefix=hashed[1] if hashed else None, progress=False)
    except (OSError, RuntimeError) as error:  # no network, no room, or another file than the one that is named
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelMistake(
            f"expected to download {url}, got {reason}; try again with a network, put the file at {path}, or give it "
            "by --weights"
        ) from None
    return path


def load_downloaded(module: "nn.Module", model: str, name: str, new_head: bool) -> list[str]:
    """Load weights that `fetch` put into the cache -> names of the tensors that start anew, as `load_weights` does.

    The file goes through torchvision's own model, which knows the names that older files have. Raises ModelMistake.
    """
    from torchvision.models import get_model

    from models.pretrained import load_tensors, read_tensors

    weights = _weights(model, name)
    read_tensors(_cached(weights.url))  # torchvision's reader is less strict about what is in a file
    reference = get_model(model, weights=weights, progress=False)
    wanted = module.state_dict()
    # The auxiliary head of Inception v3 is in its file, but not in the model that is built here.
    tensors = {
        name: tensor
        for name, tensor in reference.state_dict().items()
        if name in wanted or not name.lower().startswith("aux")
    }
    anew = load_tensors(module, tensors, str(weights), new_head)
    if hasattr(reference, "transform_input"):
        # Inception's weights were trained on inputs in [-1, 1]; with them the model undoes ImageNet's normalisation.
        module.transform_input = reference.transform_input
    return anew
