"""What a run is told: options, configurations, networks, weights and data; and what is wrong with them."""

import os
import subprocess
import sys
from collections.abc import Sized
from pathlib import Path

import numpy as np
import pytest
import tiny_case
import torch
from safetensors.torch import save_file
from test_cli_prune import PRUNE

import eigendamage_ext as ed
from eigendamage_ext import cli
from eigendamage_ext._tables import to_toml
from eigendamage_ext.models.preresnet import PreResNet
from eigendamage_ext.models.resnet import ResNet
from eigendamage_ext.models.vgg import VGG
from eigendamage_ext.runs import data as run_data
from eigendamage_ext.runs.networks import load_network
from eigendamage_ext.runs.repeating import repeating
from eigendamage_ext.runs.settings import Network, PruneSettings, SweepSettings, share

NAMES = (
    "eigendamage, eigendamage-depthwise, c-obd, c-obs, kron-obd, kron-obs, nn-slimming, l1, taylor, random"
)


def ended(options, capsys, out="out"):
    """Exit code and last line on standard error."""
    try:
        code = cli.main([*options, "-o", str(out), "--quiet"])
    except SystemExit as end:
        code = end.code
    return code, capsys.readouterr().err.splitlines()[-1]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--flosp 50%", "unknown option --flosp; did you mean --flops?"),
        ("--flops 50% --max-ration 1", "unknown option --max-ration; did you mean --max-ratio?"),
        (
            "--flops 50% --method eigendamge",
            f"method must be one of {NAMES}, got 'eigendamge'; the nearest right one is 'eigendamage'",
        ),
        ("--flops 50% --schedule cosin", "got 'cosin'; the nearest right one is 'cosine'"),
        ("--flops 50% --lr fast", "argument --lr: invalid float value: 'fast'"),
        ("--flops 50% --epochs -1", "epochs must be at least 0, got -1"),
        (
            "--flops 50% --epochs 1 --autocast float16",
            "autocast must be bfloat16 or none where epochs are tuned",
        ),
        ("--flops 150%", "flops, the fraction kept, must lie in (0, 1], got '150%'"),
        ("--flops half", "flops must be a number or a percentage such as \"50%\", got 'half'"),
        ("--flops 0.5 --ratio 0.5", "one of flops, params and ratio must be given, got flops and ratio"),
        ("", "one of flops, params and ratio must be given, got none"),
        ("--flops 0.5 --max-ratio 2", "max_ratio must lie in [0, 1], got 2.0"),
        ("--flops 0.5 --round-to 0", "round_to must be at least 1, got 0"),
    ],
)
def test_wrong_options_are_told_at_once(options, message, capsys):
    code, line = ended([*PRUNE, *options.split()], capsys)
    assert code == 2 and message in line and not os.listdir()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("flosp = 0.5", "got 'flosp'; the nearest right one is 'flops'"),
        ("flops = true", "'flops' in run.toml must be of type float, got True"),
        ("epochs = 1.5", "'epochs' in run.toml must be of type int, got 1.5"),
        ("ignored_layers = [1]", "'ignored_layers' in run.toml must be of type str, got 1"),
        ("[tuning]\nepochs = 1", "got 'tuning'; the nearest right one is"),
        ("flops = ", "--config must name a TOML file, got run.toml"),
        ("flops = 0.5\nfisher = 'maybe'", "fisher must be one of mc, exact, empirical, got 'maybe'"),
    ],
)
def test_wrong_configurations_are_told_at_once(text, message, capsys, folder):
    (folder / "run.toml").write_text(text)
    code, line = ended([*PRUNE, "--config", "run.toml"], capsys)
    assert code == 2 and message in line and os.listdir() == ["run.toml"]


def test_what_is_missing_is_told(capsys):
    code, line = ended(["prune", "--flops", "0.5"], capsys)
    assert code == 2 and "must have 'data' and 'model', got flops" in line
    with pytest.raises(SystemExit, match=r"^2$"):
        cli.main(["prune", "--flops", "0.5"])
    assert "the following arguments are required: -o/--output" in capsys.readouterr().err
    code, line = ended(["prune", "--config", "absent.toml"], capsys)
    assert code == 2 and "--config must name a TOML file, got absent.toml" in line


