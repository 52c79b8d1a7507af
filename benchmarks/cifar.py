"""Train, prune, fine-tune and time wide ResNet32 and VGG19 on CIFAR-10 as JPEG: one of `benchmarks.paper`.

    python -m benchmarks.cifar --data DIR [--preset full|small] [--minutes M] …

is `python -m benchmarks.paper --config configs/cifar10-jpeg.toml --data DIR …`; small is the same with narrow
networks on a CPU. DIR holds cifar10_jpeg.npz, all of CIFAR-10 as JPEG: no figure compares with those of
lossless images.
"""

import argparse
import sys
from pathlib import Path

from benchmarks.paper import __main__ as paper

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
PRESETS = {"full": CONFIGS / "cifar10-jpeg.toml", "small": CONFIGS / "small" / "cifar10-jpeg.toml"}


def main(arguments: list[str] | None = None) -> int:
    assert __doc__
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cifar", description=__doc__.splitlines()[0])
    parser.add_argument("--preset", choices=list(PRESETS), default="full", help="(default: %(default)s)")
    options, more = parser.parse_known_args(arguments)
    return paper.main(["--config", str(PRESETS[options.preset]), *more])


if __name__ == "__main__":
    sys.exit(main())
