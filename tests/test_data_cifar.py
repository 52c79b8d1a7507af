"""CIFAR in its own formats, written here byte by byte from known arrays."""

import pickle

import numpy as np
import pytest
import python2_pickle
import torch

from eigendamage_ext.data import load_cifar10, load_cifar100

BATCHES = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
RANDOM = np.random.default_rng(0)
PER_BATCH = 3
PIXELS = RANDOM.integers(0, 256, (6, PER_BATCH, 3072), dtype=np.uint8)
LABELS = RANDOM.integers(0, 10, (6, PER_BATCH))
FINE, COARSE = RANDOM.integers(20, 100, (2, 6)), RANDOM.integers(0, 20, (2, 6))
FINE[0, 0], COARSE[0, 0] = 99, 19
PARTS = PIXELS[:4].reshape(2, 6, 3072)


def expected(pixels):
    """Row r of channel c starts at byte 1024 c + 32 r."""
    images = torch.empty(len(pixels), 3, 32, 32)
    for n, c, row in np.ndindex(len(pixels), 3, 32):
        line = pixels[n, 1024 * c + 32 * row : 1024 * c + 32 * row + 32]
        images[n, c, row] = torch.from_numpy(line.astype(np.float32) / np.float32(255))
    return images


def write_cifar10(folder, kind):
    folder.mkdir()
    for name, pixels, labels in zip(BATCHES, PIXELS, LABELS, strict=True):
        if kind == "binary":
            rows = b"".join(bytes([y, *x]) for x, y in zip(pixels, labels, strict=True))
            (folder / f"{name}.bin").write_bytes(rows)
        else:
            data = {
                "batch_label": name,
                "labels": labels.tolist(),
                "data": pixels,
                "filenames": ["a.png"] * 3,
            }
            dumps = python2_pickle.dumps if kind == "python 2" else pickle.dumps
            (folder / name).write_bytes(dumps(data))


def write_cifar100(folder, kind):
    folder.mkdir()
    for i, name in enumerate(("train", "test")):
        if kind == "binary":
            rows = zip(COARSE[i], FINE[i], PARTS[i], strict=True)
            (folder / f"{name}.bin").write_bytes(b"".join(bytes([c, f, *x]) for c, f, x in rows))
        else:
            data = {"coarse_labels": COARSE[i].tolist(), "fine_labels": FINE[i].tolist(), "data": PARTS[i]}
            dumps = python2_pickle.dumps if kind == "python 2" else pickle.dumps
            (folder / name).write_bytes(dumps(data))


@pytest.mark.parametrize("inside", [True, False])
@pytest.mark.parametrize("kind", ["binary", "python 2", "python 3"])
def test_cifar10_comes_back(tmp_path, kind, inside):
    folder = tmp_path / ("cifar-10-batches-bin" if kind == "binary" else "cifar-10-batches-py")
    write_cifar10(folder, kind)
    (x, y), (test, test_labels) = load_cifar10(folder if inside else tmp_path)
    assert torch.equal(x, expected(PIXELS[:5].reshape(15, 3072))) and torch.equal(test, expected(PIXELS[5]))
    assert y.dtype == test_labels.dtype == torch.int64 and x.dtype == torch.float32
    assert y.tolist() == LABELS[:5].flatten().tolist() and test_labels.tolist() == LABELS[5].tolist()


@pytest.mark.parametrize("inside", [True, False])
@pytest.mark.parametrize("kind", ["binary", "python 2", "python 3"])
def test_cifar100_comes_back(tmp_path, kind, inside):
    folder = tmp_path / ("cifar-100-binary" if kind == "binary" else "cifar-100-python")
    write_cifar100(folder, kind)
    place = folder if inside else tmp_path
    for split, labels in ((load_cifar100(place), FINE), (load_cifar100(place, coarse=True), COARSE)):
        for part, pixels, targets in zip(split, PARTS, labels, strict=True):
            assert torch.equal(part[0], expected(pixels)) and part[1].tolist() == targets.tolist()


def test_bytes_take_a_quarter(tmp_path):
    write_cifar10(tmp_path / "cifar-10-batches-bin", "binary")
    (x, _), _ = load_cifar10(tmp_path, dtype=torch.uint8)
    assert x.dtype == torch.uint8 and torch.equal(x.float() / 255, load_cifar10(tmp_path).train[0])
    x[0] = 0  # writable
    with pytest.raises(ValueError, match=r"load_cifar10: dtype must be torch\.float32 or torch\.uint8"):
        load_cifar10(tmp_path, dtype=torch.float64)


