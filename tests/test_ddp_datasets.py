"""Data sets: what is read is what is on disk, and a folder that cannot be used is named."""

import hashlib
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits
from torchvision.datasets import CIFAR10, CIFAR100

from ddp import discover
from ddp.datasets import cifar10, digits, imagefolder, shapes, shapes_boxes, synthetic
from ddp.input_config import InputConfig
from ddp.source import Dataset

SHAPE = (3, 32, 32)


def image_folder(root: Path, *, classes: tuple[str, ...] = ("cat", "dog"), per_class: int = 3, size: int = 32) -> Path:
    """A small folder of PNG files whose pixels tell split, class and number."""
    for split_number, split in enumerate(("train", "val")):
        for label, name in enumerate(classes):
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(per_class):
                pixels = np.full((size, size, 3), (split_number * 100, label * 50, number * 20), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.png")
    return root


def load(name: str, config: InputConfig) -> Dataset:
    dataset: Dataset = discover.find("ddp.datasets", name, kind="data set").load(config, SHAPE, 10)
    return dataset


def test_an_image_folder_is_read_as_it_is(tmp_path: Path) -> None:
    config = InputConfig(data="imagefolder", data_dir=image_folder(tmp_path))
    dataset = load("imagefolder", config)
    assert imagefolder.count(config) == 6
    assert dataset.classes == ("cat", "dog")
    assert dataset.train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    image = dataset.test.read(4)
    assert image.shape == (3, 32, 32)
    assert image.dtype == np.uint8
    assert image[:, 5, 7].tolist() == [100, 50, 20]


def test_large_images_are_stored_with_a_margin_for_crops(tmp_path: Path) -> None:
    config = InputConfig(data="imagefolder", data_dir=image_folder(tmp_path, size=300), image_size=224)
    dataset = load("imagefolder", config)
    assert dataset.shape == (3, 224, 224)
    assert dataset.train.read(0).shape == (3, 256, 256)


def test_grey_images_of_another_size_and_format_become_what_the_model_sees(tmp_path: Path) -> None:
    folder = image_folder(tmp_path)
    pixels = np.zeros((64, 128), dtype=np.uint8)
    pixels[:, 32:96] = 77  # the centre that is kept
    Image.fromarray(pixels).save(folder / "train" / "cat" / "9.bmp")
    dataset = load("imagefolder", InputConfig(data="imagefolder", data_dir=folder))
    image = dataset.train.read(3)
    assert image.shape == (3, 32, 32)
    assert (image[:, :, 1:-1] == 77).all()


def test_a_broken_image_is_named(tmp_path: Path) -> None:
    folder = image_folder(tmp_path)
    (folder / "train" / "cat" / "1.png").write_bytes(b"not an image")
    dataset = load("imagefolder", InputConfig(data="imagefolder", data_dir=folder))
    with pytest.raises(ValueError, match=r"expected an image in .*train/cat/1\.png, got a file that cannot be decoded"):
        dataset.train.read(1)


def _no_folder(root: Path) -> None: ...


def _no_train(root: Path) -> None:
    (root / "val").mkdir(parents=True)


def _no_test(root: Path) -> None:
    (root / "train").mkdir(parents=True)


def _no_classes(root: Path) -> None:
    for split in ("train", "val"):
        (root / split).mkdir(parents=True)


def _empty_class(root: Path) -> None:
    image_folder(root)
    (root / "train" / "owl").mkdir()


def _other_classes(root: Path) -> None:
    image_folder(root)
    (root / "val" / "dog").rename(root / "val" / "wolf")


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (_no_folder, "expected an existing folder in --data-dir, got"),
        (_no_train, "expected a folder train in"),
        (_no_test, "expected a folder val or test in"),
        (_no_classes, "expected class folders in"),
        (_empty_class, "expected images in .*train/owl, got none; add some or remove the folder"),
        (_other_classes, "expected the same class folders in both splits, got 2 and 2, different: dog, wolf"),
    ],
)
def test_a_folder_that_cannot_be_used_is_refused_with_a_reason(tmp_path: Path, prepare: Any, message: str) -> None:
    prepare(tmp_path / "data")
    with pytest.raises(ValueError, match=message):
        imagefolder.count(InputConfig(data="imagefolder", data_dir=tmp_path / "data"))


