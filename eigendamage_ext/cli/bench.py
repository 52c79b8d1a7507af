"""``eigendamage bench``: the kernels against plain PyTorch on this machine."""

import argparse

from eigendamage_ext.cli.parsing import Commands, add_command, positive_integer


def add(commands: Commands) -> None:
    """The parser."""
    parser = add_command(
        commands,
        "bench",
        run,
        help="time the kernels against plain PyTorch on this machine, in under a minute",
        description="Computes the same by kernels and by plain PyTorch, compares, and times both in turn.",
        examples="  eigendamage bench\n  eigendamage bench --threads 1",
    )
    parser.add_argument("--threads", type=positive_integer, help="of both (as many as PyTorch takes)")


def run(options: argparse.Namespace) -> int:
    """Runs the short benchmark."""
    import torch
    from rich.console import Console

    from eigendamage_ext import bench

    if options.threads is not None:
        torch.set_num_threads(options.threads)
    bench.run_bench(Console())
    return 0
