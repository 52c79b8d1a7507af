"""Prune trained CIFAR-10 ResNets without fine-tuning and print what accuracy is left.

    python -m benchmarks.accuracy --data DIR [--images N] [--networks NAME ...] [--scores kfac ekfac]

Budgets are met by the paper's rule, one threshold on the scores, and by the least predicted loss. Scores are
the eigenvalues of the Kronecker factors (kfac) or their corrections in the eigenbasis (ekfac).

DIR holds the networks (NAME.safetensors), cifar10_train4000.npz (lossless training images) and
cifar10_jpeg.npz (all of CIFAR-10 as JPEG). Every figure is measured on the JPEG test images; a network
trained on lossless images starts lower there, so read each figure beside the dense network's own.
"""

import argparse
import json
import platform
import sys
import time
from collections import Counter
from itertools import product
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

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
BN_IMAGES, BATCH = 1024, 128
HEADER = (
    "network",
    "allocation",
    "scores",
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
COLUMNS = "{:<21} {:<10} {:<6} {:>6} {:>8} {:>8} {:>8} {:>8} {:>7} {:>6} {:>3} {:>4} {:>5}"


def load_network(folder: Path, name: str) -> ResNet:
    """A trained network of `NETWORKS`, in eval mode."""
    path = folder / f"{name}.safetensors"
    if not path.is_file():
        raise FileNotFoundError(f"accuracy: {path} must exist; put the weights there or leave {name} out")
    model = ResNet(NETWORKS[name][0], (16, 32, 64), shortcut="A")
    model.load_state_dict(load_file(path))
    return model.eval()


def training_images(folder: Path, kind: str, count: int) -> tuple[Tensor, Tensor]:
    """At most `count` training images in mixed order, normalised, ``(n, 3, 32, 32)``, and labels ``(n,)``."""
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


def measured(result: ed.PruneResult, test: TensorLoader, calibration: TensorLoader) -> dict[str, Any]:
    """What a cut costs and leaves, without and with BN re-estimated; the model keeps the new statistics."""
    plan = result.plan
    plain = ed.evaluate(result.model, test, progress=True)
    ed.recalibrate_bn(result.model, calibration)
    return {
        "flops": result.flops_after,
        "params": result.params_after,
        "flops_kept": result.flops_after / result.flops_before,
        "params_kept": result.params_after / result.params_before,
        "accuracy": plain,
        "accuracy_bn": ed.evaluate(result.model, test, progress=True),
        "predicted_loss": plan.predicted_loss,
        "forms": dict(Counter(row.form for row in plan.values())),
    }


def measure(
    folder: Path, name: str, plans: list[tuple[str, str, float]], test: TensorLoader, factor_images: int
) -> list[dict[str, Any]]:
    """One record for the dense network and one per (allocation, scores, budget); prints each as it comes."""
    model = load_network(folder, name)
    images, labels = training_images(folder, NETWORKS[name][1], factor_images)
    calibration = TensorLoader(images[:BN_IMAGES], batch_size=BATCH)
    loader = TensorLoader(images, labels, batch_size=BATCH)
    factors = ed.estimate_factors(model, loader)
    if any(scores == "ekfac" for _, scores, _ in plans):
        factors.second_moments(model, loader)
    records = []
    for allocation, scores, budget in (("threshold", "kfac", 1.0), *plans):
        plan = ed.plan(model, factors, target={"flops": budget}, allocation=allocation, scores=scores)
        asked = {"network": name, "allocation": allocation, "scores": scores, "budget": budget}
        records.append(asked | measured(plan.apply(model), test, calibration))
        _print_row(records[-1])
    return records


def _print_row(record: dict[str, Any]) -> None:
    forms = [record["forms"].get(form, 0) for form in ("dense", "input", "output", "both")]
    row = COLUMNS.format(
        record["network"] if record["budget"] == 1 else "",
        record["allocation"] if record["budget"] < 1 else "",
        record["scores"] if record["budget"] < 1 else "",
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
    add = parser.add_argument
    add("--data", type=Path, required=True, help="folder of the networks and images")
    add("--images", type=int, metavar="N", help="test images, evenly spaced over the file (default: all)")
    add("--factor-images", type=int, default=4000, metavar="N", help="training images seen (default: 4000)")
    add("--networks", nargs="+", choices=list(NETWORKS), default=list(NETWORKS), metavar="NAME")
    add("--budgets", nargs="+", type=float, default=list(BUDGETS), metavar="F", help="shares of FLOPs kept")
    add("--allocations", nargs="+", default=["threshold", "least_loss"], metavar="NAME")
    add("--scores", nargs="+", choices=["kfac", "ekfac"], default=["kfac"], metavar="NAME")
    add("--json", type=Path, metavar="PATH", help="write the records here as well")
    options = parser.parse_args(arguments)
    if not options.data.is_dir():
        parser.error(f"--data must be a folder, got {options.data}; see the top of benchmarks/accuracy.py")

    started = time.monotonic()
    bn_images = min(BN_IMAGES, options.factor_images)
    test = TensorLoader(*test_images(options.data, options.images), batch_size=250)
    print(
        f"Accuracy on {len(test.inputs)} JPEG test images without fine-tuning;\n"
        f"factors from {options.factor_images} training images, BN re-estimated on {bn_images} of them.\n"
    )
    print(COLUMNS.format(*HEADER))
    plans = list(product(options.allocations, options.scores, options.budgets))
    records = []
    for name in options.networks:
        records += measure(options.data, name, plans, test, options.factor_images)
    print(
        "\nFLOPs, params: share of the whole network kept. loss +: predicted increase of the training loss.\n"
        "dense, in, out, both: layers that keep their form, or rotate inputs, outputs, both.\n"
        f"{time.monotonic() - started:.0f} s on {torch.get_num_threads()} threads"
    )
    if options.json:
        about = {
            "torch": torch.__version__,
            "machine": platform.machine(),
            "test_images": len(test.inputs),
            "factor_images": options.factor_images,
            "bn_images": bn_images,
        }
        options.json.write_text(json.dumps({"about": about, "results": records}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