def test_absent_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError) as error:
        load_cifar10(tmp_path / "nowhere")
    for part in (
        "cifar-10-batches-bin (data_batch_1.bin,",
        "cifar-10-batches-py (data_batch_1,",
        "kriz/cifar.html",
    ):
        assert part in str(error.value)
    assert "nowhere, which does not exist; " in str(error.value)
    with pytest.raises(FileNotFoundError, match=r"which has none of these.*nothing is downloaded"):
        load_cifar100(tmp_path)
    write_cifar10(tmp_path / "cifar-10-batches-py", "python 2")
    (tmp_path / "cifar-10-batches-py" / "data_batch_3").unlink()
    with pytest.raises(FileNotFoundError, match=r"got .*cifar-10-batches-py without data_batch_3; unpack"):
        load_cifar10(tmp_path)


def test_damaged_binary_files_are_named(tmp_path):
    write_cifar10(tmp_path / "cifar-10-batches-bin", "binary")
    path = tmp_path / "cifar-10-batches-bin" / "data_batch_2.bin"
    whole = path.read_bytes()
    for content, message in [
        (b"", "3073 bytes for each image, got 0"),
        (whole[:-1], "got 9218; the file is damaged"),
        (b"\x0a" + whole[1:], "lie in 0 … 9, got [0-9] to 10"),
    ]:
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"load_cifar10: .*data_batch_2\.bin.* must .*" + message):
            load_cifar10(tmp_path)
    write_cifar100(tmp_path / "cifar-100-binary", "binary")
    path = tmp_path / "cifar-100-binary" / "test.bin"
    path.write_bytes(b"\x00\x64" + path.read_bytes()[2:])
    with pytest.raises(ValueError, match=r"test.bin must lie in 0 … 99, got .* to 100"):
        load_cifar100(tmp_path)
    with path.open("wb") as file:
        file.truncate(2**28 + 1)
    with pytest.raises(ValueError, match=r"test.bin must have at most 268435456 bytes, got 268435457"):
        load_cifar100(tmp_path)


def test_damaged_pickles_are_named(tmp_path):
    write_cifar100(tmp_path / "cifar-100-python", "python 2")
    path = tmp_path / "cifar-100-python" / "train"
    good = {"fine_labels": FINE[0].tolist(), "data": PARTS[0]}
    for changed, message in [
        ({"data": None}, "train must hold 'data' and 'fine_labels', got no data;"),
        ({"fine_labels": None, "labels": [1] * 6}, "got no fine_labels;"),
        ({"data": [1, 2]}, r"'data' in .*train must be uint8 of shape \(N, 3072\), got list"),
        ({"data": PARTS[0].astype(np.int64)}, "got int64"),
        ({"data": PARTS[0][:, :-1]}, r"got uint8 \(6, 3071\)"),
        ({"data": PARTS[0].flatten()}, r"got uint8 \(18432,\)"),
        ({"fine_labels": [1, 2, 3, 4, 5]}, r"'fine_labels' in .*train must be integers of shape \(6,\)"),
        ({"fine_labels": [1, 2, 3, 4, 5, 100]}, "whole numbers in 0 … 99"),
        ({"fine_labels": [1, 2, 3, 4, 5, -1]}, "whole numbers in 0 … 99"),
        ({"fine_labels": [1, 2, 3, 4, 5, "6"]}, "whole numbers in 0 … 99"),
        ({"fine_labels": [1, 2, 3, 4, 5, True]}, "bool among the data"),
        ({"fine_labels": np.array([1, 2, 3, 4, 5, 100])}, "'fine_labels' in .*train must lie in 0 … 99"),
        ({"fine_labels": np.array([1, 2, 3, 4, 5, -1])}, "train must lie in 0 … 99, got -1 to 5"),
        ({"fine_labels": "abcdef"}, "must be a list, got bytes"),
    ]:
        path.write_bytes(python2_pickle.dumps({k: v for k, v in (good | changed).items() if v is not None}))
        with pytest.raises(ValueError, match="load_cifar100: .*" + message):
            load_cifar100(tmp_path)
    path.write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    with pytest.raises(ValueError, match=r"load_cifar100: .*train must be a pickled .* the name os\.system"):
        load_cifar100(tmp_path)
