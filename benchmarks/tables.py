"""Records and verdicts as plain text."""

from collections.abc import Sequence

from benchmarks.contest import Record
from benchmarks.gates import Verdict


def kernels(records: Sequence[Record]) -> str:
    """A line for each contest: time, rates, how near the floor, and how much faster than each baseline."""
    contests = [found for found in records if "ms" in found]
    if not contests:
        return "no contest"
    width = max(len(found["case"]) for found in contests)
    lines = [f"{'':{width}} {'ms':>9} {'GFLOP/s':>8} {'of peak':>8} {'of floor':>8}   times faster than"]
    for found in contests:
        ratios = ", ".join(f"{name} {ratio:.2f}" for name, ratio in found["times faster"].items())
        figures = (
            f"{found['ms']:9.3f}",
            _cell(found, "GFLOP/s", 8, 1, 0),
            _cell(found, "share of FMA peak", 6, 100, 0, " %"),
            _cell(found, "share of floor", 6, 100, 0, " %"),
        )
        lines.append(f"{found['case']:{width}} {' '.join(figures)}   {ratios}")
    return "\n".join(lines)


def _cell(found: Record, name: str, width: int, scale: float, digits: int, unit: str = "") -> str:
    if name not in found:
        return " " * (width + len(unit))
    return f"{found[name] * scale:{width}.{digits}f}{unit}"


def gates(verdicts: Sequence[Verdict]) -> str:
    """A line for each gate; those that the run did not measure are only counted."""
    judged = [verdict for verdict in verdicts if verdict.met is not None]
    rows = [(v.what, v.against, v.wanted, v.measured, "met" if v.met else "MISSED") for v in judged]
    widths = [max((len(row[i]) for row in rows), default=0) for i in range(5)]
    lines = ["  ".join(f"{cell:{w}}" for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]
    met = sum(v.met is True for v in judged)
    lines.append(f"{met} of {len(judged)} gates met; {len(verdicts) - len(judged)} not measured in this run")
    return "\n".join(lines)
