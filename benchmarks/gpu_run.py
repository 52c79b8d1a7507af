"""Everything that needs a GPU, in one command of under ten minutes, without a network.

    python -m benchmarks.gpu_run [--out FILE] [--only STAGE …] [--cases WORDS] [--budget SECONDS] [--dry-run]

Stages: build the extension for the GPU that is here; check that kernels run on torch's current stream; the
tests marked cuda; compute-sanitizer on a selection; benchmarks, whose answers are checked first. Each has a
time limit, and one that overruns is cut. The record is written after every stage, and the output of each
goes to a log beside it. With --only the other stages of a record at --out are kept. --dry-run does all but
the build on the CPU, with tiny shapes.
"""

import argparse
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks import gates, tables

ROOT = Path(__file__).resolve().parents[1]
SCHEMA = 1
BUDGET = 560  # seconds
RESERVE = 5  # of them to write the record in
TEST_PROCESSES = 4
LAST_CASE = 15  # seconds that one begun last may take
MOST_FAILURES = 60
STREAM_TESTS = "handle or ordered or code_for"

Outcome = dict[str, Any]


class Run:
    """A run: what it found so far, and how much time it has left."""

    def __init__(self, out: Path, record: Outcome, options: argparse.Namespace) -> None:
        self.out, self.record, self.options = out, record, options
        self.end = time.monotonic() + options.budget - RESERVE
        self.device = "cpu" if options.dry_run else "cuda"
        tools = Path(os.environ.get("CUDA_HOME", "/usr/local/cuda"), "bin")
        self.environment = os.environ | {
            "PATH": f"{os.environ.get('PATH', '')}{os.pathsep}{tools}",
            "PYTHONUNBUFFERED": "1",
            "EIGENDAMAGE_REQUIRE_CUDA": "0" if options.dry_run else "1",
        }

    def command(
        self, stage: str, arguments: Sequence[str | Path], limit: float, **environment: str
    ) -> tuple[int | None, str]:
        """The exit code, None where the time ran out, and the output of a command, which is logged."""
        limit = min(limit, self.end - time.monotonic())
        if limit <= 0:
            return None, ""
        with tempfile.TemporaryFile("w+", errors="replace") as output:
            process = subprocess.Popen(
                [str(argument) for argument in arguments],
                cwd=ROOT,
                env=self.environment | environment,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            try:
                code: int | None = process.wait(limit)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                code = None
            output.seek(0)
            text = output.read()
        ended = f"cut after {limit:.0f} s" if code is None else f"exit code {code}"
        with self.log(stage).open("a") as log:
            log.write(f"$ {' '.join(map(str, arguments))}\n{text}\n{ended}\n\n")
        return code, text

    def log(self, stage: str) -> Path:
        return self.out.with_name(f"{self.out.stem}.{stage}.log")

    def save(self) -> None:
        partial = self.out.with_suffix(".partial")
        partial.write_text(json.dumps(self.record, indent=1, ensure_ascii=False) + "\n")
        partial.replace(self.out)


def status_of(code: int | None) -> str:
    return "cut" if code is None else "failed" if code else "passed"


def build(run: Run, limit: float) -> Outcome:
    if run.options.dry_run:
        return {"status": "skipped", "note": "a dry run takes the extension as it is"}
    arch = run.record["machine"]["capability"].replace(".", "")
    command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    code, text = run.command(
        "build",
        command,
        limit,
        EIGENDAMAGE_CUDA="1",
        EIGENDAMAGE_CUDA_ARCHS=arch,
        MAX_JOBS=str(os.cpu_count()),
    )
    if code != 0:
        return {"status": status_of(code), "note": last_line(text)}
    ask = "import json; from eigendamage_ext import ops; print(json.dumps(ops.build_info()))"
    code, text = run.command("build", [sys.executable, "-c", ask], limit)
    if code == 0:
        run.record["machine"]["build"] = json.loads(text.splitlines()[-1])
    return {"status": status_of(code), "note": f"sm_{arch}"}


def pytest(run: Run, stage: str, limit: float, *arguments: str) -> Outcome:
    """Counts of one process of pytest, also of one that was cut."""
    flags = "-v --tb=short --color=no -p no:cacheprovider -W default -m cuda".split()
    code, text = run.command(stage, [sys.executable, "-m", "pytest", *flags, *arguments], limit)
    ends = re.findall(r"^(\S+::.*?) (PASSED|FAILED|SKIPPED|ERROR)\b", text, re.MULTILINE)
    found: Outcome = {
        name: sum(end == name.upper() for _, end in ends) for name in ("passed", "failed", "skipped", "error")
    }
    found["failures"] = [test for test, end in ends if end in ("FAILED", "ERROR")]
    nothing = code == 5  # no test of this file is marked cuda
    found["status"] = "passed" if nothing else status_of(code)
    if code not in (0, 1, 5, None):
        found["failures"].append(f"{' '.join(arguments)}: {last_line(text)}")
    return found


def streams(run: Run, limit: float) -> Outcome:
    return pytest(run, "streams", limit, "tests/test_cuda.py", "-k", STREAM_TESTS)


def tests(run: Run, limit: float) -> Outcome:
    """A process for each file: an illegal access ends all that its process would still run."""
    files = sorted(
        path
        for path in (ROOT / "tests").glob("test_*.py")
        if re.search(r"\bcuda\b|on_each_device|device: str", path.read_text())
    )
    if run.options.dry_run:
        files = [ROOT / "tests/test_cuda.py"]
    with ThreadPoolExecutor(TEST_PROCESSES) as pool:
        parts = [*pool.map(lambda path: pytest(run, "tests", limit, f"tests/{path.name}"), files)]
    total: Outcome = {
        name: sum(part[name] for part in parts) for name in ("passed", "failed", "skipped", "error")
    }
    total["failed"] += total.pop("error")
    run.record["tests"] = dict(total)
    worst = next((s for s in ("failed", "cut") if any(part["status"] == s for part in parts)), "passed")
    failures = [failure for part in parts for failure in part["failures"]]
    return {"status": worst, "failures": failures[:MOST_FAILURES]}


def sanitizer(run: Run, limit: float) -> Outcome:
    selection = [sys.executable, "-m", "benchmarks.gpu.selection", "--device", run.device]
    tool = shutil.which("compute-sanitizer", path=run.environment["PATH"])
    if run.options.dry_run:
        return {"status": status_of(run.command("sanitizer", selection, limit)[0])}
    if not tool:
        return {"status": "skipped", "note": "compute-sanitizer is not on PATH"}
    found: Outcome = {}
    for check in ("memcheck", "racecheck"):
        code, text = run.command(
            "sanitizer",
            [tool, "--tool", check, "--error-exitcode", "9", *selection],
            limit / 2,
            PYTORCH_NO_CUDA_MEMORY_CACHING="1",
        )
        summary = re.findall(r"(?:ERROR|RACECHECK) SUMMARY: .*", text)
        found[check] = summary[-1] if summary else status_of(code)
        found.setdefault("status", status_of(code))
        if code != 0:
            found["status"] = status_of(code)
    return found


def kernels(run: Run, limit: float) -> Outcome:
    from benchmarks.gpu.gates import GPU_GATES
    from benchmarks.gpu.kernels import read

    end = min(run.end, time.monotonic() + limit)
    found: list[Outcome] = []
    with tempfile.TemporaryDirectory() as folder:
        lines = Path(folder, "lines")
        while True:  # a case that ends the process is left behind
            seconds, before = end - time.monotonic(), len(found)
            command: list[str | Path] = [sys.executable, "-m", "benchmarks.gpu.kernels", "--out", lines]
            command += ["--device", run.device, "--cases", run.options.cases]
            command += ["--seconds", f"{seconds - LAST_CASE:.0f}"] + ["--tiny"] * run.options.dry_run
            code, _ = run.command("kernels", command, seconds)
            found = read(lines)
            if code is None or len(found) == before or "left" in found[-1]:
                break
    records = [line["record"] for line in found if "record" in line]
    failed = {line["failed"]: line["why"] for line in found if "failed" in line}
    finished = {*failed, *(f"{record['op']}: {record['case']}" for record in records)}
    for line in found:
        if "begun" in line and line["begun"] not in finished:
            failed[line["begun"]] = "cut, or it ended the process"
    run.record["ceilings"] = next((line["ceilings"] for line in found if "ceilings" in line), None)
    run.record["cases"] = [row for record in records for row in rows(record)]
    verdicts = [verdict for verdict in gates.judge(records, GPU_GATES) if verdict.met is not None]
    run.record["gates"] = [asdict(verdict) for verdict in verdicts]
    print(tables.kernels(records), tables.gates(verdicts), sep="\n\n", flush=True)
    status = "failed" if failed or not records else status_of(code)
    left = next((line["left"] for line in reversed(found) if "left" in line), [])
    return {"status": status, "failures": failed, "not reached": left}


def rows(record: Outcome) -> list[Outcome]:
    """A contest as the record holds it: once for each baseline."""
    common = {
        "name": record["op"],
        "shape": record["case"],
        "dtype": record["dtype"],
        "ours_us": rounded(record["us"]),
        "fraction_of_floor": rounded(record.get("share of floor")),
        "error": rounded(record["error"]),
        "extra_mb": rounded(record.get("extra MB")),
    }
    return [
        common
        | {
            "baseline": name,
            "baseline_us": rounded(1e3 * milliseconds),
            "speedup": rounded(record["times faster"][name]),
            "baseline_error": rounded(record["baseline errors"].get(name)),
        }
        for name, milliseconds in record["baselines ms"].items()
    ]


def rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    return float(f"{value:.4g}") if isinstance(value, float) else value


def last_line(text: str) -> str:
    return next((line.strip()[:300] for line in reversed(text.splitlines()) if line.strip()), "")


STAGES: dict[str, tuple[Callable[[Run, float], Outcome], float]] = {
    "build": (build, 170),
    "streams": (streams, 45),
    "tests": (tests, 150),
    "sanitizer": (sanitizer, 80),
    "kernels": (kernels, 240),
}


def one_stage(run: Run, name: str) -> Outcome:
    """What a stage finds, whatever becomes of it."""
    stage, limit = STAGES[name]
    run.log(name).unlink(missing_ok=True)
    build = run.record["stages"].get("build", {}).get("status")
    if name != "build" and build in ("failed", "cut"):
        return {"status": "skipped", "note": "there is no build"}
    if time.monotonic() >= run.end:
        return {"status": "cut", "note": "no time was left"}
    try:
        return stage(run, limit)
    except Exception as error:
        traceback.print_exc()
        return {"status": "failed", "note": f"{type(error).__name__}: {error}"[:300]}


def output(*command: str) -> str | None:
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=60)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def machine_facts() -> Outcome | None:
    """What the figures depend on; None where torch sees no GPU."""
    ask = """if True:
        import json, torch
        p = torch.cuda.get_device_properties(0)
        facts = {"gpu": p.name, "cuda": torch.version.cuda, "torch": torch.__version__}
        facts |= {"capability": f"{p.major}.{p.minor}", "multiprocessors": p.multi_processor_count}
        print(json.dumps(facts | {"memory_gib": round(p.total_memory / 2**30, 1)}))
    """
    found = output(sys.executable, "-W", "ignore", "-c", ask)
    if found is None:
        return None
    driver = output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    facts: Outcome = json.loads(found.splitlines()[-1])
    return facts | {"driver": driver and driver.splitlines()[0], "python": platform.python_version()}


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu_run",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--out", type=Path, metavar="FILE", help="the record (benchmarks/results/DATE-GPU-COMMIT.json)")
    add(
        "--only",
        nargs="+",
        choices=list(STAGES),
        default=list(STAGES),
        metavar="STAGE",
        help=", ".join(STAGES),
    )
    add("--cases", default="", metavar="WORDS", help="benchmarks with all of these words in their name")
    add("--budget", type=float, default=BUDGET, metavar="SECONDS", help=f"for everything (default: {BUDGET})")
    add("--commit", help="what is measured, where git cannot say")
    add("--dry-run", action="store_true", help="on the CPU, with tiny shapes")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    machine = machine_facts()
    if options.dry_run:
        machine = {"gpu": "none, a dry run", "python": platform.python_version()}
    if machine is None:
        print("gpu_run: torch must see a GPU, got none; run it where nvidia-smi lists one, or try --dry-run")
        return 1
    commit = options.commit or output("git", "rev-parse", "--short=10", "HEAD") or "unknown"
    date = f"{datetime.now(UTC):%Y-%m-%d}"
    gpu = re.sub(r"[^a-z0-9]+", "-", machine["gpu"].lower()).strip("-")
    out = (options.out or ROOT / "benchmarks/results" / f"{date}-{gpu}-{commit}.json").resolve()
    out.parent.mkdir(parents=True, exist_ok=True)
    record: Outcome = {"schema": SCHEMA, "commit": commit, "date": date, "machine": machine, "stages": {}}
    if out.exists():
        before = json.loads(out.read_text())
        if before.get("commit") == commit and before.get("machine", {}).get("gpu") == machine["gpu"]:
            record = before | {"date": date, "machine": before["machine"] | machine}
    run = Run(out, record, options)
    for name in (name for name in STAGES if name in options.only):
        began = time.monotonic()
        outcome = one_stage(run, name)
        seconds = round(time.monotonic() - began, 1)
        record["stages"][name] = {"status": outcome.pop("status"), "seconds": seconds}
        record["stages"][name] |= {key: value for key, value in outcome.items() if value}
        run.save()
        print(f"{name}: {json.dumps(record['stages'][name], ensure_ascii=False)}", flush=True)
    print(f"wrote {out}")
    return 1 if any(stage["status"] == "failed" for stage in record["stages"].values()) else 0


if __name__ == "__main__":
    sys.exit(main())
