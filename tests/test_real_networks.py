"""Trained CIFAR-10 ResNets on real images; skipped where they are not.

EIGENDAMAGE_DATA, or ``shared/data`` beside the repository, holds the files named in benchmarks/accuracy.py.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

import eigendamage_ext as ed
from eigendamage_ext.data import TensorLoader, load_jpegs, load_npz, normalize
from eigendamage_ext.models.resnet import ResNet

REPOSITORY = Path(__file__).resolve().parents[1]
DATA = Path(os.environ.get("EIGENDAMAGE_DATA") or REPOSITORY.parent / "shared" / "data")
STATISTICS = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason=f"no networks and images in {DATA}")


@pytest.mark.parametrize(
    ("name", "depth", "jpeg_hits", "lossless_hits"),
    [
        ("resnet20_cifar10", 20, 400, 250),
        ("resnet32_cifar10", 32, 404, 250),
        ("resnet32_cifar10jpeg", 32, 420, 248),
    ],
)
def test_public_weights_load_and_classify(name, depth, jpeg_hits, lossless_hits):
    pytest.importorskip("PIL")
    model = ResNet(depth, (16, 32, 64), shortcut="A")
    model.load_state_dict(load_file(DATA / f"{name}.safetensors"))
    images, labels = load_jpegs(DATA / "cifar10_jpeg.npz", "test", max_images=500, progress=False)
    assert labels.bincount().tolist() == [50] * 10
    found = ed.evaluate(model, TensorLoader(normalize(images, *STATISTICS), labels, batch_size=250))
    assert abs(500 * found - jpeg_hits) < 2.5  # two images near a border may fall to the other side
    images, labels = load_npz(DATA / "cifar10_train4000.npz")
    found = ed.evaluate(
        model, TensorLoader(normalize(images[::16], *STATISTICS), labels[::16], batch_size=250)
    )
    assert abs(250 * found - lossless_hits) < 1.5


def test_accuracy_benchmark_prunes_a_real_network(tmp_path):
    pytest.importorskip("PIL")
    command = [sys.executable, "-m", "benchmarks.accuracy", "--data", DATA, "--json", tmp_path / "a.json"]
    command += ["--images", "200", "--factor-images", "256", "--budgets", "0.9"]
    command += ["--networks", "resnet32_cifar10jpeg", "--allocations", "threshold"]
    one_core = {**os.environ, "OMP_NUM_THREADS": "1"}
    run = subprocess.run(command, cwd=REPOSITORY, env=one_core, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    dense, pruned = json.loads((tmp_path / "a.json").read_text())["results"]
    assert dense["accuracy"] > 0.85 and dense["forms"] == {"dense": 32} and dense["params"] == 464_154
    assert dense["flops"] == 2 * 68_862_592  # multiply-adds of the convolutions and the classifier
    assert 0.89 <= pruned["flops_kept"] <= 0.9
    assert len(pruned["forms"]) >= 3 and pruned["predicted_loss"] > 0
    for key in ("accuracy", "accuracy_bn"):
        assert pruned[key] > dense[key] - 0.15
        assert f"{100 * pruned[key]:.2f} %" in run.stdout
