"""Containers: what starts the ranks inside an image, as words of a command line."""

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from launch.sites import Site

IMAGE = re.compile(r"[A-Za-z0-9_/.][A-Za-z0-9_/.@#:+=-]*", re.ASCII)
LONGEST_IMAGE = 1000


def check_container(container: str, image: str | None, binds: Sequence[str]) -> None:
    """Raise ValueError unless image and binds can be said to the container program."""
    if (container == "none") != (image is None):
        raise ValueError(
            f"expected container and container_image together, got {container} and {image}; "
            "write for example container = 'apptainer' and container_image = '/images/torch.sif'"
        )
    if image is not None and not (len(image) <= LONGEST_IMAGE and IMAGE.fullmatch(image)):
        raise ValueError(f"expected container_image as a file or a name, got {image!r}; write '/images/torch.sif'")
    for bind in binds:
        source, _, target = bind.partition(":")
        if not is_bindable(source) or (target and not is_bindable(target)):
            raise ValueError(
                f"expected container_binds as /from or /from:/to without commas, got {bind!r}; such as '/data'"
            )


def is_bindable(path: str) -> bool:
    """Whether a container program can be told to show this folder inside."""
    return path.startswith("/") and path.isprintable() and not set(path) & set(",:")


def wrap(site: "Site", folders: Sequence[str]) -> tuple[str, ...]:
    """What stands before the interpreter on the nodes; `folders` are shown inside the container at their own place."""
    if site.container != "apptainer" or site.container_image is None:
        return ()
    binds = [word for bind in _binds(site, folders) for word in ("--bind", bind)]
    gpus = ["--nv"] if site.gpus_per_node else []
    return ("apptainer", "exec", *gpus, *binds, site.container_image)


def srun_options(site: "Site", folders: Sequence[str], variables: Sequence[str] = ()) -> tuple[str, ...]:
    """Options of srun that start the container; `variables` of the job beat those of the image."""
    if site.container != "enroot" or site.container_image is None:
        return ()
    mounts = [bind if ":" in bind else f"{bind}:{bind}" for bind in _binds(site, folders)]
    names = ["PYTHONPATH", "PYTHONSAFEPATH", *variables]
    return (
        f"--container-image={site.container_image}",
        f"--container-mounts={','.join(mounts)}",
        f"--container-env={','.join(dict.fromkeys(names))}",
    )


def _binds(site: "Site", folders: Sequence[str]) -> list[str]:
    for folder in folders:
        if not is_bindable(folder):
            raise ValueError(f"expected folders without ',' and ':' with a container, got {folder!r}; rename it")
    return list(dict.fromkeys([*folders, *site.container_binds]))
