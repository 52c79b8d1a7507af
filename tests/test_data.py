import io
import sys

import numpy as np
import pytest
import torch

from eigendamage_ext.data import TensorLoader, crop_flip, digits, load_jpegs, load_npz, normalize


def test_loader_without_shuffle_walks_the_tensors_in_order():
    x, y = torch.arange(10.0)[:, None], torch.arange(10)
    loader = TensorLoader(x, y, batch_size=4)
    assert len(loader) == 3
    assert [b[1].tolist() for b in loader] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert torch.equal(torch.cat([*TensorLoader(x, batch_size=3)]), x)


def epoch_order(loader):
    batches = list(loader)
    assert all(torch.equal(x[:, 0].long(), y) for x, y in batches)
    return torch.cat([y for _, y in batches]).tolist()


def test_order_is_a_function_of_seed_and_epoch():
    x, y = torch.arange(50.0)[:, None], torch.arange(50)
    state = torch.get_rng_state()
    a, b = (TensorLoader(x, y, batch_size=7, shuffle=True, seed=3) for _ in range(2))
    first, second = epoch_order(a), epoch_order(a)
    assert sorted(first) == sorted(second) == list(range(50)) and first != second
    b.set_epoch(1)
    assert epoch_order(b) == second
    b.set_epoch(0)
    assert epoch_order(b) == first
    assert epoch_order(TensorLoader(x, y, batch_size=7, shuffle=True, seed=4)) != first
    assert torch.equal(torch.get_rng_state(), state)


def test_two_iterators_of_one_loader_do_not_disturb_each_other():
    x = torch.arange(20.0)
    loader = TensorLoader(x, batch_size=10, shuffle=True)
    pairs = list(zip(iter(loader), iter(loader), strict=True))
    again = TensorLoader(x, batch_size=10, shuffle=True)
    for epoch in range(2):
        assert torch.equal(torch.cat([pair[epoch] for pair in pairs]), torch.cat([*again]))


def test_crop_flip_gives_windows_of_the_padded_image():
    torch.manual_seed(0)
    x = torch.rand(40, 2, 5, 4) + 1
    transform = crop_flip(2)
    y = transform(x, torch.Generator().manual_seed(0))
    padded = torch.nn.functional.pad(x, (2, 2, 2, 2))
    seen = set()
    for n in range(40):
        windows = {
            (i, j, flip): padded[n, :, i : i + 5, j : j + 4].flip(2)
            if flip
            else padded[n, :, i : i + 5, j : j + 4]
            for i in range(5)
            for j in range(5)
            for flip in (False, True)
        }
        matches = [key for key, window in windows.items() if torch.equal(window, y[n])]
        assert len(matches) == 1
        seen.add(matches[0])
    assert {key[0] for key in seen} == {key[1] for key in seen} == set(range(5))
    assert {key[2] for key in seen} == {False, True}
    assert torch.equal(crop_flip(0, flip=False)(x, torch.Generator()), x)


def test_transform_is_seeded_by_the_loader():
    x = torch.rand(30, 1, 6, 6)

    def batches(seed):
        return torch.cat([*TensorLoader(x, batch_size=10, seed=seed, transform=crop_flip(2))])

    assert torch.equal(batches(0), batches(0))
    assert not torch.equal(batches(0), batches(1))


def test_loader_refuses_bad_arguments():
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        TensorLoader(torch.zeros(3), batch_size=0)
    with pytest.raises(ValueError, match=r"one entry per input \(3\), got 2"):
        TensorLoader(torch.zeros(3), torch.zeros(2), batch_size=1)


