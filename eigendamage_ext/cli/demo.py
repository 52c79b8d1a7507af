"""``eigendamage demo``: the main job on a small network, in about two minutes."""

import argparse
from pathlib import Path

from eigendamage_ext.cli.parsing import Commands, add_command, positive_integer


def add(commands: Commands) -> None:
    """The parser."""
    parser = add_command(
        commands,
        "demo",
        run,
        help="train, prune, fine-tune and report, in about two minutes",
        description="Trains a ResNet on scikit-learn's digits, prunes it to six budgets of FLOPs,\n"
        "fine-tunes, prints one table and writes a report.",
        examples="  eigendamage demo\n  eigendamage demo --seeds 1 --output page.html",
        after_interrupt="no report was written",
    )
    parser.add_argument(
        "--output", type=Path, default=Path("report.html"), help="where the report goes (%(default)s)"
    )
    parser.add_argument(
        "--seeds", type=positive_integer, default=3, help="how many networks are trained (%(default)s)"
    )
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, … (%(default)s)")


def run(options: argparse.Namespace) -> int:
    """Runs the demo, prints its table and says where the report is."""
    from rich.console import Console

    from eigendamage_ext import _devices, demo

    output: Path = options.output
    problem = demo.missing_requirement()
    if problem is None and (output.is_dir() or not output.parent.is_dir()):
        problem = f"demo: --output must be a file in an existing folder, got {output}; create the folder"
    if problem is None and (unusable := _devices.problem(options.device)):
        problem = f"demo: --device must be usable here, {unusable}"
    if problem is not None:
        raise ValueError(problem)
    settings = demo.DemoSettings(seeds=options.seeds, device=options.device)
    data = demo.run_demo(settings, output=output)
    console = Console()
    if not console.is_terminal:
        console = Console(width=110)
    demo.print_table(data, console)
    console.print(
        f"\nThe report is {output.resolve()}\nOpen it in a browser; look first at accuracy and time against "
        "FLOPs, then at the predicted against the measured loss.",
        highlight=False,
        soft_wrap=True,
    )
    return 0