def test_a_configuration_reads_as_it_was_written():
    settings = PruneSettings(
        model='a "quoted" \\ name', data="größe\n\x7f", flops="12.5%", mean=(0.1, 1e-9), layers=("a", "b")
    )
    import tomllib

    table = tomllib.loads(to_toml(settings.record()))
    assert PruneSettings(**{k: tuple(v) if isinstance(v, list) else v for k, v in table.items()}) == settings
    assert settings.flops == 0.125 and "std" not in table


@pytest.mark.parametrize(
    ("given", "value"), [("50%", 0.5), (0.5, 0.5), ("0.5", 0.5), ("1e-1", 0.1), (1, 1.0)]
)
def test_shares_are_numbers_or_percentages(given, value):
    assert share("flops", given) == value


def test_budgets_and_methods_of_a_sweep_count_once():
    settings = SweepSettings(
        model="m",
        data="d",
        flops=("50%", 0.5, 0.3),
        ratio=(0.5,),
        methods=("l1", "l1", "eigendamage.kfac.threshold"),
    )
    assert [(goal.measure, goal.value) for goal in settings.goals] == [
        ("flops", 0.5),
        ("flops", 0.3),
        ("ratio", 0.5),
    ]
    assert settings.methods == ("l1", "eigendamage")
    for wrong in ("l1.kfac", "l2", "l1.kfac.thresholds"):
        with pytest.raises(
            ValueError, match=r"methods must be METHOD or|nearest right one is '(l1|threshold)'"
        ):
            SweepSettings(model="m", data="d", flops=(0.5,), methods=(wrong,))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            "absent_module:net",
            "got 'absent_module:net' where no module 'absent_module' is found; it is looked for in",
        ),
        ("tiny_case:nett", "and there is no 'nett' in it; the nearest name is 'net'"),
        ("tiny_case:NUMBER", "got 'tiny_case:NUMBER', a int; name a function or a class"),
        (
            "tiny_case:broken",
            "prune: model: tiny_case:broken failed: KeyError: 'nothing\\nhere'; see where with",
        ),
        ("tiny_case:nothing", "model must be a torch.nn.Module, got NoneType from tiny_case:nothing"),
        ("faulty:net", "got 'faulty:net', whose import failed: ZeroDivisionError: division by zero"),
        ("needy:net", "got 'needy:net', whose import failed: No module named 'absent_module'"),
        (
            "restnet",
            "must be one of resnet, preresnet, vgg, got 'restnet'; the nearest right one is 'resnet'",
        ),
        ("resnet", "weights must be a file with the state_dict of a resnet, whose sizes it tells, got None"),
        ("absent.safetensors", "model must name a file, got absent.safetensors, which does not exist"),
        ("net.pt", "model must be a safetensors file, got net.pt: reading a pickle can run code"),
    ],
)
def test_wrong_networks(model, message, capsys, folder):
    (folder / "faulty.py").write_text("1 / 0")
    (folder / "needy.py").write_text("import absent_module")
    (folder / "net.pt").write_bytes(b"")
    code, line = ended(["prune", "--model", model, "--data", "tiny_case:data", "--flops", "0.5"], capsys)
    assert code == 1 and message in line


def test_the_cause_is_shown_with_debug():
    options = [
        "prune",
        "--model",
        "tiny_case:broken",
        "--data",
        "tiny_case:data",
        "--flops",
        "0.5",
        "-o",
        "out",
    ]
    with pytest.raises(ValueError, match="tiny_case:broken failed") as error:
        cli.main([*options, "--debug"])
    assert isinstance(error.value.__cause__, KeyError)


def test_wrong_weights(capsys, folder):
    save_file({"0.weight": torch.zeros(1)}, "other.safetensors")
    (folder / "w.pth").write_bytes(b"")
    (folder / "torn.safetensors").write_bytes(Path("other.safetensors").read_bytes()[:-3])
    for name, message in (
        ("absent.safetensors", "weights must name a file, got absent.safetensors"),
        ("w.pth", "weights must be a safetensors file, got w.pth: reading a pickle can run code"),
        ("torn.safetensors", "must be a complete safetensors file"),
        (
            "other.safetensors",
            "weights must fit the model, got other.safetensors (Missing key(s) in state_dict",
        ),
    ):
        code, line = ended([*PRUNE, "--flops", "0.5", "--weights", name], capsys)
        assert code == 1 and message in line
    for name in ("resnet", "preresnet", "vgg"):
        options = ["--model", name, "--data", "tiny_case:data", "--flops", "0.5"]
        code, line = ended(["prune", *options, "--weights", "other.safetensors"], capsys)
        assert code == 1 and f"weights must be those of a {name}, got others" in line


