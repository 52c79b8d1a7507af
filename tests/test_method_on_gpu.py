"""The whole method on a GPU: what test_simulated_device.py says of a device that is not there."""

import copy
import json
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import eigendamage_ext as ed
from benchmarks import stages
from eigendamage_ext.data import TensorLoader, crop_flip
from eigendamage_ext.models.resnet import ResNet
from eigendamage_ext.models.vgg import VGG
from eigendamage_ext.training import Checkpoint, OutOfTime

X, Y = torch.randn(40, 3, 16, 16), torch.arange(40) % 10
on_cuda = pytest.mark.cuda


@pytest.fixture(autouse=True)
def _repeatable() -> Iterator[None]:
    before = torch.backends.cudnn.deterministic
    torch.backends.cudnn.deterministic = True
    yield
    torch.backends.cudnn.deterministic = before


def network(device: str) -> nn.Module:
    torch.manual_seed(0)
    return ResNet(8, (8, 12, 16)).to(device=device, memory_format=torch.channels_last)


def far(found: Tensor, expected: Tensor) -> float:
    return float(torch.linalg.norm(found.cpu() - expected.cpu()) / torch.linalg.norm(expected.cpu()))


def test_loaders_draw_on_the_device_the_same_for_a_seed_and_an_epoch(device: str) -> None:
    x = torch.arange(40.0, device=device)[:, None, None, None].expand(40, 1, 6, 5)
    y = torch.arange(40, device=device)

    def epoch(seed: int, number: int) -> tuple[Tensor, Tensor]:
        loader = TensorLoader(x, y, batch_size=7, shuffle=True, seed=seed, transform=crop_flip(2))
        loader.set_epoch(number)
        inputs, labels = zip(*loader, strict=True)
        return torch.cat(inputs), torch.cat(labels)

    images, labels = epoch(0, 0)
    assert images.device.type == labels.device.type == device
    assert labels.sort().values.tolist() == list(range(40)) and labels.tolist() != list(range(40))
    inside = images.amax((1, 2, 3))  # of a constant image a crop shows the constant, and zeros beside it
    assert torch.equal(inside, labels.float()) and (images[labels > 0] == 0).any()
    for other in ((0, 0), (0, 1), (1, 0)):
        again = epoch(*other)
        assert all(map(torch.equal, again, (images, labels))) == (other == (0, 0))


def test_training_goes_on_from_a_checkpoint_on_the_device(device: str, tmp_path: Path) -> None:
    loader = TensorLoader(X.to(device), Y.to(device), batch_size=16, shuffle=True, transform=crop_flip(2))
    settings = {"epochs": 3, "lr": 0.1, "autocast": torch.bfloat16, "progress": False}
    whole = network(device)
    history = ed.train(whole, loader, **settings)
    checkpoint = Checkpoint(tmp_path / "training", deadline=0.0)
    for _ in range(2):
        with pytest.raises(OutOfTime):
            ed.train(network(device), loader, checkpoint=checkpoint, **settings)
    resumed = network(device)
    assert ed.train(resumed, loader, checkpoint=checkpoint, **settings) == history
    for name, value in resumed.state_dict().items():
        assert value.device.type == device and torch.equal(value, whole.state_dict()[name]), name


def test_half_precision_on_the_device_is_near_to_single(device: str) -> None:
    model = network(device).eval()
    loader = [(X, Y)]
    exact = ed.estimate_factors(model, loader, fisher="empirical", progress=False)
    exact.second_moments(model, loader, progress=False)
    for dtype, most in ((torch.bfloat16, 0.1), (torch.float16, 0.05)):
        found = ed.estimate_factors(model, loader, fisher="empirical", autocast=dtype, progress=False)
        found._basis = exact.eigenbasis()
        found.second_moments(model, loader, progress=False)
        for name in exact:
            for side in "AGS":
                ours = getattr(found[name], side)
                assert ours.dtype == torch.float32 and ours.device.type == device
                assert far(ours, getattr(exact[name], side)) < most, (name, side, dtype)


@on_cuda
def test_offloaded_factors_are_those_kept_there() -> None:
    model = network("cuda").eval()
    kept = ed.estimate_factors(model, [(X, Y)], progress=False)
    found = ed.estimate_factors(model, [(X, Y)], offload=True, progress=False)
    kept.second_moments(model, [(X, Y)], progress=False)
    found._basis = kept.eigenbasis()
    found.second_moments(model, [(X, Y)], offload=True, progress=False)
    for name in kept:
        for side in "AGS":
            ours = getattr(found[name], side)
            assert ours.is_cpu and far(ours, getattr(kept[name], side)) < 1e-6


