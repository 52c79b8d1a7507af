"""``eigendamage inspect``: what a file is, what it holds and where it comes from."""

import argparse
import json
from pathlib import Path

from eigendamage_ext.cli.parsing import Commands, add_command


def add(commands: Commands) -> None:
    """The parser."""
    parser = add_command(
        commands,
        "inspect",
        run,
        help="tell what a file is, what it holds and where it comes from",
        description="Tells what is in a model, in factors, in a plan or in a checkpoint, and of any other\n"
        "safetensors file its layers. Nothing of the file is run. Of factors, which are read\n"
        "whole, it shows the spectra: a bar for each of twelve eigenvalues from the largest to\n"
        "the smallest, one step lower for every power of ten.",
        examples="  eigendamage inspect net.safetensors\n"
        "  eigendamage inspect factors.safetensors\n"
        "  eigendamage inspect plan.json --json\n"
        "  eigendamage inspect net.safetensors --check",
    )
    parser.add_argument("file", type=Path, metavar="FILE", help="model, factors, plan, checkpoint or tensors")
    parser.add_argument("--json", action="store_true", help="print all of it as JSON")
    parser.add_argument("--check", action="store_true", help="read all tensors too, and check their checksum")


def run(options: argparse.Namespace) -> int:
    """Reads the file and prints what it says."""
    from eigendamage_ext.cli.inspect.contents import contents
    from eigendamage_ext.cli.inspect.page import page

    found = contents(options.file, check=options.check)
    print(json.dumps(found, indent=2, allow_nan=False) if options.json else page(found))
    return 0
