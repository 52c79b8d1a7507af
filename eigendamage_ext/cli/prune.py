"""``eigendamage prune``: a network in, a folder with the smaller one out."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from eigendamage_ext.cli.options import add_settings, read_settings
from eigendamage_ext.cli.parsing import Commands, Parser, add_command
from eigendamage_ext.runs.settings import Pruned, PruneSettings

GO_ON = "run the same command again and it goes on from there"


def add(commands: Commands) -> None:
    """The parser."""
    parser = add_command(
        commands,
        "prune",
        run,
        help="prune a network to a budget, fine-tune it, and report",
        description="Estimates curvature, cuts what matters least, fine-tunes, measures and reports.\n"
        "A run that was stopped or killed goes on when the same command is run again.",
        examples="  eigendamage prune --model mynet:net --data images --flops 50% -o out\n"
        "  eigendamage prune --model net.safetensors --data cifar10:DIR --params 30% --epochs 20 -o out\n"
        "  eigendamage prune --config out/config.toml --flops 25% -o smaller",
        after_interrupt=GO_ON,
    )
    parser.usage = "%(prog)s --model NETWORK --data DATA --flops SHARE -o DIR [options]"
    add_run(parser)
    add_settings(parser, PruneSettings)


def add_run(parser: Parser) -> None:
    """What every run is told besides its settings."""
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        required=True,
        metavar="DIR",
        help="folder of the run, new or to go on with",
    )
    parser.add_argument("--start-over", action="store_true", help="throw away a run that is in the folder")
    parser.add_argument("--quiet", action="store_true", help="say nothing of how it goes")


def run(options: argparse.Namespace) -> int:
    """Prunes, prints what was found and says where it is."""
    settings = read_settings(options, PruneSettings)
    from eigendamage_ext.runs.pipeline import prune

    return finish(options, settings, prune)


def finish(options: argparse.Namespace, settings: Pruned, make: Callable[..., Any]) -> int:
    """Makes a run, prints its table and says where it is."""
    from eigendamage_ext.runs.summary import summary

    out: Path = options.output
    asked = make(settings, out, start_over=options.start_over, quiet=options.quiet)
    print(summary(out, asked))
    networks = [one.folder(out) / "net.safetensors" for one in asked]
    print(f"\n{networks[0] if len(networks) == 1 else out / 'networks'}")
    if (out / "report.html").exists():
        print(out / "report.html")
    return 0
