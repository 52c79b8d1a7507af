"""Distil runs of ``make bench``, and show the newest in README.md and docs/benchmarks.svg.

    python -m benchmarks.report [RUN.json ...]      (default: .benchmarks/run.json)
    python -m benchmarks.report --render            only draw again from benchmarks/results

Several runs on one machine make one record; what is measured twice counts as in the last.
"""

import argparse
import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks import chart, gates
from benchmarks.contest import THREADS, Record, fastest

REPOSITORY = Path(__file__).resolve().parents[1]
RESULTS = REPOSITORY / "benchmarks" / "results"
README = REPOSITORY / "README.md"
CHART = REPOSITORY / "docs" / "benchmarks.svg"
RUN = REPOSITORY / ".benchmarks" / "run.json"
BEGIN, END = "<!-- benchmarks -->", "<!-- /benchmarks -->"
DIGITS = 4
ROWS = 4  # of a kernel in the table

Result = dict[str, Any]


def distil(runs: Sequence[Result], facts: dict[str, Any]) -> Result:
    """The records of pytest-benchmark's JSON, what they say about the gates, and the machine's facts."""
    records: dict[tuple[str, str], Record] = {}
    for run in runs:
        for entry in run["benchmarks"]:
            found = _rounded(entry["extra_info"])
            records[found["op"], found["case"]] = found
    verdicts = [asdict(v) for v in gates.judge(list(records.values())) if v.met is not None]
    return {"about": facts, "gates": verdicts, "records": list(records.values())}


def machine_facts() -> dict[str, Any]:
    """What the figures depend on; nothing that names the machine itself."""
    import torch

    from benchmarks import probes
    from eigendamage_ext import ops

    info = ops.build_info()
    rates = probes.bandwidth(THREADS)
    return {
        "date": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        "commit": commit(),
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "simd": info["simd"],
        "torch": torch.__version__,
        "compiler": (_output(os.environ.get("CXX", "c++"), "--version").splitlines() or ["unknown"])[0],
        "FMA GFLOP/s, 1 thread": round(probes.multiply_adds(1) / 1e9, 1),
        f"FMA GFLOP/s, {THREADS} threads": round(probes.multiply_adds(THREADS) / 1e9, 1),
        "GB/s read": round(rates.read / 1e9, 1),
        "GB/s written": round(rates.write / 1e9, 1),
        "GB/s copied": round(rates.copy / 1e9, 1),
    }


def commit() -> str:
    """The commit that is checked out."""
    return _output("git", "rev-parse", "--short=10", "HEAD")


def _output(*command: str) -> str:
    try:
        done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return done.stdout.strip()


def _cpu_model() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    names = re.findall(r"^model name\s*: (.*)$", cpuinfo.read_text(), re.M) if cpuinfo.exists() else []
    return names[0].strip() if names else "unknown"


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value


def newest() -> Result:
    """The latest committed record."""
    records = [json.loads(path.read_text()) for path in RESULTS.glob("cpu-*.json")]
    return max(records, key=lambda record: record["about"]["date"])


def readme_section(result: Result) -> str:
    """The table of README.md, with its markers."""
    about = result["about"]
    lines = [
        BEGIN,
        "![Times faster than plain PyTorch](docs/benchmarks.svg)",
        "",
        "| | | ms | GFLOP/s | of the FMA peak | over the fastest plain PyTorch | over the usual way |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in chart.rows(result["records"], most=ROWS):
        found = row.record
        cells = (
            row.kernel,
            row.label,
            _figure(found["ms"]),
            _optional(found, "GFLOP/s", "{:.0f}"),
            _optional(found, "share of FMA peak", "{:.0%}"),
            f"{_ratio(row.fastest)} (`{fastest(found)}`)",
            f"{_ratio(row.usual)} (`{row.usual_name}`)",
        )
        lines.append(f"| {' | '.join(cells)} |")
    met, total = sum(verdict["met"] for verdict in result["gates"]), len(result["gates"])
    machine = f"{about['cpu']}, {about['cores']} cores, {about['simd']}, PyTorch {about['torch']}"
    lines += [
        "",
        f"({machine}; {about['date'][:10]}, commit {about['commit']}.",
        "Medians of `make bench`, which times all in turn and checks every answer first;",
        f"it met {met} of {total} gates. [benchmarks](benchmarks/README.md) says how to read them.)",
        END,
    ]
    return "\n".join(lines)


def _figure(value: float) -> str:
    return f"{value:.3g}" if value < 100 else f"{value:.0f}"


def _ratio(value: float) -> str:
    return f"{value:.2g}×" if value < 10 else f"{value:.0f}×"


def _optional(found: Record, name: str, form: str) -> str:
    return form.format(found[name]) if name in found else ""


def with_section(text: str, section: str, begin: str = BEGIN, end: str = END) -> str:
    """A document with what stands between two markers, and these, replaced."""
    before, found, rest = text.partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise ValueError(f"report: the document must hold {begin} and {end}; put them where the table goes")
    return before + section + after


def render() -> None:
    """Bring README.md and the chart in step with the newest record."""
    result = newest()
    README.write_text(with_section(README.read_text(), readme_section(result)))
    CHART.write_text(chart.draw(result))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=__doc__.splitlines()[0])
    parser.add_argument("runs", type=Path, nargs="*", help="JSON of pytest-benchmark (.benchmarks/run.json)")
    parser.add_argument("--render", action="store_true", help="draw the newest committed record again")
    options = parser.parse_args(arguments)
    if not options.render:
        runs = [json.loads(path.read_text()) for path in options.runs or [RUN]]
        result = distil(runs, machine_facts())
        RESULTS.mkdir(exist_ok=True)
        target = RESULTS / f"cpu-{result['about']['date'][:10]}-{result['about']['commit']}.json"
        target.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")
        print(f"wrote {target.relative_to(REPOSITORY)}")
    render()
    return 0


if __name__ == "__main__":
    sys.exit(main())
