"""Networks that are not ours: every layer is covered or listed, and pruning keeps its promises."""

import copy
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import eigendamage_ext as ed
from benchmarks.networks import CLASSES, KEPT, NETWORKS, PAGE, batch, network, prune, row, saved
from eigendamage_ext._adapter import Adapter, Inputs, call, logits_of, take
from eigendamage_ext.curvature.layers import is_factored, select
from eigendamage_ext.pruning import planning
from eigendamage_ext.pruning.coupling import channel_groups
from eigendamage_ext.pruning.forms import available

TABLE = "Embedding is a table, not a product"
OWN = "{} holds {} itself; only what a Conv1d, Conv2d or Linear multiplies by is covered"
BIAS = OWN.format("SwinRelativePositionBias", "relative_position_bias_table")
STRIDED = "strided 1×1: an input rotation would run at pixels the stride skips"
ONE = "one channel in and out of each group: no direction to cut"
READ = "the model reads its weight, which a rebuilt layer has not"
HEAD = "the head; prune_head=True cuts it"

# Conv2d, Linear and Conv1D in each; what else holds a matrix; what cannot be cut, and why.
LAYERS = {
    "ResNet": 13,
    "ConvNeXt": 9,
    "MobileNetV2": 53,
    "RegNet": 14,
    "ViT": 14,
    "Swin": 21,
    "BERT": 14,
    "GPT-2": 9,
    "DenseNet-like": 15,
}
SKIPPED = {
    "ViT": {"vit.embeddings": OWN.format("ViTEmbeddings", "position_embeddings")},
    "Swin": {
        f"swin.encoder.layers.{stage}.blocks.{block}.attention.relative_position_bias": BIAS
        for stage, block in ((0, 0), (0, 1), (1, 0))
    },
    "BERT": {f"bert.embeddings.{kind}_embeddings": TABLE for kind in ("word", "position", "token_type")},
    "GPT-2": {
        "transformer.wte": TABLE,
        "transformer.wpe": TABLE,
        "lm_head": "its weight is shared with 'transformer.wte'",
    },
}
WHOLE = {
    "ResNet": {
        "resnet.encoder.stages.1.layers.0.shortcut.convolution": STRIDED,
        "resnet.encoder.stages.1.layers.0.layer.0.convolution": STRIDED,
        "classifier.1": HEAD,
    },
    "ConvNeXt": {
        "convnext.encoder.stages.0.layers.0.dwconv": ONE,
        "convnext.encoder.stages.1.layers.0.dwconv": ONE,
        "classifier": HEAD,
    },
    "MobileNetV2": {
        "mobilenet_v2.conv_stem.conv_3x3.convolution": ONE,
        **{f"mobilenet_v2.layer.{number}.conv_3x3.convolution": ONE for number in range(16)},
        "classifier": HEAD,
    },
    "RegNet": {
        "regnet.encoder.stages.0.layers.0.shortcut.convolution": STRIDED,
        "regnet.encoder.stages.1.layers.0.shortcut.convolution": STRIDED,
        "classifier.1": HEAD,
    },
    "ViT": {
        "vit.embeddings.patch_embeddings.projection": READ,
        "classifier": HEAD,
    },
    "Swin": {"classifier": HEAD},
    "BERT": {"classifier": HEAD},
    "GPT-2": {},
    "DenseNet-like": {"head": HEAD},
}
NO_CUT = "no cut pays at this budget"


@dataclass(frozen=True)
class Case:
    """A network, a batch, and what pruning makes of it."""

    name: str
    model: nn.Module
    x: Inputs
    result: ed.PruneResult


@pytest.fixture(scope="module", params=NETWORKS)
def case(request) -> Case:
    if request.param != "DenseNet-like":
        pytest.importorskip("transformers")
    model = network(request.param)
    return Case(request.param, model, batch(request.param), prune(request.param, model))


def logits(model: nn.Module, x: Inputs) -> Tensor:
    return logits_of(call(model, x), Adapter(), caller="test")


def flops(model: nn.Module, x: Inputs) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        call(model, take(x, 1))
    return counter.get_total_flops()


def test_every_layer_is_covered_or_listed_with_its_reason(case):
    plan = case.result.plan
    kinds = ("Conv1d", "Conv2d", "Conv1D", "Linear")
    layers = [name for name, module in case.model.named_modules() if type(module).__name__ in kinds]
    assert len(layers) == LAYERS[case.name]
    assert plan.skipped == SKIPPED.get(case.name, {})
    assert set(plan) == set(layers) - set(plan.skipped)
    notes = {name: line.note for name, line in plan.items() if line.note not in ("", NO_CUT)}
    assert notes == WHOLE[case.name]
    assert all(line.note for line in plan.values() if line.form == "dense")
    held = {id(p) for name in (*plan, *plan.skipped) for p in case.model.get_submodule(name).parameters()}
    rest = [p for p in case.model.parameters() if id(p) not in held]
    assert all(p.numel() == max(p.shape) for p in rest)  # norms, scales, single tokens