def test_the_digits_are_all_there() -> None:
    dataset = load("digits", InputConfig(data="digits"))
    assert (len(dataset.train), len(dataset.test), dataset.shape) == (1437, 360, (1, 8, 8))
    assert sorted(set(dataset.test.labels.tolist())) == list(range(10))
    assert load("digits", InputConfig(data="digits", image_size=32)).train.read(0).shape == (1, 32, 32)


def test_the_normalisation_of_the_digits_is_that_of_their_pixels() -> None:
    dataset = load("digits", InputConfig(data="digits"))
    pixels = np.stack([dataset.train.read(index) for index in range(len(dataset.train))]) / 255
    assert dataset.mean[0] == pytest.approx(pixels.mean(), abs=1e-3)
    assert dataset.std[0] == pytest.approx(pixels.std(), abs=1e-3)


def test_synthetic_samples_are_a_function_of_their_index() -> None:
    first, second = (load("synthetic", InputConfig()) for _ in range(2))
    assert np.array_equal(first.train.read(7), second.train.read(7))
    assert not np.array_equal(first.train.read(7), first.train.read(17))
    assert not np.array_equal(first.train.read(7), first.test.read(7))


@pytest.mark.parametrize(("name", "factory"), [("cifar10", CIFAR10), ("cifar100", CIFAR100)])
def test_cifar_is_read_from_torchvisions_files(
    tmp_path: Path, name: str, factory: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Writes files in the published layout, with 20 images each, and their checksums into torchvision's table."""
    rng = np.random.default_rng(0)
    folder = tmp_path / factory.base_folder
    folder.mkdir()
    label_key = "labels" if name == "cifar10" else "fine_labels"
    files: dict[str, np.ndarray] = {}

    def write(file: str, content: dict[str, Any]) -> list[str]:
        (folder / file).write_bytes(pickle.dumps(content))
        return [file, hashlib.md5((folder / file).read_bytes()).hexdigest()]

    for attribute in ("train_list", "test_list"):
        entries = []
        for file, _ in getattr(factory, attribute):
            files[file] = rng.integers(0, 256, (20, 3072), dtype=np.uint8)
            entries.append(write(file, {"data": files[file], label_key: list(range(20))}))
        monkeypatch.setattr(factory, attribute, entries)
    names = [f"class {number}" for number in range(10)]
    meta = write(factory.meta["filename"], {factory.meta["key"]: names})
    monkeypatch.setattr(factory, "meta", {"filename": meta[0], "key": factory.meta["key"], "md5": meta[1]})

    dataset = load(name, InputConfig(data=name, data_dir=tmp_path))
    first_file = factory.train_list[0][0]
    assert np.array_equal(dataset.train.read(3), files[first_file][3].reshape(3, 32, 32))
    assert dataset.test.labels.tolist() == list(range(20))
    assert len(dataset.classes) == 10


def test_missing_cifar_files_are_refused_with_the_way_to_get_them(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"expected the folder cifar-10-batches-py in .*; unpack .* or add --download"):
        cifar10.count(InputConfig(data="cifar10", data_dir=tmp_path))
    with pytest.raises(ValueError, match="expected --data-dir with --data cifar10, got none"):
        cifar10.count(InputConfig(data="cifar10"))


def test_digits_are_those_that_scikit_learn_reads() -> None:
    pixels, labels = digits._read()
    theirs = load_digits()
    assert np.array_equal(pixels, theirs.images)
    assert np.array_equal(labels, theirs.target)


@pytest.mark.parametrize("native", [(4,), (50, 1)])
@pytest.mark.parametrize("dataset", [synthetic, shapes, shapes_boxes])
def test_images_have_a_plain_size_for_models_that_are_not_for_images(dataset: Any, native: tuple[int, ...]) -> None:
    """So that the task can say what is wrong; breaks with an error of Python's own otherwise."""
    assert dataset.load(InputConfig(data="any"), native, 3).shape == (3, 32, 32)
