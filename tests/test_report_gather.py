"""What a report is told of results: each figure against its own derivation, nothing measured twice."""

import copy
import json

import pytest
import torch
import torch.nn.functional as F
from small_nets import same, snapshot

import eigendamage_ext as ed
from eigendamage_ext.models.resnet import ResNet
from eigendamage_ext.pruning.plan import PruneResult
from eigendamage_ext.report import DENSE, Key, Measured, ReportData, gather, measure, render

CLASSES = 4


@pytest.fixture(scope="module")
def loader():
    random = torch.Generator().manual_seed(1)
    x = torch.randn(48, 3, 8, 8, generator=random)
    return [(x[i : i + 20], torch.arange(len(x[i : i + 20])) % CLASSES) for i in range(0, 48, 20)]


@pytest.fixture(scope="module")
def model(loader):
    torch.manual_seed(0)
    net = ResNet(depth=8, widths=(4, 6, 8), num_classes=CLASSES)
    ed.train(net, loader, epochs=3, lr=0.05, progress=False)
    return net.eval()


@pytest.fixture(scope="module")
def factors(model, loader):
    return ed.estimate_factors(model, loader, progress=False)


@pytest.fixture(scope="module")
def cut(model, factors):
    return ed.plan(model, factors, target={"flops": 0.5}).apply(model)


def outputs(net, loader):
    with torch.no_grad():
        logits = torch.cat([copy.deepcopy(net).eval()(x) for x, _ in loader]).double()
    return logits, torch.cat([y for _, y in loader])


def accuracy(net, loader):
    logits, y = outputs(net, loader)
    return (logits.argmax(1) == y).double().mean().item()


def loss(net, loader):
    return F.cross_entropy(*outputs(net, loader)).item()


def only(data: ReportData):
    dense, row = data.measurements
    assert dense.key == DENSE and data.chosen == row.key
    return dense, row


def test_accuracies_and_losses_are_those_of_the_loader(model, cut, loader):
    before = snapshot(model)
    dense, row = only(gather(cut, model=model, loader=loader, time_batches=()))
    assert same(before, snapshot(model))
    assert dense.accuracy == pytest.approx(accuracy(model, loader))
    assert row.accuracy == pytest.approx(accuracy(cut.model, loader))
    assert row.accuracy_cut is None, "nobody has tuned it"
    assert row.measured_loss == pytest.approx(loss(cut.model, loader) - loss(model, loader), abs=1e-6)
    assert row.predicted_loss == cut.plan.predicted_loss
    assert (dense.params, dense.flops) == (cut.params_before, cut.flops_before)
    assert (row.params, row.flops, row.budget) == (cut.params_after, cut.flops_after, 0.5)


def test_a_tuned_network_is_cut_again_to_tell_what_the_cut_alone_cost(model, factors, loader):
    result = ed.plan(model, factors, target={"flops": 0.5}).apply(model)
    untouched = copy.deepcopy(result.model)
    ed.finetune(result.model, loader, epochs=4, lr=0.05, progress=False)
    _, row = only(gather(result, model=model, loader=loader, time_batches=()))
    assert row.accuracy == pytest.approx(accuracy(result.model, loader))
    assert row.accuracy_cut == pytest.approx(accuracy(untouched, loader))
    assert row.accuracy != row.accuracy_cut, "or the test tells nothing"
    assert row.measured_loss == pytest.approx(loss(untouched, loader) - loss(model, loader), abs=1e-6)


def test_a_loss_and_an_adapter_of_ones_own_are_used(model, cut, loader):
    def squares(logits, y):
        return (logits - F.one_hot(y, CLASSES)).square().sum(1)

    mappings = [{"pixels": x, "classes": y} for x, y in loader]
    adapter = ed.Adapter(split=lambda batch: (batch["pixels"], batch["classes"]))
    options = {"model": model, "loader": mappings, "adapter": adapter, "time_batches": ()}
    dense, row = only(gather(cut, loss=squares, **options))
    before, after = (squares(*outputs(net, loader)).mean().item() for net in (model, cut.model))
    assert row.measured_loss == pytest.approx(after - before, abs=1e-6)
    assert dense.accuracy is row.accuracy is None
    _, row = only(gather(cut, **options))
    assert row.accuracy == pytest.approx(accuracy(cut.model, loader))


