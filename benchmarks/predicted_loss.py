"""How well predicted losses rank cuts: each layer of a trained network is cut alone, by every method.

    python -m benchmarks.predicted_loss [--fisher exact]

A ResNet-8 (64/128/256) learns scikit-learn's digits. Each layer, or group of coupled layers, is cut to 0.9,
0.75, 0.5 and 0.25 of its directions or filters, all others left alone; nothing is trained or re-estimated.
The table gives Spearman's rank correlation of predicted and true increases of the mean loss on the images
that the factors come from, and the median of true over predicted.
"""

import argparse
import copy
from collections.abc import Iterator
from statistics import median
from typing import Any

import torch

import eigendamage_ext as ed
from eigendamage_ext.data import TensorLoader, digits
from eigendamage_ext.models.resnet import ResNet
from eigendamage_ext.pruning.direction_plan import DirectionPlan
from eigendamage_ext.report.data import rank_correlation

SHARES = (0.9, 0.75, 0.5, 0.25)
WAYS = [
    ("eigendamage", "kfac"),
    ("eigendamage", "ekfac"),
    ("c-obd", "kfac"),
    ("c-obs", "kfac"),
    ("kron-obd", "kfac"),
    ("kron-obs", "kfac"),
]


def cuts(whole: Any) -> Iterator[Any]:
    """Copies of a plan that cuts nothing, with one layer or group cut in each."""
    groups = set()
    for name in whole:
        scores = whole.scores(name)
        for share in SHARES if scores is not None else ():
            plan = copy.deepcopy(whole)
            if isinstance(plan, DirectionPlan):
                spec = plan[name].spec
                inputs, outputs = (max(1, round(share * n)) for n in (spec.in_per_group, spec.out_per_group))
                plan.set(name, input_rank=inputs, output_rank=outputs)
            else:
                plan.set(name, filters=max(1, round(share * plan[name].spec.out_channels)))
                members = tuple(other for other, row in plan.items() if row.note == "set by hand")
                if (members, share) in groups:
                    continue
                groups.add((members, share))
            yield plan


def main() -> None:
    parser = argparse.ArgumentParser(description="Rank correlation of predicted and true losses.")
    parser.add_argument("--fisher", choices=("mc", "exact", "empirical"), default="mc")
    parser.add_argument(
        "--images", type=int, default=512, help="to estimate and to measure with (%(default)s)"
    )
    options = parser.parse_args()
    torch.manual_seed(0)
    x, y = digits(seed=0).train
    model = ResNet(8, (64, 128, 256), in_channels=1)
    ed.train(model, TensorLoader(x, y, batch_size=64, shuffle=True), epochs=6, lr=0.05)
    model.eval()
    data = TensorLoader(x[: options.images], y[: options.images], batch_size=256)
    channel, patch = (
        ed.estimate_factors(model, data, kind=kind, fisher=options.fisher) for kind in ("channel", "patch")
    )
    channel.second_moments(model, data)
    channel.diagonal(model, data)
    dense = ed.mean_loss(model, data)
    rows = []
    for method, scores in WAYS:
        factors = patch if method in ("c-obs", "kron-obd", "kron-obs") else channel
        whole = ed.plan(model, factors, target={"flops": 1.0}, method=method, scores=scores)
        pairs = [
            (plan.predicted_loss, ed.mean_loss(plan.apply(model).model, data) - dense) for plan in cuts(whole)
        ]
        predicted, true = zip(*pairs, strict=True)
        rho = rank_correlation(predicted, true)
        ratio = median(t / p for p, t in pairs if p > 0)
        rows.append((method, scores, str(len(pairs)), f"{rho:.2f}", f"{ratio:.1f}"))
    print(f"fisher={options.fisher!r}, {options.images} images, dense loss {dense:.3g}\n")
    print("| method | scores | cuts | rank correlation | true / predicted |\n|---|---|---|---|---|")
    print("\n".join(f"| {' | '.join(row)} |" for row in rows))


if __name__ == "__main__":
    main()
