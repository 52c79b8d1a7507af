"""The command line: ``python -m eigendamage_ext demo`` and ``… bench``."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Returns:
        0; 1 after a failure told in one sentence; 2 for wrong usage; 130 after Ctrl-C.
    """
    parser = argparse.ArgumentParser(
        prog="python -m eigendamage_ext",
        description="Structured pruning in the Kronecker-factored eigenbasis.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    demo = commands.add_parser(
        "demo",
        help="train, prune, fine-tune and report, in about two minutes",
        description="Trains a ResNet on scikit-learn's digits, prunes it to six budgets of FLOPs, "
        "fine-tunes, prints one table and writes a report.",
    )
    demo.add_argument(
        "--output", type=Path, default=Path("report.html"), help="where the report goes (%(default)s)"
    )
    demo.add_argument(
        "--seeds", type=positive_integer, default=3, help="how many networks are trained (%(default)s)"
    )
    demo.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, … (%(default)s)")
    bench = commands.add_parser(
        "bench",
        help="time the kernels against plain PyTorch on this machine, in under a minute",
        description="Computes the same by kernels and by plain PyTorch, compares, and times both in turn.",
    )
    bench.add_argument("--threads", type=positive_integer, help="of both (as many as PyTorch takes)")
    options = parser.parse_args(arguments)
    try:
        if options.command == "bench":
            return _bench(options.threads)
        return _demo(options.output, options.seeds, options.device)
    except KeyboardInterrupt:
        lost = "no report was written" if options.command == "demo" else "nothing is lost"
        print(f"\ninterrupted; {lost}", file=sys.stderr)
        return INTERRUPTED


def positive_integer(text: str) -> int:
    """A number of things, from the command line."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value


def _demo(output: Path, seeds: int, device: str) -> int:
    # Imported here: torch takes seconds, and --help need not wait for it.
    from rich.console import Console

    from . import _devices, demo

    problem = demo.missing_requirement()
    if problem is None and (output.is_dir() or not output.parent.is_dir()):
        problem = f"demo: --output must be a file in an existing folder, got {output}; create the folder"
    if problem is None and (unusable := _devices.problem(device)):
        problem = f"demo: --device must be usable here, {unusable}"
    if problem is not None:
        print(problem, file=sys.stderr)
        return 1
    data = demo.run_demo(demo.DemoSettings(seeds=seeds, device=device), output=output)
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


def _bench(threads: int | None) -> int:
    import torch
    from rich.console import Console

    from . import bench

    if threads is not None:
        torch.set_num_threads(threads)
    try:
        bench.run_bench(Console())
    except ArithmeticError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
