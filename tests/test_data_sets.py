"""Image sets by their names: what comes with the images."""

import numpy as np
import pytest
import test_data_cifar
import test_data_folders
import test_data_idx
import torch

from eigendamage_ext.data import digits, load_cifar10, load_dataset, normalize
from eigendamage_ext.data.sets import SETS


def moments(pixels):
    """Mean and standard deviation per channel of bytes ``(N, C, H, W)``, each to four decimals."""
    channels = np.moveaxis(pixels.astype(np.float64) / 255, 1, 0).reshape(pixels.shape[1], -1)
    return [round(m, 4) for m in channels.mean(1)], [round(s, 4) for s in channels.std(1)]


def test_cifar10(tmp_path):
    test_data_cifar.write_cifar10(tmp_path / "cifar-10-batches-py", "python 2")
    found, split = load_dataset("cifar10", tmp_path), load_cifar10(tmp_path)
    for part, other in zip((found.train, found.test), split, strict=True):
        assert all(map(torch.equal, part, other))
    mean, std = moments(test_data_cifar.PIXELS[:5].reshape(15, 3, 32, 32))
    assert (found.num_classes, list(found.mean), list(found.std)) == (10, mean, std)
    small = load_dataset("cifar10", tmp_path, max_images=4, dtype=torch.uint8)
    assert torch.equal(small.train[1], found.train[1][[0, 3, 7, 11]]) and len(small.test[0]) == 3
    assert small.train[0].dtype == torch.uint8
    assert [*small.mean, *small.std] != [*mean, *std]  # those of the images taken
    expected = normalize(found.train[0][[0, 3, 7, 11]], small.mean, small.std)
    assert torch.equal(normalize(small.train[0], small.mean, small.std), expected)


def test_cifar100(tmp_path):
    test_data_cifar.write_cifar100(tmp_path / "cifar-100-binary", "binary")
    found = load_dataset("cifar100", tmp_path)
    assert found.num_classes == 100 and found.test[1].tolist() == test_data_cifar.FINE[1].tolist()


def test_mnist(tmp_path):
    test_data_idx.write(tmp_path)
    found = load_dataset("mnist", tmp_path, dtype=torch.uint8)
    assert (found.num_classes, [list(found.mean), list(found.std)]) == (
        4,
        [*moments(test_data_idx.TRAIN[:, None])],
    )
    assert found.test[1].tolist() == [2, 0, 1]


def test_digits():
    pytest.importorskip("sklearn")
    found, split = load_dataset("digits"), digits()
    assert torch.equal(found.train[0], split.train[0]) and found.num_classes == 10
    assert torch.equal(
        torch.tensor(found.mean), (split.train[0].double().mean() * 1e4).round().div(1e4).float()[None]
    )


def test_tiny_imagenet(tmp_path):
    test_data_folders.tiny_imagenet(tmp_path / "tiny-imagenet-200")
    found = load_dataset("tiny-imagenet", tmp_path, size=4, max_images=3, progress=False)
    assert found.num_classes == 200 and found.train[0].shape == found.test[0].shape == (3, 3, 4, 4)


@pytest.mark.parametrize("name", ["test", "val"])
def test_folder(tmp_path, name):
    picture, save = test_data_folders.picture, test_data_folders.save
    pixels = [save(tmp_path / "train" / kind / "x.png", picture()) for kind in ("ant", "bee", "cow")]
    test = save(tmp_path / name / "bee" / "x.png", picture())
    found = load_dataset("folder", tmp_path, progress=False)
    assert test_data_folders.same(found.train[0], pixels) and test_data_folders.same(found.test[0], [test])
    assert found.num_classes == 3 and found.train[1].tolist() == [0, 1, 2] and found.test[1].tolist() == [1]
    mean, std = moments(np.stack(pixels).transpose(0, 3, 1, 2))
    assert (list(found.mean), list(found.std)) == (mean, std)
    assert len(load_dataset("folder", tmp_path, max_images=1, progress=False).train[0]) == 1


@pytest.mark.parametrize("name", [name for name in SETS if name != "digits"])
def test_an_absent_set_says_where_to_put_it(tmp_path, name):
    with pytest.raises(FileNotFoundError, match=rf"folder must .*, got {tmp_path}.*nothing is downloaded"):
        load_dataset(name, tmp_path)
    with pytest.raises(ValueError, match=rf"folder must say where {name} lies, got None"):
        load_dataset(name)


def test_arguments_that_do_not_fit_are_refused(tmp_path):
    for name, settings, message in [
        ("cifar", {}, "name must be one of cifar10, .*, got 'cifar'"),
        ("cifar10", {"size": 64}, "size must be None for cifar10, got 64"),
        ("digits", {"dtype": torch.uint8}, r"dtype must be torch\.float32 for digits"),
        ("digits", {"max_images": 0}, "max_images must be at least 1"),
    ]:
        with pytest.raises(ValueError, match="load_dataset: " + message):
            load_dataset(name, tmp_path, **settings)