def test_normalize():
    x = torch.tensor([[[[0.5, 1.0]], [[0.0, 0.25]]]], dtype=torch.float64)
    y = normalize(x, (0.5, 0.25), (0.25, 0.5))
    assert torch.equal(y, torch.tensor([[[[0.0, 2.0]], [[-0.5, 0.0]]]], dtype=torch.float64))
    bytes_ = (y.float() * 100 + 100).to(torch.uint8)
    assert torch.equal(
        normalize(bytes_, (0.5, 0.25), (0.25, 0.5)), normalize(bytes_.float() / 255, (0.5, 0.25), (0.25, 0.5))
    )
    with pytest.raises(ValueError, match=r"mean must have one number per channel \(2\), got 1"):
        normalize(x, (0.5,), (0.5,))
    with pytest.raises(ValueError, match="std must be positive"):
        normalize(x, (0.5, 0.5), (0.5, 0.0))


def test_digits_are_split_by_class_without_overlap():
    sklearn = pytest.importorskip("sklearn.datasets")
    split = digits(5)
    images, labels = (torch.cat(parts) for parts in zip(split.train, split.test, strict=True))
    bunch = sklearn.load_digits()
    assert images.shape == (1797, 1, 8, 8) and images.dtype == torch.float32 and labels.dtype == torch.int64

    def rows(pixels, target):
        return sorted(map(tuple, np.column_stack([pixels.reshape(1797, 64), target]).tolist()))

    assert rows(images.numpy() * 16, labels.numpy()) == rows(bunch.images, bunch.target)
    for label, count in enumerate(np.bincount(bunch.target)):
        assert (split.test[1] == label).sum() == round(count * 0.25)
    assert len(split.test[1][:40].unique()) == 10
    assert torch.equal(digits(5).test[0], split.test[0])
    assert not torch.equal(digits(6).test[0], split.test[0])


def test_missing_extras_are_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ImportError, match=r"scikit-learn must be installed.*eigendamage-ext\[demo\]"):
        digits(0)
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(ImportError, match=r"Pillow must be installed.*eigendamage-ext\[demo\]"):
        load_jpegs("any.npz", "train")


def test_load_npz_reads_what_was_written(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (3, 4, 5, 2), dtype=np.uint8)
    np.savez(tmp_path / "a.npz", images=images, labels=np.array([2, 0, 1], np.uint8))
    x, y = load_npz(tmp_path / "a.npz")
    assert x.dtype == torch.float32 and x.shape == (3, 2, 4, 5)
    for n, h, w, c in np.ndindex(3, 4, 5, 2):
        assert x[n, c, h, w] == np.float32(images[n, h, w, c]) / np.float32(255)
    assert y.dtype == torch.int64 and y.tolist() == [2, 0, 1]