@pytest.mark.parametrize(
    ("name", "model"),
    [
        ("resnet", ResNet(8, (4, 6, 10), 7, 2, "A")),
        ("resnet", ResNet(14, (4, 4, 4), 10, 1, "B")),
        ("resnet", ResNet(14, (4, 8, 12), 10, 3, "B")),
        ("preresnet", PreResNet(11, (4, 6, 10), 5, 1)),
        ("preresnet", PreResNet(20, (4, 8, 12), 3, 3)),
        *(("vgg", VGG(depth, (4, 5, 6, 7, 8), 9, 2)) for depth in (11, 13, 16, 19)),
    ],
)
def test_built_in_networks_have_the_sizes_of_their_weights(name, model):
    model.eval()
    save_file(model.state_dict(), "w.safetensors")
    found = load_network(Network(model=name, weights="w.safetensors"), "prune").eval()
    x = torch.randn(2, next(model.parameters()).shape[1], 16, 16)
    assert repr(found) == repr(model) and torch.equal(found(x), model(x))


def test_weights_may_be_a_network_that_was_saved():
    model = tiny_case.net().eval()
    ed.save(model, "whole.safetensors")
    factors = ed.estimate_factors(model, [tiny_case.images(8, 0)], progress=False)
    result = ed.plan(model, factors, target={"flops": 0.6}).apply(model)
    result.save("small.safetensors")
    x = tiny_case.images(4, 1)[0]
    for settings, expected in (
        (Network(model="tiny_case:net", weights="whole.safetensors"), model),
        (Network(model="tiny_case:net", weights="small.safetensors"), result.model),
        (Network(model="whole.safetensors"), model),
        (Network(model="small.safetensors"), result.model),
    ):
        assert torch.equal(load_network(settings, "prune").eval()(x), expected(x)), settings


def test_the_current_folder_is_searched(folder):
    """Also by a console script, which does not have it on its path."""
    (folder / "netted_here.py").write_text("from tiny_case import net, data")
    script = (
        "import sys; sys.path.remove(''); from eigendamage_ext.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    options = "prune --model netted_here:net --data netted_here:data --flops 0.1% -o out".split()
    tests = Path(__file__).parent
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tests.parent), str(tests)])}
    run = subprocess.run(
        [sys.executable, "-c", script, *options], capture_output=True, text=True, env=environment
    )
    assert (
        run.returncode == 1 and "the nearest reachable value is" in run.stderr and "Trace" not in run.stderr
    )


def loaded(name, **more):
    settings = PruneSettings(model="m", data=name, flops=0.5, batch_size=16, **more)
    return run_data.load_data(settings, "prune", progress=False)


def whole(loader):
    parts = list(loader)
    return torch.cat([x for x, _ in parts]), torch.cat([y for _, y in parts])


def test_digits_are_normalised_by_their_training_part():
    pytest.importorskip("sklearn")
    x, y = whole(loaded("digits").calibration)
    assert x.mean().abs() < 1e-3 and abs(x.std() - 1) < 1e-3 and x.shape == (1347, 1, 8, 8)
    (a, b), shuffled = (whole(loaded("digits", seed=s).train) for s in (1, 1)), whole(loaded("digits").train)
    assert torch.equal(a[0], b[0]) and not torch.equal(a[0], shuffled[0])
    assert torch.equal(a[1].sort().values, y.sort().values)
    raw = whole(loaded("digits", mean=(0.0,), std=(1.0,)).test)[0]
    assert raw.min() == 0 and raw.max() == 1
    half = whole(loaded("digits", mean=(0.5,)).test)[0]
    assert torch.allclose(half, (raw - 0.5) / x.new_tensor(ed_std()), atol=1e-6)


def ed_std():
    from eigendamage_ext.data import load_dataset

    return load_dataset("digits").std[0]