@on_cuda
def test_pinned_batches_are_sent_whole() -> None:
    model, data = network("cuda").eval(), TensorDataset(X, Y)
    pinned = DataLoader(data, batch_size=16, pin_memory=True)
    assert next(iter(pinned))[0].is_pinned()
    found = ed.estimate_factors(model, pinned, progress=False)
    expected = ed.estimate_factors(model, DataLoader(data, batch_size=16), progress=False)
    for name, layer in expected.items():
        assert torch.equal(found[name].A, layer.A) and torch.equal(found[name].G, layer.G)


def waits(run: Callable[[], object]) -> int:
    """How often the CPU waited for the GPU."""
    torch.cuda.synchronize()
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            run()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sum("synchronizing CUDA operation" in str(warning.message) for warning in seen)


@on_cuda
@pytest.mark.parametrize(("fisher", "expected"), [("mc", 1), ("exact", 1), ("empirical", 2)])
def test_a_batch_waits_for_the_gpu_once(fisher: str, expected: int) -> None:
    model = network("cuda").eval()
    factors = ed.estimate_factors(model, [(X, Y)], fisher=fisher, progress=False)
    factors.second_moments(model, [(X, Y)], progress=False)
    for run in (
        lambda count: ed.estimate_factors(model, [(X, Y)] * count, fisher=fisher, progress=False),
        lambda count: factors.second_moments(model, [(X, Y)] * count, progress=False),
    ):
        few, many = (waits(lambda count=count, run=run: run(count)) for count in (1, 5))
        assert many - few == 4 * expected


@on_cuda
def test_a_step_of_training_waits_for_the_gpu_once() -> None:
    loader = TensorLoader(X.cuda(), Y.cuda(), batch_size=20, shuffle=True, transform=crop_flip(2))
    model, teacher = network("cuda"), network("cuda")
    few, many = (
        waits(lambda n=n: ed.finetune(model, loader, epochs=n, teacher=teacher, progress=False))
        for n in (1, 5)
    )
    assert many - few == 4 * len(loader)
    evaluated = [waits(lambda data=data: ed.evaluate(model, data)) for data in ([(X, Y)], [(X, Y)] * 5)]
    assert evaluated[0] == evaluated[1] >= 1


@on_cuda
@pytest.mark.parametrize("make", [ResNet, VGG], ids=lambda make: make.__name__)
def test_the_networks_of_the_paper_are_pruned_on_a_gpu(make: type[nn.Module]) -> None:
    model = make().to(device="cuda", memory_format=torch.channels_last).eval()
    loader = [(torch.randn(32, 3, 32, 32), torch.arange(32) % 10)] * 2
    factors = ed.estimate_factors(model, loader, autocast=torch.bfloat16, progress=False)
    factors.second_moments(model, loader, progress=False)
    for scores in ("kfac", "ekfac"):
        plan = ed.plan(model, factors, target={"flops": 0.3}, scores=scores, allocation="least_loss")
        result = plan.apply(model)
        assert 0.29 <= result.flops_after / result.flops_before <= 0.3
        before = copy.deepcopy(result.model.state_dict())
        ed.finetune(result.model, loader, epochs=1, teacher=model, autocast=torch.bfloat16, progress=False)
        assert all(p.is_cuda and p.isfinite().all() for p in result.model.parameters())
        assert any(not torch.equal(v, before[k]) for k, v in result.model.state_dict().items())


@on_cuda
def test_an_experiment_of_the_paper_runs_in_slices_on_a_gpu(tmp_path: Path) -> None:
    test_paper = pytest.importorskip("test_paper")
    pytest.importorskip("torch_pruning")
    config = tmp_path / "tiny.toml"
    config.write_text(test_paper.TINY + test_paper.TIMING)
    arguments = ("--device", "cuda", "--minutes", "0")
    while (code := test_paper.run(config, tmp_path, *arguments)) == stages.UNFINISHED:
        pass
    found = [json.loads(path.read_text()) for path in (tmp_path / "tiny").rglob("latency.json")]
    assert code == 0 and len(found) == 7
    assert sum(len(record["ms"]) for record in found) == 10
    assert all(ms > 0 for record in found for ms in record["ms"].values())
