"""IDX files written here byte by byte."""

import gzip
import struct
import tracemalloc

import numpy as np
import pytest
import torch

from eigendamage_ext.data import idx, load_idx, load_mnist

RANDOM = np.random.default_rng(0)
TRAIN, TEST = RANDOM.integers(0, 256, (7, 5, 4), dtype=np.uint8), RANDOM.integers(0, 256, (3, 5, 4), np.uint8)
TRAIN_LABELS, TEST_LABELS = np.arange(7, dtype=np.uint8) % 4, np.array([2, 0, 1], np.uint8)


def content(numbers):
    header = struct.pack(">BBBB", 0, 0, 8, numbers.ndim) + struct.pack(f">{numbers.ndim}I", *numbers.shape)
    return header + bytes(numbers.flatten().tolist())


def write(folder, dot="-", suffix=""):
    folder.mkdir(parents=True, exist_ok=True)
    for name, numbers in [
        (f"train-images{dot}idx3-ubyte", TRAIN),
        (f"train-labels{dot}idx1-ubyte", TRAIN_LABELS),
        (f"t10k-images{dot}idx3-ubyte", TEST),
        (f"t10k-labels{dot}idx1-ubyte", TEST_LABELS),
    ]:
        data = content(numbers)
        (folder / (name + suffix)).write_bytes(gzip.compress(data) if suffix else data)


@pytest.mark.parametrize("place", ["", "MNIST/raw"])
@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("dot", ["-", "."])
def test_mnist_comes_back(tmp_path, dot, suffix, place):
    write(tmp_path / place, dot, suffix)
    for part, images, labels in zip(
        load_mnist(tmp_path), (TRAIN, TEST), (TRAIN_LABELS, TEST_LABELS), strict=True
    ):
        assert torch.equal(part[0][:, 0], torch.from_numpy(images.astype(np.float32) / np.float32(255)))
        assert part[0].shape[1] == 1 and part[1].dtype == torch.int64 and part[1].tolist() == labels.tolist()


def test_bytes_stay_bytes(tmp_path):
    write(tmp_path)
    x, _ = load_mnist(tmp_path, dtype=torch.uint8).train
    assert x.dtype == torch.uint8 and np.array_equal(x[:, 0].numpy(), TRAIN)


def test_absent_files_are_named(tmp_path):
    write(tmp_path, suffix=".gz")
    (tmp_path / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(
        FileNotFoundError, match=r"got .* without t10k-labels-idx1-ubyte.gz; unpack there what"
    ):
        load_mnist(tmp_path)
    with pytest.raises(
        FileNotFoundError, match=r"hold MNIST/raw \(train-images-idx3-ubyte, .*none, which does not"
    ):
        load_mnist(tmp_path / "none")
    with pytest.raises(FileNotFoundError, match=r"must be existing files, got .*none; put it there"):
        load_idx(tmp_path / "none", tmp_path / "none")


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_damaged_files_are_named(tmp_path, monkeypatch, suffix):
    write(tmp_path, suffix=suffix)
    path = tmp_path / f"train-images-idx3-ubyte{suffix}"
    good = content(TRAIN)
    for bad, message in [
        (b"", "starts with b''"),
        (b"\x00\x00\x0d\x03" + good[4:], r"starts with b'\\x00\\x00\\r\\x03'"),
        (content(TRAIN[0]), "starts with"),
        (good[:10], "its end in the header"),
        (good[:-1], r"shape \(7, 5, 4\) with 139 numbers"),
        (good + b"\x00", r"shape \(7, 5, 4\) with more numbers"),
        (struct.pack(">4B3I", 0, 0, 8, 3, 2**32 - 1, 2**32 - 1, 2**32 - 1), "there must be between 1 and"),
        (struct.pack(">4B3I", 0, 0, 8, 3, 2**20, 32, 32), "with 0 numbers"),
        (struct.pack(">4B3I", 0, 0, 8, 3, 0, 5, 4), "there must be between 1 and"),
        (
            content(TRAIN[:6]),
            r"labels in .*train-labels-idx1-ubyte.* must be integers of shape \(6,\), got uint8 \(7,\)",
        ),
    ]:
        path.write_bytes(gzip.compress(bad) if suffix else bad)
        with pytest.raises(ValueError, match="load_idx: .*" + message):
            load_mnist(tmp_path)
    if suffix:
        whole = gzip.compress(good)
        flipped = whole[:-8] + bytes([whole[-8] ^ 1]) + whole[-7:]
        for bad in (whole[:-10], whole[:5], good, flipped, whole[:10] + b"\xff" * 20):
            path.write_bytes(bad)
            with pytest.raises(
                ValueError, match=r"load_idx: .*train-images-idx3-ubyte.gz must be an IDX file"
            ):
                load_mnist(tmp_path)
    monkeypatch.setattr(idx, "MAX_BYTES", 139)
    path.write_bytes(gzip.compress(good) if suffix else good)
    with pytest.raises(ValueError, match="between 1 and 139 numbers"):
        load_mnist(tmp_path)


def test_a_bomb_is_not_unpacked(tmp_path):
    path = tmp_path / "bomb.gz"
    with gzip.open(path, "wb") as file:
        file.write(content(np.zeros((1, 2, 2), np.uint8)))
        for _ in range(64):
            file.write(bytes(2**20))
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=r"bomb.gz .* with more numbers"):
            load_idx(path, path)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()