def test_what_is_known_is_not_measured_again(model, cut):
    class Unread:
        def __iter__(self):
            raise AssertionError("the loader was read")

    known = Measured(accuracy=0.75, accuracy_cut=0.5, loss=2.5, milliseconds={1: 3.0})
    whole = Measured(accuracy=0.875, loss=1.5, milliseconds={1: 6.0})
    options = {"model": model, "loader": Unread(), "time_batches": (1,), "dense": whole, "measured": [known]}
    dense, row = only(gather(cut, **options))
    assert (dense.accuracy, row.accuracy, row.accuracy_cut) == (0.875, 0.75, 0.5)
    assert row.measured_loss == 1.0 and (dense.milliseconds, row.milliseconds) == ({1: 6.0}, {1: 3.0})


def test_networks_are_timed_in_turn_on_the_batches_asked_for(model, cut, factors, monkeypatch):
    smaller = ed.plan(model, factors, target={"flops": 0.3}).apply(model)
    cut.model.train()
    seen = []

    def milliseconds(networks, batch, repeats):
        seen.append((list(networks), tuple(batch.shape), repeats))
        assert not any(module.training for net in networks for module in net.modules())
        return [len(batch) * (place + 1) for place in range(len(networks))]

    monkeypatch.setattr(measure, "milliseconds", milliseconds)
    data = gather([cut, smaller], model=model, time_batches=(1, 5), repeats=3)
    networks = [model, cut.model, smaller.model]
    assert seen == [(networks, (1, 3, 8, 8), 3), (networks, (5, 3, 8, 8), 3)]
    assert [row.milliseconds for row in data.measurements] == [{1: 1, 5: 5}, {1: 2, 5: 10}, {1: 3, 5: 15}]
    assert cut.model.training
    cut.model.eval()


def test_layers_are_those_of_the_plan_and_survive_as_json(cut):
    data = gather(cut)
    for layer, row in zip(data.layers[data.chosen], cut.plan.values(), strict=True):
        assert (layer.name, layer.form, layer.note) == (row.name, row.form, row.note)
        assert layer.inputs == (row.spec.in_per_group, row.input_rank)
        assert layer.outputs == (row.spec.out_per_group, row.output_rank)
        assert layer.params == row.params and layer.flops == row.flops
        assert layer.predicted_loss == row.predicted_loss
    assert {layer.form for layer in data.layers[data.chosen]} > {"dense"}
    record = json.loads(json.dumps(cut.plan.record()))
    stored = gather(record)
    assert stored.layers == data.layers and stored.chosen == data.chosen and stored.why == data.why
    plain = [(m.params, m.flops, m.predicted_loss) for m in data.measurements]
    assert [(m.params, m.flops, m.predicted_loss) for m in stored.measurements] == plain


def test_spectra_mark_the_directions_that_the_rebuilt_layer_spans(model, cut, factors):
    data = gather(cut, factors=factors)
    assert [s.name for s in data.spectra] == list(cut.plan)
    basis, rotated = factors.eigenbasis(), 0
    for spectrum in data.spectra:
        row = cut.plan[spectrum.name]
        assert spectrum.input_values == pytest.approx(basis[spectrum.name].A.values.tolist())
        assert sum(spectrum.output_kept) == row.output_rank
        if row.form in ("input", "both"):
            # The rotation's rows span the kept eigenvectors: each other eigenvector goes to zero.
            rotation = cut.model.get_submodule(f"{spectrum.name}.input_rotation").weight.flatten(1)
            vectors = basis[spectrum.name].A.vectors.to(rotation)
            seen = (rotation @ vectors).norm(dim=0) > 1e-3
            assert seen.tolist() == list(spectrum.input_kept)
            rotated += 1
    assert rotated


def test_filters_are_told_with_what_they_are_coupled_to(model, loader):
    pytest.importorskip("torch_pruning")
    result = ed.prune(model, loader, target={"flops": 0.5}, method="l1", progress=False)
    data = gather(result, factors=None)
    layers = {layer.name: layer for layer in data.layers[data.chosen]}
    for name, layer in layers.items():
        module = result.model.get_submodule(name)
        whole = model.get_submodule(name)
        assert layer.outputs == (whole.weight.shape[0], module.weight.shape[0])
        assert layer.inputs == (whole.weight.shape[1], module.weight.shape[1])
        assert (layer.form == "filters") == (module.weight.shape != whole.weight.shape)
    # The sum after the first block ties the stem to the block's second convolution.
    assert layers["conv1"].group == layers["layer1.0.conv2"].group == "conv1"
    assert layers["layer1.0.conv1"].group == "layer1.0.conv1" and layers["linear"].group == ""
    assert "absolute weights" in data.why and "layer1.0.conv2" in render(data)


def test_a_depthwise_core_is_a_form_of_its_own(model, factors):
    plan = ed.plan(model, factors, target={"flops": 0.7}, method="eigendamage-depthwise")
    data = gather(plan.apply(model), factors=factors)
    forms = {layer.name: layer.form for layer in data.layers[data.chosen]}
    assert "depthwise" in forms.values()
    assert forms == {name: row.form for name, row in plan.items()}
    assert "depthwise</em>" in render(data)


