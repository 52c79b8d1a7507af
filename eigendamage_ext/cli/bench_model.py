"""``eigendamage bench-model``: the latency of a network against that of the one it was made from."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eigendamage_ext.cli.parsing import Commands, add_command, add_network, positive_integer

if TYPE_CHECKING:
    from eigendamage_ext._timing import Spread
    from eigendamage_ext.cli.latency import Latency
    from eigendamage_ext.pruning.measure import Measurement


def add(commands: Commands) -> None:
    """The parser."""
    parser = add_command(
        commands,
        "bench-model",
        run,
        help="time a network against another, such as the pruned one against the original",
        description="Times the forward pass of two networks, which take turns, at several batch sizes, in\n"
        "eager mode and under torch.compile. Medians count; in brackets is the middle half of the\n"
        "times.",
        examples="  eigendamage bench-model net.safetensors --vs dense.safetensors\n"
        "  eigendamage bench-model net.safetensors --vs dense.safetensors --batch 1 32 --compile\n"
        "  eigendamage bench-model net.safetensors --vs w.safetensors --model mynet:MyNet --input 3x32x32",
    )
    add_network(parser)
    parser.add_argument("--vs", type=Path, required=True, metavar="BASE", help="what it is compared with")
    parser.add_argument(
        "--batch",
        type=positive_integer,
        nargs="+",
        default=[1, 64],
        metavar="N",
        help="examples at a time (1 64)",
    )
    parser.add_argument("--compile", action="store_true", help="under torch.compile, too; that takes longer")
    parser.add_argument("--threads", type=positive_integer, help="of both (as many as PyTorch takes)")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, … (%(default)s)")
    parser.add_argument(
        "--seconds", type=float, default=2.0, metavar="X", help="for each line of the table (%(default)s)"
    )
    parser.add_argument("--json", action="store_true", help="print all of it as JSON")


def run(options: argparse.Namespace) -> int:
    """Times both networks and prints a table."""
    import torch

    from eigendamage_ext import _devices
    from eigendamage_ext._adapter import move
    from eigendamage_ext._meter import Meter
    from eigendamage_ext.cli.latency import check_outputs, latency
    from eigendamage_ext.cli.networks import example_input, in_words, load_network
    from eigendamage_ext.pruning.measure import measure

    caller = "bench-model"
    if unusable := _devices.problem(options.device):
        raise ValueError(f"{caller}: --device must be usable here, {unusable}")
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    files: tuple[Path, Path] = (options.vs, options.file)
    base, other = (load_network(f, options.model, caller=caller).to(options.device) for f in files)
    example = move(
        example_input(options.input, reversed(files), other, caller=caller), torch.device(options.device)
    )
    check_outputs((base, other), example, caller)
    costs = [measure(network, example) for network in (base, other)]
    modes = ("eager", "compiled") if options.compile else ("eager",)
    cases = [(size, mode) for mode in modes for size in dict.fromkeys(options.batch)]
    found = []
    with Meter(len(cases), enabled=True) as meter:
        for size, mode in cases:
            meter.stage(f"batches of {size}, {mode}")
            found.append(latency((base, other), example, size, mode, seconds=options.seconds))
            meter.advance(1)
    threads = torch.get_num_threads()
    where = f"{_devices.name(options.device)}, {threads} thread{'s' * (threads > 1)}"
    what = in_words(example)
    if options.json:
        print(json.dumps(_record(files, costs, found, what, where), indent=2, allow_nan=False))
    else:
        print(_page(files, costs, found, what, where))
    return 0


def _record(
    files: Sequence[Path], costs: "Sequence[Measurement]", found: "Sequence[Latency]", what: str, where: str
) -> dict[str, Any]:
    """Everything as JSON; times in milliseconds."""
    networks = [
        {"path": str(file), "params": cost.params, "flops": cost.flops}
        for file, cost in zip(files, costs, strict=True)
    ]
    return {
        "base": networks[0],
        "file": networks[1],
        "input": what,
        "device": where,
        "latency_ms": [
            {
                "batch": one.batch,
                "mode": one.mode,
                "rounds": one.rounds,
                "base": _milliseconds(one.base),
                "file": _milliseconds(one.other),
                "speedup": one.speedup,
                "skipped": one.skipped,
            }
            for one in found
        ],
    }


def _milliseconds(spread: "Spread | None") -> dict[str, float] | None:
    if spread is None:
        return None
    return {name: 1000 * value for name, value in spread._asdict().items()}


def _page(
    files: Sequence[Path], costs: "Sequence[Measurement]", found: "Sequence[Latency]", what: str, where: str
) -> str:
    from eigendamage_ext.cli.inspect.page import printable
    from eigendamage_ext.pruning.table import change, table

    (before, after), (base, file) = costs, (printable(file.name) for file in files)
    columns = {"batch": "right", "mode": "left", "BASE, ms": "right", "FILE, ms": "right"}
    rows = [
        (str(one.batch), one.mode, _cell(one.base), _cell(one.other), f"{one.speedup:.2f}×")
        for one in found
        if one.speedup is not None
    ]
    skipped = dict.fromkeys(f"{one.mode}: {one.skipped}" for one in found if one.skipped)
    return "\n".join(
        (
            f"BASE        {base}",
            f"FILE        {file}",
            f"parameters  {change(before.params, after.params)}",
            f"FLOPs       {change(before.flops, after.flops)}",
            f"input       {what}",
            f"on          {where}",
            "",
            table(columns | {"speed-up": "right"}, rows, None),
            *([""] if skipped else []),
            *map(printable, skipped),
        )
    )


def _cell(spread: "Spread | None") -> str:
    if spread is None:
        return ""
    median, lower, upper = (f"{1000 * value:.3g}" for value in spread)
    return f"{median} [{lower}–{upper}]"