def test_it_meets_the_budget_and_keeps_its_shapes(case):
    pruned = case.result.model
    before, after = flops(case.model, case.x), flops(pruned, case.x)
    assert (before, after) == (case.result.flops_before, case.result.flops_after)
    assert (KEPT - 0.01) * before <= after <= KEPT * before
    for size in (1, 8):
        x = take(case.x, size)
        assert logits(pruned, x).shape == logits(case.model, x).shape
    trained = copy.deepcopy(pruned).train()
    logits(trained, case.x).logsumexp(-1).sum().backward()
    assert all(p.grad is not None for name, p in trained.named_parameters() if "rotation" in name)


def test_pruning_again_gives_the_same(case):
    again = prune(case.name, network(case.name))
    assert again.plan.record() == case.result.plan.record()
    ours, theirs = again.model.state_dict(), case.result.model.state_dict()
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_it_is_saved_and_loaded_and_stands_in_the_table(case, tmp_path):
    path = tmp_path / "net.safetensors"
    obstacle = saved(case.result, path)
    if case.name == "DenseNet-like":
        assert obstacle is None
        loaded = ed.load(path)
    else:
        assert "will load with ed.load(path, into=MyNet()) alone, as " in obstacle
        with pytest.raises(ed.ArtifactError, match=r"call load\(path, into=MyNet\(\)\)"):
            ed.load(path)
        loaded = ed.load(path, into=network(case.name, seed=1))
    assert torch.equal(logits(loaded, case.x), logits(case.result.model, case.x))
    assert row(case.name, case.result, obstacle) in PAGE.read_text(), "run python -m benchmarks.networks"


def test_with_all_directions_it_is_the_network(case):
    model, x = network(case.name).double(), case.x
    x = x.double() if isinstance(x, Tensor) else x
    factors = ed.estimate_factors(model, [x], progress=False)
    plan = ed.plan(model, factors, target={"flops": 1})
    rebuilt = [
        name
        for name, line in plan.items()
        if line.note in ("", NO_CUT) and available(line.spec)[-1] != "dense"
    ]
    for name in rebuilt:
        plan.set(name, form=available(plan[name].spec)[-1])
    pruned = plan.apply(model).model
    assert all(is_factored(pruned.get_submodule(name)) for name in rebuilt)
    assert len(rebuilt) >= LAYERS[case.name] // 2
    torch.testing.assert_close(logits(pruned, x), logits(model, x), rtol=1e-9, atol=1e-12)


FILTERS = {
    "ResNet": {"classifier.1": "it makes the model's output"},
    "MobileNetV2": {"classifier": "it makes the model's output"},
    "DenseNet-like": {"head": "it makes the model's output"},
}


@pytest.mark.parametrize("name", FILTERS)
def test_filters_are_cut_where_they_are_coupled(name, monkeypatch):
    pytest.importorskip("torch_pruning")
    if name != "DenseNet-like":
        pytest.importorskip("transformers")
    model, x = network(name), batch(name)
    coupling = channel_groups(model, x)  # takes most of the time
    monkeypatch.setattr(planning, "channel_groups", lambda model, example: coupling)
    for method in ("l1", "taylor"):
        y = torch.arange(len(x)) % CLASSES
        result = ed.prune(model, [(x, y)], target={"flops": KEPT}, method=method, progress=False)
        assert {line.name: line.note for line in result.plan.values() if line.note} == FILTERS[name]
        assert (KEPT - 0.01) * flops(model, x) <= flops(result.model, x) <= KEPT * flops(model, x)
        assert logits(result.model, x).shape == (len(x), CLASSES)
        assert any(line.filters.after < line.filters.before for line in result.plan.values())
        for line in result.plan.values():
            assert result.model.get_submodule(line.name).weight.shape[0] == line.filters.after


def test_filters_of_a_transformer_are_named_or_cut():
    pytest.importorskip("torch_pruning")
    pytest.importorskip("transformers")
    x = batch("GPT-2")
    message = "'transformer.h.0.attn.c_attn': filters of a Conv1D stay, its directions can be cut"
    with pytest.raises(ValueError, match=message):
        ed.plan(network("GPT-2"), target={"flops": KEPT}, method="l1", example_inputs=x)


def test_second_moments_of_windows_are_those_of_each_image():
    pytest.importorskip("transformers")
    model, x = network("Swin").double(), batch("Swin", 4).double()
    labels = torch.tensor([0, 1, 2, 3])
    factors = ed.estimate_factors(
        model, [(x, labels)], fisher="empirical", layers="*.blocks.1.attention.v_proj", progress=False
    )
    factors.diagonal(model, [(x, labels)], progress=False)
    [name] = factors
    weight = model.get_submodule(name).weight
    squares = torch.zeros_like(weight)
    for image, label in zip(x, labels, strict=True):
        [gradient] = torch.autograd.grad(F.cross_entropy(logits(model, image[None]), label[None]), weight)
        squares += gradient.square() / len(x)
    torch.testing.assert_close(factors[name].diagonal[:, :-1], squares, rtol=1e-9, atol=0)


def test_a_head_that_is_tied_to_the_embedding_is_named():
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8
    )
    covered, skipped = select(transformers.BertForMaskedLM(config))
    decoder = "cls.predictions.decoder"
    assert decoder not in covered
    assert skipped[decoder] == "its weight is shared with 'bert.embeddings.word_embeddings'"
