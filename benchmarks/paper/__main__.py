"""Prune networks by every method at every budget, in one pass and in rounds, and show what is left.

    python -m benchmarks.paper --config configs/*.toml [--data DIR] [--out DIR] [--minutes M]

A TOML file states everything; benchmarks/README.md says how one reads. Its files go to a folder of its name
under --out, file by file: a run that was stopped or killed goes on from the files that are there, training
from the epoch that it had reached, with the same result. --minutes stops in time; call it again until it
exits with 0.

events.jsonl has a line for every stage that is done, with all it found; table.md, and a chart for each
network and manner, show what there is so far. Accuracy is that of the last epoch on the test images, on which
nothing depends; choices are made by the training images that are held out.

Exit: 0 all is done, 1 a failure told in one sentence, 2 wrong usage, 3 stopped in time, 130 after Ctrl-C.
"""

import argparse
import sys
import time
from pathlib import Path

import torch

from benchmarks.stages import DONE, FAILED, complete, prepare
from eigendamage_ext import _devices

from .experiment import Experiment
from .report import Events, write
from .settings import Settings, read


def main(arguments: list[str] | None = None) -> int:
    began = time.monotonic()
    assert __doc__
    parser = argparse.ArgumentParser(prog="python -m benchmarks.paper", description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--config", nargs="+", type=Path, required=True, metavar="TOML", help="one or more experiments")
    add("--data", type=Path, metavar="DIR", help="where the images lie, whatever the files say")
    add("--out", type=Path, default=Path(".benchmarks/paper"), metavar="DIR", help="(default: %(default)s)")
    add("--device", help="cpu, cuda, cuda:1, … whatever the files say")
    add("--minutes", type=float, metavar="M", help="stop in time and exit with 3 if there is more to do")
    add("--networks", nargs="+", metavar="NAME", help="some of the networks")
    add("--seeds", nargs="+", type=int, metavar="N", help="some of the seeds")
    options = parser.parse_args(arguments)
    deadline = None if options.minutes is None else began + 60 * options.minutes
    try:
        experiments = [(path, read(path)) for path in options.config]
        for path, settings in experiments:
            code = _run(path.stem, settings, options, deadline)
            if code:
                return code
    except (ValueError, FileNotFoundError, ImportError) as error:
        print(error, file=sys.stderr)
        return FAILED
    return DONE


def _run(name: str, settings: Settings, options: argparse.Namespace, deadline: float | None) -> int:
    """One experiment."""
    device = options.device or settings.device
    if unusable := _devices.problem(device):
        raise ValueError(f"paper: device must be usable here, {unusable} (--device)")
    networks, seeds = options.networks or list(settings.networks), options.seeds or settings.seeds
    if unknown := sorted(set(networks) - set(settings.networks)):
        raise ValueError(
            f"paper: --networks must be among {', '.join(settings.networks)}, got {', '.join(unknown)}"
        )
    out, data = options.out / name, options.data or Path(settings.data.folder)
    prepare(out, settings.record(device), device, caller="paper")
    experiment = Experiment(settings, data, out, device=device, deadline=deadline)
    stages = experiment.stages(networks, seeds)
    if any(not stage.path.exists() for stage in stages):
        experiment.images(seeds[0])  # before anything is made: it is said now if they are missing
    events = Events(out, stages)
    code = complete(out, stages, deadline, torch.device(device).type, events.add)
    table = write(out, settings)
    if table is not None:
        print(table.read_text())
    return code


if __name__ == "__main__":
    sys.exit(main())
