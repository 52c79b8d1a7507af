"""The shell transcript of README.md, which was really run.

    python -m benchmarks.transcript [NETWORK]

types COMMANDS in an empty folder and writes what they print between the markers. Progress, which goes to
standard error, is left out. NETWORK is the file of the network; without it, it is trained first.
"""

import argparse
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

import eigendamage_ext as ed
from eigendamage_ext.data import TensorLoader, digits
from eigendamage_ext.models.resnet import ResNet

REPOSITORY = Path(__file__).resolve().parents[1]
README = REPOSITORY / "README.md"
BEGIN, END = "<!-- transcript -->\n", "<!-- /transcript -->\n"

NETWORK = "digits.safetensors"
COMMANDS = (
    f"eigendamage prune --model {NETWORK} --data digits --mean 0 --std 1 --flops 50% \\\n"
    "    --epochs 3 --lr 0.02 --distill --threads 1 -o half",
    "eigendamage inspect half/net.safetensors",
    f"eigendamage bench-model half/net.safetensors --vs {NETWORK} --batch 16 128 --threads 1",
    "eigendamage export half/net.safetensors half/net.onnx",
)


def train(path: Path) -> None:
    """Saves the network that README.md trains."""
    torch.manual_seed(0)
    data = TensorLoader(*digits(seed=0)[0], batch_size=64, shuffle=True)
    model = ResNet(depth=8, widths=(64, 128, 256), in_channels=1)
    ed.train(model, data, epochs=6, lr=0.05)
    ed.save(model, path)


def typed(command: str, folder: Path) -> str:
    """What a command prints in a folder."""
    program, *arguments = shlex.split(command.replace("\\\n", " "))
    assert program == "eigendamage"
    paths = [str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])]
    run = subprocess.run(
        [sys.executable, "-m", "eigendamage_ext", *arguments],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return "\n".join(line.rstrip() for line in run.stdout.strip("\n").splitlines())


def transcript(network: Path | None = None) -> str:
    """All commands, each with what it printed."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if network is None:
            train(folder / NETWORK)
        else:
            shutil.copy(network, folder / NETWORK)
        parts = [f"$ {command}\n{typed(command, folder)}\n" for command in COMMANDS]
    return "```console\n" + "\n".join(parts) + "```\n"


def replaced(page: str, text: str) -> str:
    """The page with another text between the markers."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}{text}{END}{after}"


def main() -> None:
    """Runs the commands and writes README.md."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.transcript", description=main.__doc__)
    parser.add_argument("network", type=Path, nargs="?", metavar="NETWORK")
    text = transcript(parser.parse_args().network)
    README.write_text(replaced(README.read_text(), text))


if __name__ == "__main__":
    main()