def test_rounds_are_compared_with_the_original(model, loader):
    pruner = ed.Pruner(model, loader, target={"flops": 0.4}, steps=2, progress=False)
    rounds = [step.result for step in pruner]
    data = gather(rounds, model=model, loader=loader, time_batches=())
    dense, first, second = data.measurements
    assert [first.name, second.name] == ["round 1", "round 2"] and data.chosen == second.key
    assert second.budget == rounds[1].flops_after / rounds[0].flops_before <= 0.4
    assert first.predicted_loss is not None and first.measured_loss is not None
    assert second.predicted_loss is None, "the plan predicts what its own round adds"
    assert "that it found" in data.why and "that it found" not in gather(rounds[0]).why
    assert second.measured_loss is None and second.accuracy == accuracy(rounds[1].model, loader)
    dense, row = only(gather(pruner.result, model=model, loader=loader, time_batches=()))
    assert row.name == "all rounds" and row.predicted_loss is row.measured_loss is None
    assert row.flops / dense.flops == second.budget


def test_names_tell_methods_and_budgets_apart(model, factors):
    def made(**settings):
        return ed.plan(model, factors, **{"target": {"flops": 0.5}, **settings}).record()

    plans = [
        made(),
        made(allocation="least_loss"),
        made(max_ratio=0.9),
        made(target={"params": 0.5}),
        made(target={"ratio": 0.25}),
        made(),
    ]
    data = gather(plans, chosen=1)
    assert data.chosen == Key("eigendamage, least loss", 0.5)
    assert [row.method for row in data.measurements[1:]] == [
        "eigendamage, max ratio 0.95",
        "eigendamage, least loss",
        "eigendamage, max ratio 0.9",
        "eigendamage",
        "eigendamage",
        "eigendamage, max ratio 0.95 (2)",
    ]
    names = ["50 %", "50 %", "50 %", "50 % of parameters", "ratio 0.25", "50 %"]
    assert [row.name for row in data.measurements[1:]] == names
    assert len(data.layers) == len(plans)
    assert data.settings["target"] == "50 % of FLOPs; 50 % of parameters; ratio 0.25"
    assert "least sum of predicted losses" in data.why


def test_settings_say_what_the_numbers_hang_on(model, cut, factors):
    told = gather(cut, model=model, time_batches=(1,), repeats=1, settings={"data": "random"}).settings
    assert next(iter(told.items())) == ("data", "random")
    assert told["method"] == "eigendamage" and told["target"] == "50 % of FLOPs"
    assert "channel" in told["factors"] and "48 examples" in told["factors"] and "seed 0" in told["factors"]
    assert cut.parent in told.values() and torch.__version__ in told["software"]


def test_one_line_makes_the_page(model, cut, loader, tmp_path):
    cut.report(tmp_path / "report.html", model=model, loader=loader, time_batches=())
    html = (tmp_path / "report.html").read_text()
    assert f"<strong>{100 * accuracy(cut.model, loader):.1f}</strong> %" in html and "layer3.0.conv2" in html


def test_wrong_arguments_are_told(model, cut, factors, loader, tmp_path):
    lacking = copy.copy(factors)
    lacking.layers = {name: layer for name, layer in factors.layers.items() if name != "conv1"}
    for results, options, error, message in (
        ([], {}, ValueError, "results must hold a result, got none"),
        (7, {}, TypeError, "results must be of prune, or records of plans, got int"),
        ([cut, "net"], {}, TypeError, "results must be of prune, .* got str; pass a PruneResult"),
        (cut, {"chosen": 1}, ValueError, "chosen must be the number of a result, got 1 of 1"),
        (cut, {"measured": [Measured()] * 2}, ValueError, "measured must tell of every result, got 2 for 1"),
        (cut, {"loader": loader}, ValueError, "model must be given with a loader, got None"),
        (
            cut,
            {"model": model, "loader": iter(loader)},
            TypeError,
            "loader must be readable again, got a list_iterator",
        ),
        (cut, {"model": model, "time_batches": (0,)}, ValueError, "time_batches must be at least 1, got 0"),
        (cut, {"model": model, "repeats": 0}, ValueError, "repeats must be at least 1, got 0"),
        (
            cut,
            {"factors": lacking},
            ValueError,
            "factors must be those of the plan, got none of layer 'conv1'",
        ),
    ):
        with pytest.raises(error, match=f"report: {message}"):
            PruneResult.report(cut, tmp_path / "x.html", **options) if results is cut else gather(results)
    assert not list(tmp_path.iterdir())
