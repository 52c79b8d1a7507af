"""``eigendamage sweep``: several budgets and methods, from one pass over the data."""

import argparse

from eigendamage_ext.cli.options import add_settings, read_settings
from eigendamage_ext.cli.parsing import Commands, add_command
from eigendamage_ext.cli.prune import GO_ON, add_run, finish
from eigendamage_ext.runs.settings import SweepSettings


def add(commands: Commands) -> None:
    """The parser."""
    parser = add_command(
        commands,
        "sweep",
        run,
        help="prune a network to several budgets by several methods, and compare",
        description="Estimates curvature once and prunes to every budget by every method; accuracies before\n"
        "and after fine-tuning, costs and times come in one table and one report. A run that was\n"
        "stopped or killed goes on when the same command is run again.",
        examples="  eigendamage sweep --model mynet:net --data images --flops 80% 50% -o all\n"
        "  eigendamage sweep --model net.safetensors --data digits --params 50% --methods l1 taylor -o all\n"
        "  eigendamage sweep --config sweep.toml -o all",
        after_interrupt=GO_ON,
    )
    parser.usage = "%(prog)s --model NETWORK --data DATA --flops SHARE … -o DIR [options]"
    add_run(parser)
    add_settings(parser, SweepSettings)


def run(options: argparse.Namespace) -> int:
    """Prunes, prints what was found and says where it is."""
    settings = read_settings(options, SweepSettings)
    from eigendamage_ext.runs.pipeline import sweep

    return finish(options, settings, sweep)
