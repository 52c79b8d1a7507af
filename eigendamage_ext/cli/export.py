"""``eigendamage export``: a network for another runtime."""

import argparse
from pathlib import Path

from eigendamage_ext.cli.parsing import Commands, add_command, add_network


def add(commands: Commands) -> None:
    """The parser."""
    parser = add_command(
        commands,
        "export",
        run,
        help="write a network for torch.export or ONNX",
        description="Writes a network for torch.export (.pt2) or ONNX (.onnx), for any batch size. The\n"
        "file is read again and must give the outputs of the network. ONNX needs the extra [onnx].",
        examples="  eigendamage export net.safetensors net.onnx\n"
        "  eigendamage export weights.safetensors net.pt2 --model mynet:MyNet --input 3x32x32",
        after_interrupt="no file was written",
    )
    add_network(parser)
    parser.add_argument("output", type=Path, metavar="OUT", help="the new file, .pt2 or .onnx")


def run(options: argparse.Namespace) -> int:
    """Writes the file and says so."""
    from eigendamage_ext.artifact.export import export
    from eigendamage_ext.cli.networks import example_input, in_words, load_network

    network = load_network(options.file, options.model, caller="export")
    example = example_input(options.input, [options.file], network, caller="export")
    export(network, options.output, example_inputs=example)
    print(f"{options.output}: {options.output.stat().st_size:,} bytes, takes batches of {in_words(example)}")
    return 0
