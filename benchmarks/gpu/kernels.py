"""Probe the device, then hold every contest, and write what is found as it is found.

    python -m benchmarks.gpu.kernels --out LINES [--device cuda] [--cases WORDS] [--seconds S] [--tiny]

LINES gets JSON objects: {"ceilings": …}; {"begun": name} and then {"record": …} or {"failed": name, "why":
…}; {"left": [names]} at the end. A case that hangs or breaks the device ends the process; started again, it
goes on behind that case.
"""

import argparse
import faulthandler
import gc
import json
import sys
import time
import traceback
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from benchmarks.contest import Record
from benchmarks.gpu.cases import OPS, entries
from benchmarks.gpu.ceilings import Ceilings, probe
from benchmarks.gpu.timing import extra_megabytes, hold

SECONDS_PER_CASE = 0.8
PATIENCE = 75  # seconds that a case may take, compilation and all


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu.kernels", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--out", type=Path, required=True, metavar="LINES")
    parser.add_argument("--device", default="cuda")
    parser.add_argument(
        "--cases", default="", metavar="WORDS", help="only those with these words in their name"
    )
    parser.add_argument("--seconds", type=float, default=200, metavar="S", help="start no case after so long")
    parser.add_argument("--tiny", action="store_true")
    options = parser.parse_args()
    device, end = options.device, time.monotonic() + options.seconds
    warnings.simplefilter("ignore")
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = True
    torch.manual_seed(0)
    if device == "cpu":
        torch.set_num_threads(1)

    lines = read(options.out)
    begun = [line["begun"] for line in lines if "begun" in line]
    found: dict[str, Record] = {name_of(line["record"]): line["record"] for line in lines if "record" in line}
    known = [Ceilings(**line["ceilings"]) for line in lines if "ceilings" in line]

    def write(**line: Any) -> None:
        with options.out.open("a") as file:
            file.write(json.dumps(line) + "\n")
        print(line, flush=True)

    ceilings = known[0] if known else probe(device)
    if not known:
        write(ceilings=asdict(ceilings))
    left, failed = [], 0
    for entry in entries(device, options.tiny):
        if entry.name in begun or not all(word in entry.name for word in options.cases.split()):
            continue
        if time.monotonic() > end:
            left.append(entry.name)
            continue
        write(begun=entry.name)
        faulthandler.dump_traceback_later(PATIENCE, exit=True)
        try:
            contest = entry.prepare(found)
            record = hold(contest, device, 0.02 if options.tiny else SECONDS_PER_CASE, ceilings)
            if contest.op in OPS and device != "cpu":
                record["extra MB"] = extra_megabytes(contest.ours)
            found[entry.name] = record
            write(record=record)
        except Exception as error:
            failed += 1
            traceback.print_exc()
            write(failed=entry.name, why=f"{type(error).__name__}: {error}".splitlines()[0][:300])
            if device != "cpu":
                torch.cuda.synchronize()  # throws where nothing can run any more
        faulthandler.cancel_dump_traceback_later()
        contest = None
        gc.collect()  # before the next case asks for its memory
    write(left=left)
    return 1 if failed else 0


def read(path: Path) -> list[dict[str, Any]]:
    """The lines written so far; none where there is no file."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def name_of(record: Record) -> str:
    return f"{record['op']}: {record['case']}"


if __name__ == "__main__":
    sys.exit(main())
