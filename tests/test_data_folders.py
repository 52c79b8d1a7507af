"""Folders of image files, written here from known arrays."""

import struct
import sys
import zlib

import numpy as np
import pytest
import torch

from eigendamage_ext.data import class_names, decoding, load_folder, load_tiny_imagenet

Image = pytest.importorskip("PIL.Image")

RANDOM = np.random.default_rng(0)


def picture(height=6, width=5):
    return RANDOM.integers(0, 256, (height, width, 3), dtype=np.uint8)


def save(path, pixels, **settings):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **settings)
    return pixels


def same(tensor, pictures):
    return torch.equal(tensor, torch.stack([torch.from_numpy(p).permute(2, 0, 1) / 255 for p in pictures]))


def test_images_come_back_in_order_of_class_and_path(tmp_path):
    expected = [
        save(tmp_path / "ant" / "images" / "a.PNG", picture()),
        save(tmp_path / "ant" / "z.bmp", picture()),
        save(tmp_path / "bee" / "10.ppm", picture()),
        save(tmp_path / "bee" / "9.webp", picture(), lossless=True),
    ]
    (tmp_path / "bee" / "notes.txt").write_text("not an image")
    for hidden in (
        tmp_path / ".git" / "x.png",
        tmp_path / "bee" / ".x" / "x.png",
        tmp_path / "bee" / "._9.png",
    ):
        hidden.parent.mkdir(exist_ok=True)
        hidden.write_bytes(b"not an image")
    (tmp_path / "readme.png").write_bytes(b"beside the classes")
    x, y = load_folder(tmp_path, progress=False)
    assert same(x, expected) and x.dtype == torch.float32
    assert y.dtype == torch.int64 and y.tolist() == [0, 0, 1, 1]
    assert class_names(tmp_path) == ["ant", "bee"]
    x, y = load_folder(tmp_path, classes=["bee", "wasp", "ant"], max_images=3, progress=False)
    assert same(x, expected[:3]) and y.tolist() == [2, 2, 0]
    x, y = load_folder(tmp_path, dtype=torch.uint8, progress=False)
    assert x.dtype == torch.uint8 and same(x / 255, expected)


def test_jpegs_are_decoded(tmp_path):
    ramp = np.linspace(0, 200, 16)
    pixels = np.stack([ramp[:, None] + 0 * ramp, ramp + 0 * ramp[:, None], np.full((16, 16), 20)], -1)
    save(tmp_path / "a" / "a.JPEG", pixels.astype(np.uint8), quality=95)
    x, _ = load_folder(tmp_path, progress=False)
    error = (x[0] * 255 - torch.from_numpy(pixels).permute(2, 0, 1)).abs()
    assert error.mean() < 2 and error.max() < 12


def test_every_kind_of_pixel_becomes_three_channels(tmp_path):
    colours = picture()
    grey = colours[..., 0]
    save(tmp_path / "0" / "rgb.png", colours)
    save(tmp_path / "1" / "grey.png", grey)
    save(tmp_path / "2" / "transparent.png", np.dstack([colours, grey]))
    save(tmp_path / "3" / "bits.png", grey > 99)
    palette = np.arange(30, dtype=np.uint8).reshape(6, 5)
    image = Image.fromarray(palette)
    image.putpalette(colours.flatten().tolist())
    (tmp_path / "4").mkdir()
    image.save(tmp_path / "4" / "palette.png", transparency=bytes(range(30)))
    x, _ = load_folder(tmp_path, progress=False)
    white = np.where(grey > 99, 255, 0).astype(np.uint8)
    assert same(x, [colours, np.dstack([grey] * 3), colours, np.dstack([white] * 3), colours])


def triangle(before, scaled, after):
    """Weights ``(after, before)``: bilinear and antialiased to ``scaled`` pixels, their middle kept."""
    ratio = before / scaled
    centres = (np.arange(after) + 0.5 + (scaled - after) / 2) * ratio
    weights = np.clip(1 - np.abs(np.arange(before) + 0.5 - centres[:, None]) / max(ratio, 1), 0, None)
    return weights / weights.sum(1, keepdims=True)


