"""Where the files of an image set lie, what to say where they do not, and how much of one is read."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

MAX_BYTES = 2**28  # CIFAR-100's training images, the largest file here, have 155 million


class Layout(NamedTuple):
    """One way a set is handed out: the folder its archive unpacks to, and the files in it."""

    folder: str
    files: tuple[str, ...]


def find(function: str, folder: str | Path, layouts: Sequence[Layout], source: str) -> tuple[Layout, Path]:
    """The first layout whose files are all there, and the folder that holds them.

    Args:
        function: Who asks, for the error.
        folder: The folder of a layout, or one that holds it.
        layouts: What to look for.
        source: Where the set comes from, for the error.

    Raises:
        FileNotFoundError: No layout is complete.
    """
    folder = Path(folder)
    places = [(layout, place) for layout in layouts for place in (folder, folder / layout.folder)]
    missing = [[name for name in layout.files if not (place / name).is_file()] for layout, place in places]
    for (layout, place), names in zip(places, missing, strict=True):
        if not names:
            return layout, place
    started = [
        f"{place} without {', '.join(names)}"
        for (layout, place), names in zip(places, missing, strict=True)
        if len(names) < len(layout.files)
    ]
    nothing = f"{folder}, which {'has none of these' if folder.is_dir() else 'does not exist'}"
    wanted: dict[str, tuple[str, ...]] = {}
    for layout in layouts:
        wanted.setdefault(layout.folder, layout.files)
    listed = " or ".join(f"{name} ({', '.join(files)})" for name, files in wanted.items())
    raise FileNotFoundError(
        f"{function}: folder must be or hold {listed}, got {started[0] if started else nothing}; "
        f"unpack there what {source} hands out (nothing is downloaded)"
    )


def read_bytes(function: str, path: Path) -> bytes:
    """The content of a file of at most `MAX_BYTES`.

    Raises:
        ValueError: It is larger.
    """
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise ValueError(
            f"{function}: {path} must have at most {MAX_BYTES} bytes, got {size}; it is not of this set"
        )
    with path.open("rb") as file:
        return file.read(size)
