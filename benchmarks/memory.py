"""How much memory a kernel takes beyond its operands and result, in a process of its own.

    python -m benchmarks.memory patch_covariance 64 64 32 32

Linux alone tells a process its peak and lets it start over.
"""

import argparse
import gc
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.cases import Case
from eigendamage_ext import ops

REPOSITORY = Path(__file__).resolve().parents[1]
CLEAR_PEAK = "5"


def in_process_of_its_own(case: Case, threads: int = 2) -> float:
    """Extra memory of a case in MB (10⁶ bytes)."""
    command = [sys.executable, "-m", "benchmarks.memory", case.op, *map(str, case.shape), "--kernel"]
    command += [str(case.kernel), "--threads", str(threads)]
    found = subprocess.run(command, cwd=REPOSITORY, check=True, capture_output=True, text=True)
    megabytes: float = json.loads(found.stdout)["extra MB"]
    return megabytes


def extra_bytes(run: Callable[[], Any]) -> int:
    """Peak of resident memory during ``run()`` over what was resident before."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text(CLEAR_PEAK)
    before = _status("VmRSS")
    run()
    return _status("VmHWM") - before


def _status(name: str) -> int:
    found = re.search(rf"^{name}:\s*(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found
    return int(found[1]) * 1024


def measure(case: Case) -> int:
    """Extra bytes of a case; operands and result were touched before, and so were threads and code."""
    x = torch.randn(case.shape)
    channels, kernel = case.shape[1], case.kernel
    inputs, out = (x,), torch.zeros(channels * kernel**2, channels * kernel**2)
    if case.op == "gradient_second_moment":
        inputs, out = (x, torch.randn(case.shape)), torch.zeros(channels, channels, kernel, kernel)
    op = getattr(ops, case.op)
    op(*(one[:1, :4] for one in inputs), kernel, **case.geometry)
    return extra_bytes(lambda: op(*inputs, kernel, **case.geometry, out=out))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory", description=__doc__.splitlines()[0])
    parser.add_argument("op")
    parser.add_argument("shape", type=int, nargs=4)
    parser.add_argument("--kernel", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    case = Case(options.op, tuple(options.shape), kernel=options.kernel, padding=options.kernel // 2)
    print(json.dumps({"extra MB": measure(case) / 1e6}))


if __name__ == "__main__":
    main()