@pytest.mark.parametrize(
    ("size", "scaled"),
    [(4, (4, 6)), ((4, 6), (4, 6)), ((6, 6), (6, 9)), ((12, 15), (12, 18)), ((2, 9), (6, 9))],
)
def test_size_covers_and_takes_the_middle(tmp_path, size, scaled):
    pixels = save(tmp_path / "a" / "a.png", picture(8, 12))
    x, _ = load_folder(tmp_path, size=size, progress=False)
    height, width = (size, size) if isinstance(size, int) else size
    rows, columns = triangle(8, scaled[0], height), triangle(12, scaled[1], width)
    expected = np.einsum("ih,hwc,jw->cij", rows, pixels, columns)
    assert x.shape == (1, 3, height, width)
    assert np.abs(x[0].numpy() * 255 - expected).max() < 1.1


def test_images_of_several_sizes_need_one(tmp_path):
    save(tmp_path / "a" / "a.png", picture(8, 8))
    save(tmp_path / "a" / "b.png", picture(8, 9))
    with pytest.raises(ValueError, match=r"got \(8, 9\) for .*b\.png after \(8, 8\); pass size="):
        load_folder(tmp_path, progress=False)
    assert load_folder(tmp_path, size=8, progress=False)[0].shape == (2, 3, 8, 8)
    for size in (0, (3, 0), (1, 2, 3)):
        with pytest.raises(ValueError, match="load_folder: size must be one or two positive numbers"):
            load_folder(tmp_path, size=size, progress=False)


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width, height, depth, colour, rows):
    header = struct.pack(">2I5B", width, height, depth, colour, 0, 0, 0)
    content = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + content


