"""Train, prune and fine-tune networks on CIFAR-10, and write a table of what is left and what it costs.

    python -m benchmarks.cifar --data DIR [--preset full|small] [--device cuda] [--minutes M]

DIR holds cifar10_jpeg.npz, all of CIFAR-10 as JPEG: no figure compares with those of lossless images. Wide
ResNet32 and VGG19 learn it for about five minutes each on an H200, which is an estimate: 3 times the FLOPs of
the images seen, at 100 TFLOP/s. Their factors then serve every method, score, allocation and budget; every
cut network gets fresh batch-norm statistics and is fine-tuned with the trained one as teacher.

Accuracy is that of the last epoch on the test images, on which nothing depends; every tenth training image
is held out for who wants to choose settings by. Everything is made file by file under --out: a run that was
stopped or killed goes on from the files that are there, training from the epoch that it had reached, with the
same result. --minutes stops in time; call it again until it exits with 0. On a GPU results repeat as far as
the deterministic algorithms of cuDNN do.

Exit: 0 all is done, 1 a failure told in one sentence, 2 wrong usage, 3 stopped in time, 130 after Ctrl-C.
"""

import argparse
import sys
import time
from pathlib import Path

import torch

from benchmarks import cifar_report
from benchmarks.cifar_settings import PRESETS, VARIANTS, settings_record
from benchmarks.cifar_stages import Experiment
from benchmarks.stages import FAILED, complete, prepare
from eigendamage_ext import _devices


def main(arguments: list[str] | None = None) -> int:
    began = time.monotonic()
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cifar", description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--data", type=Path, required=True, help="folder of cifar10_jpeg.npz")
    add("--out", type=Path, help="where the files go (default: .benchmarks/cifar-PRESET)")
    add("--preset", choices=list(PRESETS), default="full", help="how much of everything (%(default)s)")
    default = "cuda" if torch.cuda.is_available() else "cpu"
    add("--device", default=default, help="cpu, cuda, cuda:1, … (here: %(default)s)")
    add("--minutes", type=float, metavar="M", help="stop in time and exit with 3 if there is more to do")
    add("--seeds", nargs="+", type=int, metavar="N", help="some seeds (full: 0 1 2, small: 0)")
    add("--networks", nargs="+", metavar="NAME", help="some of the preset's networks")
    add("--variants", nargs="+", choices=VARIANTS, default=VARIANTS, metavar="NAME", help=", ".join(VARIANTS))
    add("--budgets", nargs="+", type=float, metavar="F", help="shares of FLOPs kept")
    options = parser.parse_args(arguments)
    settings = PRESETS[options.preset]
    networks = options.networks or list(settings.networks)
    if unknown := sorted(set(networks) - set(settings.networks)):
        parser.error(f"--networks must be among {', '.join(settings.networks)}, got {', '.join(unknown)}")
    if not (options.data / "cifar10_jpeg.npz").is_file():
        parser.error(f"--data must be a folder that holds cifar10_jpeg.npz, got {options.data}")
    if unusable := _devices.problem(options.device):
        print(f"cifar: --device must be usable here, {unusable}", file=sys.stderr)
        return FAILED
    budgets = tuple(options.budgets or settings.budgets)
    out = options.out or Path(".benchmarks") / f"cifar-{options.preset}"
    deadline = None if options.minutes is None else began + 60 * options.minutes
    try:
        prepare(out, settings_record(settings, options.device), options.device, caller="cifar")
    except ValueError as error:
        print(error, file=sys.stderr)
        return FAILED
    experiment = Experiment(options.data, out, settings, device=options.device, deadline=deadline)
    stages = experiment.stages(networks, options.seeds or settings.seeds, options.variants, budgets)
    code = complete(out, stages, deadline, options.device)
    table = cifar_report.write(out)
    if table is not None:
        print(table.read_text())
    return code


if __name__ == "__main__":
    sys.exit(main())
