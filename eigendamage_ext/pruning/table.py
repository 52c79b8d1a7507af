"""A plan as a table of text."""

import io
import json
from typing import TYPE_CHECKING

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from eigendamage_ext.pruning.plan import Plan

WIDTH = 1000  # of the console: wider than any table, so that nothing is wrapped or cut off


def plan_table(plan: "Plan") -> str:
    """One line for each layer, covered or not, and the totals of the whole model."""
    table = Table(box=SIMPLE, show_footer=True, pad_edge=False)
    totals = {
        "layer": "whole model",
        "params": _change(plan.params_before, plan.params_after),
        "FLOPs": _change(plan.flops_before, plan.flops_after),
        "loss +": f"{plan.predicted_loss:.3g}",
    }
    for column in ("layer", "form", "inputs", "outputs", "params", "FLOPs", "loss +", "note"):
        left = column in ("layer", "form", "note")
        table.add_column(column, totals.get(column, ""), justify="left" if left else "right", no_wrap=True)
    for row in plan.values():
        table.add_row(
            Text(row.name),
            row.form,
            f"{row.input_rank}/{row.spec.in_per_group}",
            f"{row.output_rank}/{row.spec.out_per_group}",
            _change(*row.params),
            _change(*row.flops),
            f"{row.predicted_loss:.3g}",
            Text(row.note),
        )
    for name, reason in plan.skipped.items():
        table.add_row(Text(name), "dense", "", "", "", "", "", Text(reason))
    text = io.StringIO()
    Console(file=text, width=WIDTH, color_system=None).print(table)
    lines = [line.rstrip() for line in text.getvalue().splitlines()]
    return "\n".join([f"{plan.settings['method']}, target {json.dumps(plan.target)}", *filter(None, lines)])


def _change(before: int, after: int) -> str:
    if before == after:
        return _short(before)
    return f"{_short(before)} → {_short(after)} ({after / before:.1%})"


def _short(number: int) -> str:
    """Three digits and a letter: 1.23M."""
    for factor, letter in ((10**12, "T"), (10**9, "G"), (10**6, "M"), (10**3, "k")):
        if number >= factor:
            return f"{float(f'{number / factor:.3g}'):g}{letter}"
    return str(number)