def test_bad_images_are_named(tmp_path):
    path = tmp_path / "a" / "b.png"
    save(tmp_path / "a" / "a.png", picture())
    save(path, picture(40, 40))
    whole = path.read_bytes()
    scrambled = bytearray(whole)
    scrambled[60:90] = bytes(30)
    for content, message in [
        (b"", "cannot identify"),
        (b"GIF89a" + bytes(50), "cannot identify"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "cannot identify"),
        (whole[: len(whole) // 2], "got "),
        (bytes(scrambled), "got "),
        (png(4, 4, 16, 0, bytes(36)), "one of mode I;16; convert it to 8 bits"),
        (png(2**14, 2**13, 1, 0, b""), "[Pp]ixels|exceeds limit"),
        (png(2**16, 2**16, 1, 0, b""), "[Pp]ixels|exceeds limit"),
    ]:
        path.write_bytes(content)
        with pytest.raises(ValueError, match=rf"load_folder: .*b\.png must be a BMP or JPEG .*({message})"):
            load_folder(tmp_path, progress=False)


def test_large_images_are_not_decoded(tmp_path, monkeypatch):
    path = tmp_path / "a" / "a.png"
    save(path, picture(10, 10))
    monkeypatch.setattr(decoding, "MAX_PIXELS", 99)
    with pytest.raises(ValueError, match=r"a\.png must be .*, got 10 × 10 pixels, more than 99"):
        load_folder(tmp_path, progress=False)


def test_flipped_bits_never_raise_anything_else(tmp_path):
    for name, settings in (("a.png", {}), ("a.jpg", {}), ("a.bmp", {}), ("a.webp", {}), ("a.ppm", {})):
        path = tmp_path / name[2:] / "a" / name
        save(path, picture(), **settings)
        content = path.read_bytes()
        random = np.random.default_rng(2)
        for _ in range(60):
            changed = bytearray(content)
            changed[random.integers(0, min(len(content), 80))] ^= 1 << random.integers(0, 8)
            path.write_bytes(changed)
            try:
                x, _ = load_folder(tmp_path / name[2:], size=6, progress=False)
            except ValueError as error:
                message = str(error)
            else:
                message, shape = f"{path} must be", x.shape
                assert shape == (1, 3, 6, 6)
            assert f"{path} must be" in message


def test_absent_folders_are_named(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"load_folder: .* got .*none, which does not exist; put the im"
    ):
        load_folder(tmp_path / "none")
    with pytest.raises(FileNotFoundError, match="which has none"):
        load_folder(tmp_path)
    (tmp_path / "a").mkdir()
    with pytest.raises(
        FileNotFoundError, match=r"every class must have images, got none in .*a; put files ending"
    ):
        load_folder(tmp_path)
    save(tmp_path / "a" / "a.png", picture())
    with pytest.raises(ValueError, match="must be named like the classes, got a; "):
        load_folder(tmp_path, classes=["b"])
    with pytest.raises(ValueError, match="max_images must be at least 1, got 0"):
        load_folder(tmp_path, max_images=0)
    with pytest.raises(ValueError, match=r"dtype must be torch\.float32 or torch\.uint8, got torch\.int64"):
        load_folder(tmp_path, dtype=torch.int64)


def tiny_imagenet(folder):
    """Two classes whose names are not in order, three images each, and three to validate."""
    (folder / "val").mkdir(parents=True)
    (folder / "wnids.txt").write_text("n02\nn01\n")
    train = {}
    for name in ("n01", "n02"):
        (folder / "train" / name).mkdir(parents=True)
        (folder / "train" / name / f"{name}_boxes.txt").write_text("0\t0\t1\t1")
        for i in range(3):
            path = folder / "train" / name / "images" / f"{name}_{i}.JPEG"
            train[path] = save(path, np.full((8, 8, 3), RANDOM.integers(0, 256), np.uint8), quality=100)
    names = {"val_0.JPEG": "n02", "val_1.JPEG": "n01", "val_2.JPEG": "n02"}
    (folder / "val" / "val_annotations.txt").write_text(
        "".join(f"{name}\t{wnid}\t0\t0\t8\t8\n" for name, wnid in names.items())
    )
    for i, name in enumerate(names):
        save(folder / "val" / "images" / name, np.full((8, 8), 100 * i, np.uint8), quality=100)
    (folder / "test" / "images").mkdir(parents=True)
    return np.stack(list(train.values()))


@pytest.mark.parametrize("inside", [True, False])
def test_tiny_imagenet_comes_back(tmp_path, inside):
    folder = tmp_path / "tiny-imagenet-200"
    pixels = tiny_imagenet(folder)
    train, test = load_tiny_imagenet(folder if inside else tmp_path, progress=False)
    assert np.abs(train[0].numpy() * 255 - pixels.transpose(0, 3, 1, 2)).max() < 2
    assert train[1].tolist() == [0, 0, 0, 1, 1, 1]
    assert (test[0] * 255 - torch.tensor([0.0, 100, 200])[:, None, None, None]).abs().max() < 2
    assert test[0].shape == (3, 3, 8, 8) and test[1].tolist() == [1, 0, 1]
    some = load_tiny_imagenet(tmp_path, max_images=2, size=4, dtype=torch.uint8, progress=False)
    assert some.train[1].tolist() == [0, 1] and some.test[1].tolist() == [1, 0]
    assert some.train[0].shape == (2, 3, 4, 4) and some.train[0].dtype == torch.uint8


def test_what_is_wrong_with_tiny_imagenet(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"load_tiny_imagenet: folder must be or hold tiny-imagenet-200"
    ):
        load_tiny_imagenet(tmp_path)
    folder = tmp_path / "tiny-imagenet-200"
    tiny_imagenet(folder)
    annotations = folder / "val" / "val_annotations.txt"
    good = annotations.read_text()
    for bad in ("val_0.JPEG\tn03\t0\n", "val_0.JPEG\n", "../x.JPEG\tn01\n", "..\tn01\n", "/x.JPEG\tn01\n"):
        annotations.write_text(good + bad)
        with pytest.raises(ValueError, match=r"every line of val_annotations\.txt in .* must name an image"):
            load_tiny_imagenet(folder, progress=False)
    annotations.write_text(good + "val_9.JPEG\tn01\t0\n")
    with pytest.raises(ValueError, match=r"val_9\.JPEG must be .* No such file"):
        load_tiny_imagenet(folder, progress=False)
    annotations.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match=r"every line of val_annotations\.txt"):
        load_tiny_imagenet(folder, progress=False)
    annotations.write_text("\n")
    with pytest.raises(ValueError, match=r"val_annotations\.txt must not be empty"):
        load_tiny_imagenet(folder, progress=False)
    annotations.write_text(good)
    (folder / "wnids.txt").write_text("n01\n../..\n")
    with pytest.raises(ValueError, match=r"wnids\.txt in .* must list WordNet names, got '\.\./\.\.'"):
        load_tiny_imagenet(folder, progress=False)
    (folder / "wnids.txt").write_text("n01\nn02\nn03\n")
    with pytest.raises(FileNotFoundError, match=r"load_tiny_imagenet: every class .* got none in .*n03"):
        load_tiny_imagenet(folder, progress=False)


def test_pillow_is_named_where_it_is_missing(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "PIL", None)
    for load in (load_folder, load_tiny_imagenet):
        with pytest.raises(ImportError, match=rf"{load.__name__}: Pillow must be installed.*\[demo\]"):
            load(tmp_path)