def test_load_npz_explains_what_is_wrong(tmp_path):
    path = tmp_path / "a.npz"
    with pytest.raises(FileNotFoundError, match=r"existing .npz file, got .*a\.npz; put the archive there"):
        load_npz(path)
    good = {"images": np.zeros((2, 4, 4, 3), np.uint8), "labels": np.zeros(2, np.uint8)}
    for changed, message in [
        ({"labels": None}, "no labels but images"),
        ({"images": np.zeros((2, 4, 4, 3))}, "'images' in .* must be uint8 .* got float64"),
        ({"images": np.zeros((2, 4, 4), np.uint8)}, r"got uint8 \(2, 4, 4\)"),
        ({"labels": np.zeros(3, np.uint8)}, r"'labels' in .* integers of shape \(2,\), got uint8 \(3,\)"),
        ({"labels": np.zeros(2)}, "got float64"),
        ({"labels": np.array([{}, {}], dtype=object)}, "Object arrays cannot be loaded"),
    ]:
        np.savez(path, **{k: v for k, v in (good | changed).items() if v is not None})
        with pytest.raises(ValueError, match=message):
            load_npz(path)
    np.savez(path, **good)
    whole = path.read_bytes()
    for content in (b"", b"no archive", whole[: len(whole) // 2], whole[:90] + b"\xff" * 20 + whole[110:]):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="must be a NumPy archive of plain arrays images, labels"):
            load_npz(path)
    with path.open("wb") as file:
        np.save(file, good["images"])
    with pytest.raises(ValueError, match="a single array"):
        load_npz(path)


def jpeg_archive(images):
    image_module = pytest.importorskip("PIL.Image")
    blobs = []
    for image in images:
        buffer = io.BytesIO()
        image_module.fromarray(image).save(buffer, "JPEG", quality=95)
        blobs.append(np.frombuffer(buffer.getvalue(), np.uint8))
    return {
        "test_bytes": np.concatenate(blobs),
        "test_offsets": np.cumsum([0, *map(len, blobs)]),
        "test_labels": np.arange(len(images), dtype=np.uint8) % 7,
    }


@pytest.fixture
def smooth_images():
    """``(10, 16, 16, 3)`` colour ramps: JPEG at quality 95 keeps them within a few grey levels."""
    ramp = np.linspace(0, 200, 16)
    return np.stack(
        [
            np.stack(
                [ramp[:, None] + 0 * ramp + n, ramp + 0 * ramp[:, None], np.full((16, 16), 20.0 * n)], -1
            )
            for n in range(10)
        ]
    ).astype(np.uint8)


def test_jpegs_come_back_in_order(tmp_path, smooth_images):
    np.savez(tmp_path / "a.npz", **jpeg_archive(smooth_images))
    x, y = load_jpegs(tmp_path / "a.npz", "test", progress=False)
    assert x.shape == (10, 3, 16, 16) and y.tolist() == [0, 1, 2, 3, 4, 5, 6, 0, 1, 2]
    error = (x * 255 - torch.from_numpy(smooth_images).permute(0, 3, 1, 2)).abs()
    assert error.mean() < 2 and error.max() < 12
    some, labels = load_jpegs(tmp_path / "a.npz", "test", max_images=4, progress=False)
    assert torch.equal(some, x[[0, 2, 5, 7]]) and torch.equal(labels, y[[0, 2, 5, 7]])


def test_grey_jpegs_become_three_channels(tmp_path, smooth_images):
    np.savez(tmp_path / "a.npz", **jpeg_archive(smooth_images[..., 0]))
    x, _ = load_jpegs(tmp_path / "a.npz", "test", progress=False)
    assert x.shape == (10, 3, 16, 16) and torch.equal(x[:, 0], x[:, 2])


def test_load_jpegs_explains_what_is_wrong(tmp_path, smooth_images):
    path = tmp_path / "a.npz"
    good = jpeg_archive(smooth_images)
    offsets, blob = good["test_offsets"], good["test_bytes"]
    swapped = offsets.copy()
    swapped[[3, 4]] = swapped[[4, 3]]
    scrambled = blob.copy()
    scrambled[offsets[6] : offsets[6] + 40] = 0
    other_size = jpeg_archive([smooth_images[0], smooth_images[1][:8]])
    for changed, message in [
        ({"test_labels": None}, "no test_labels but test_bytes, test_offsets"),
        ({"test_bytes": blob[:-1]}, "must rise from 0 to the .* file is damaged"),
        ({"test_offsets": offsets[1:]}, "must rise from 0"),
        ({"test_offsets": swapped}, "smallest step -"),
        ({"test_offsets": offsets.astype(float)}, "must be integers"),
        ({"test_bytes": blob.astype(np.int32)}, "must be uint8 of shape"),
        ({"test_labels": np.zeros(9, np.uint8)}, r"integers of shape \(10,\)"),
        ({"test_bytes": scrambled}, "image 6 of 'test_bytes' in .* must be a JPEG"),
        (other_size, r"one size, got \(8, 16\) for image 1 of .* after \(16, 16\); pass size="),
    ]:
        np.savez(path, **{k: v for k, v in (good | changed).items() if v is not None})
        with pytest.raises(ValueError, match=message):
            load_jpegs(path, "test", progress=False)
    with pytest.raises(ValueError, match="max_images must be at least 1, got 0"):
        load_jpegs(path, "test", max_images=0)
    with pytest.raises(FileNotFoundError, match="put the archive there"):
        load_jpegs(tmp_path / "none.npz", "test")
