"""Prune trained CIFAR-10 ResNets without fine-tuning and print what accuracy is left.

    python -m benchmarks.accuracy --data DIR [--images N] [--networks NAME ...] [--json PATH]

DIR holds the networks (NAME.safetensors), cifar10_train4000.npz (lossless training images) and
cifar10_jpeg.npz (all of CIFAR-10 as JPEG). Every figure is measured on the JPEG test images; a network trained
on lossless images starts lower there, so read each figure beside the dense network's own.
"""

import argparse
import copy
import json
import platform
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import eigendamage_ext as ed
from eigendamage_ext.data import TensorLoader, load_jpegs, load_npz, normalize
from eigendamage_ext.models.resnet import ResNet

NETWORKS = {  # name -> (depth, training images it has seen)
    "resnet20_cifar10": (20, "lossless"),
    "resnet32_cifar10": (32, "lossless"),
    "resnet32_cifar10jpeg": (32, "jpeg"),
}
BUDGETS = (0.8, 0.6, 0.5, 0.4)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
FACTOR_IMAGES, BN_IMAGES, BATCH = 4000, 1024, 128
HEADER = (
    "network",
    "budget",
    "FLOPs",
    "params",
    "accuracy",
    "with BN",
    "loss +",
    "dense",
    "in",
    "out",
    "both",
)
COLUMNS = "{:<21} {:>6} {:>8} {:>8} {:>8} {:>8} {:>7} {:>6} {:>3} {:>4} {:>5}"


def load_network(folder: Path, name: str) -> ResNet:
    """A trained network of `NETWORKS`, in eval mode."""
    path = folder / f"{name}.safetensors"
    if not path.is_file():
        raise FileNotFoundError(f"accuracy: {path} must exist; put the weights there or leave {name} out")
    model = ResNet(NETWORKS[name][0], (16, 32, 64), shortcut="A")
    model.load_state_dict(load_file(path))
    return model.eval()


def training_images(folder: Path, kind: str, count: int = FACTOR_IMAGES) -> tuple[Tensor, Tensor]:
    """At most `count` training images, normalised, ``(n, 3, 32, 32)``, and labels ``(n,)``, in mixed order."""
    if kind == "jpeg":
        images, labels = load_jpegs(folder / "cifar10_jpeg.npz", "train", max_images=count)
    else:
        images, labels = load_npz(folder / "cifar10_train4000.npz")
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))[:count]
    return normalize(images[order], MEAN, STD), labels[order]


def test_images(folder: Path, count: int | None) -> tuple[Tensor, Tensor]:
    """The JPEG test images, or `count` of them evenly spaced."""
    images, labels = load_jpegs(folder / "cifar10_jpeg.npz", "test", max_images=count)
    return normalize(images, MEAN, STD), labels


def accuracies(model: nn.Module, test: TensorLoader, calibration: TensorLoader) -> tuple[float, float]:
    """Accuracy as the model is, and after BN re-estimation of a copy."""
    plain = ed.evaluate(model, test, progress=True)
    model = copy.deepcopy(model)
    ed.recalibrate_bn(model, calibration)
    return plain, ed.evaluate(model, test, progress=True)


def measure(folder: Path, name: str, budgets: tuple[float, ...], test: TensorLoader) -> list[dict[str, Any]]:
    """One record for the dense network and one per budget; prints each as it comes."""
    model = load_network(folder, name)
    images, labels = training_images(folder, NETWORKS[name][1])
    calibration = TensorLoader(images[:BN_IMAGES], batch_size=BATCH)
    factors = ed.estimate_factors(model, TensorLoader(images, labels, batch_size=BATCH))
    records = []
    for budget in (1.0, *budgets):
        plan = ed.plan(model, factors, target={"flops": budget})
        forms = Counter(row.form for row in plan.values()) if budget < 1 else Counter(dense=len(plan))
        pruned = plan.apply(model).model if budget < 1 else model
        plain, recalibrated = accuracies(pruned, test, calibration)
        records.append(
            {
                "network": name,
                "budget": budget,
                "flops": plan.flops_after if budget < 1 else plan.flops_before,
                "params": plan.params_after if budget < 1 else plan.params_before,
                "flops_kept": plan.flops_after / plan.flops_before if budget < 1 else 1.0,
                "params_kept": plan.params_after / plan.params_before if budget < 1 else 1.0,
                "accuracy": plain,
                "accuracy_bn": recalibrated,
                "predicted_loss": plan.predicted_loss if budget < 1 else 0.0,
                "forms": dict(forms),
            }
        )
        _print_row(records[-1])
    return records


def _print_row(record: dict[str, Any]) -> None:
    forms = [record["forms"].get(form, 0) for form in ("dense", "input", "output", "both")]
    row = COLUMNS.format(
        record["network"] if record["budget"] == 1 else "",
        f"{record['budget']:g}",
        f"{100 * record['flops_kept']:.2f} %",
        f"{100 * record['params_kept']:.1f} %",
        f"{100 * record['accuracy']:.2f} %",
        f"{100 * record['accuracy_bn']:.2f} %",
        f"{record['predicted_loss']:.3f}",
        *forms,
    )
    print(row, flush=True)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.accuracy", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of the networks and images")
    parser.add_argument(
        "--images", type=int, help="test images, evenly spaced over the classes (default: all)"
    )
    parser.add_argument(
        "--networks", nargs="+", choices=list(NETWORKS), default=list(NETWORKS), metavar="NAME"
    )
    parser.add_argument(
        "--budgets", nargs="+", type=float, default=list(BUDGETS), metavar="F", help="FLOPs kept"
    )
    parser.add_argument("--json", type=Path, help="write the records here as well")
    options = parser.parse_args(arguments)
    if not options.data.is_dir():
        parser.error(f"--data must be a folder, got {options.data}; see the top of benchmarks/accuracy.py")

    started = time.monotonic()
    test = TensorLoader(*test_images(options.data, options.images), batch_size=250)
    print(
        f"Accuracy on {len(test.inputs)} JPEG test images without fine-tuning; BN re-estimated on {BN_IMAGES}\n"
        f"training images; factors from {FACTOR_IMAGES}.\n"
    )
    print(COLUMNS.format(*HEADER))
    records = []
    for name in options.networks:
        records += measure(options.data, name, tuple(options.budgets), test)
    print(
        "\nFLOPs and params: share of the whole network kept. loss +: predicted increase of the training loss.\n"
        "dense, in, out, both: layers that keep their form, or rotate inputs, outputs, both.\n"
        f"{time.monotonic() - started:.0f} s on {torch.get_num_threads()} threads"
    )
    if options.json:
        about = {
            "torch": torch.__version__,
            "machine": platform.machine(),
            "test_images": len(test.inputs),
            "factor_images": FACTOR_IMAGES,
            "bn_images": BN_IMAGES,
        }
        options.json.write_text(json.dumps({"about": about, "results": records}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