def test_a_folder_of_images(folder, capsys):
    image = pytest.importorskip("PIL.Image")
    for part, count in (("train", 3), ("val", 2)):
        for label, value in (("dark", 50), ("light", 200)):
            (folder / "images" / part / label).mkdir(parents=True)
            for number in range(count):
                pixels = np.full((8, 8, 3), value + number, dtype=np.uint8)
                image.fromarray(pixels).save(folder / "images" / part / label / f"{number}.png")
    found = loaded("images", mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), size=4)
    x, y = whole(found.calibration)
    assert x.shape == (6, 3, 4, 4) and y.tolist() == [0, 0, 0, 1, 1, 1]
    assert torch.allclose(255 * x[:, 0, 0, 0], torch.tensor([50.0, 51, 52, 200, 201, 202]))
    assert len(whole(found.test)[1]) == 4
    assert run_data.examples(found.train, 16) == 6


def test_tensors_and_loaders_of_ones_own():
    x, y = tiny_case.images(48, 0)
    found = loaded("tiny_case:data")
    assert torch.equal(whole(found.calibration)[0], x) and torch.equal(whole(found.calibration)[1], y)
    assert torch.equal(whole(loaded("tiny_case:data", mean=(1.0,), std=(2.0,)).calibration)[0], (x - 1) / 2)
    augmented = loaded("tiny_case:data", augment=True)
    assert torch.equal(whole(augmented.calibration)[0], x)
    assert not torch.equal(
        whole(augmented.train)[0].sum((1, 2, 3)).sort().values, x.sum((1, 2, 3)).sort().values
    )
    assert run_data.examples(None, 16) == 0


@pytest.mark.parametrize("name", ["loaders", "ordered_loaders"])
def test_loaders_of_ones_own_repeat_themselves(name):
    x = tiny_case.images(48, 0)[0]
    found = loaded(f"tiny_case:{name}", seed=5)
    assert found.test is None and run_data.examples(found.train, 16) == 48
    first, again = whole(found.calibration)[0], whole(found.calibration)[0]
    found.train.set_epoch(1)
    other, unmoved = whole(found.train)[0], whole(found.calibration)[0]
    assert (
        torch.equal(first, again)
        and torch.equal(first, unmoved)
        and not torch.equal(first, other)
        and not torch.equal(first, x)
    )
    assert torch.equal(other.sum((1, 2, 3)).sort().values, x.sum((1, 2, 3)).sort().values)
    anew = loaded(f"tiny_case:{name}", seed=5).train
    anew.set_epoch(1)
    assert torch.equal(whole(anew)[0], other)


def test_a_loader_without_a_length_is_one_still():
    class Batches:
        def __iter__(self):
            yield from [tiny_case.images(4, 0)]

    found = repeating(Batches(), 0)
    assert not isinstance(found, Sized) and len(list(found)) == len(list(found)) == 1
    assert len(repeating([1, 2], 0)) == 2


@pytest.mark.parametrize(
    ("name", "more", "message"),
    [
        (
            "tiny_case:loaders",
            {"augment": True},
            "augment must be left out where data come from loaders, got True",
        ),
        (
            "tiny_case:loaders",
            {"mean": (1.0,)},
            r"mean must be left out where data come from loaders, got \(1",
        ),
        ("tiny_case:nothing", {}, r"data must be \(train, test\), got NoneType from tiny_case:nothing"),
        (
            "absent",
            {},
            "data must be a folder of images, cifar10:DIR, .* got 'absent'; there is no such folder",
        ),
    ],
)
def test_wrong_data(name, more, message):
    with pytest.raises(ValueError, match=message):
        loaded(name, **more)


def test_named_sets_are_read_from_their_folder(monkeypatch):
    asked = []
    monkeypatch.setattr(run_data, "load_dataset", lambda *a, **k: asked.append((a, k["size"])))
    monkeypatch.setattr(run_data, "_images", lambda found, settings: None)
    for name in ("cifar10:some/where", "tiny-imagenet:/there", "mnist:x"):
        loaded(name, size=8)
    assert asked == [(("cifar10", "some/where"), 8), (("tiny-imagenet", "/there"), 8), (("mnist", "x"), 8)]
