"""Every way of calling a network comes to what the plain one does: model(x) on tensors."""

from collections import OrderedDict, UserDict
from dataclasses import dataclass

import pytest
import torch
from nets import mlp
from test_factors import assert_same
from torch import Tensor, nn

import eigendamage_ext as ed
from eigendamage_ext.pruning.measure import measure
from eigendamage_ext.report.measure import Measured, timed

VOCABULARY, CLASSES = 11, 4
IDS = torch.randint(0, VOCABULARY, (6, 5), generator=torch.Generator().manual_seed(0))
MASK = torch.arange(5) < torch.tensor([5, 3, 1, 4, 5, 2])[:, None]
LABELS = torch.tensor([0, 3, 1, 1, 2, 0])


@dataclass
class Output:
    hidden: Tensor
    logits: Tensor


class Texts(nn.Module):
    """The mean embedding of the words that are there, and an MLP on it."""

    def __init__(self, answer=lambda hidden, logits: logits) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.words, self.head, self.answer = nn.Embedding(VOCABULARY, 8).double(), mlp(8, 6, CLASSES), answer

    def means(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        mask = attention_mask[..., None]
        return (self.words(input_ids) * mask).sum(dim=1) / mask.sum(dim=1)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, scale: float = 1.0):
        hidden = self.head[1](self.head[0](self.means(input_ids, attention_mask) * scale))
        return self.answer(hidden, self.head[2](hidden))


def estimated(model: nn.Module, loader, **settings) -> ed.Factors:
    return ed.estimate_factors(model, loader, progress=False, **{"fisher": "empirical"} | settings)


class Plain(nn.Module):
    """The MLP alone, under the name it has in the whole."""

    def __init__(self) -> None:
        super().__init__()
        self.head = Texts().head

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x)


with torch.no_grad():
    MEANS = Texts().means(IDS, MASK)


def mapping(**more) -> dict:
    return {"input_ids": IDS, "attention_mask": MASK, **more}


def split_of_three(batch) -> tuple:
    return (batch[0], batch[1]), batch[2]


BATCHES = {
    "mapping with labels": (mapping(labels=LABELS), None),
    "mapping with label": (UserDict(mapping(label=LABELS)), None),
    "mapping and target": ((mapping(), LABELS), None),
    "tuple and target": (((IDS, MASK), LABELS), None),
    "list and target": ([[IDS, MASK], LABELS], None),
    "what is no tensor": (mapping(labels=LABELS, scale=1.0), None),
    "adapter": ((IDS, MASK, LABELS), ed.Adapter(split=split_of_three)),
}


@pytest.mark.parametrize("kind", BATCHES)
def test_batches_of_every_kind_give_the_factors_of_plain_tensors(kind):
    batch, adapter = BATCHES[kind]
    assert_same(estimated(Texts(), [batch], adapter=adapter), estimated(Plain(), [(MEANS, LABELS)]))


OUTPUTS = {
    "dataclass": (Output, None),
    "mapping": (lambda hidden, logits: OrderedDict(hidden=hidden, logits=logits), None),
    "tuple": (lambda hidden, logits: (logits, hidden), None),
    "adapter": (lambda hidden, logits: [hidden, logits], ed.Adapter(logits=lambda output: output[1])),
    "adapter before defaults": (
        lambda hidden, logits: Output(logits, hidden),
        ed.Adapter(logits=lambda output: output.hidden),
    ),
}


@pytest.mark.parametrize("kind", OUTPUTS)
def test_outputs_of_every_kind_have_the_factors_of_plain_logits(kind):
    answer, adapter = OUTPUTS[kind]
    model = Texts(answer)
    ours = estimated(model, [mapping(labels=LABELS)], adapter=adapter)
    assert_same(ours, estimated(Plain(), [(MEANS, LABELS)]))
    assert measure(model, mapping(), adapter).head == "head.2"


def test_second_passes_read_mappings_too():
    ours, theirs = estimated(Texts(), [mapping(labels=LABELS)]), estimated(Plain(), [(MEANS, LABELS)])
    adapter = ed.Adapter(split=split_of_three, logits=lambda output: output[1])
    listed = Texts(lambda hidden, logits: [hidden, logits])
    for call in ("second_moments", "diagonal", "gradients"):
        expected = getattr(theirs, call)(Plain(), [(MEANS, LABELS)], progress=False)
        found = getattr(ours, call)(Texts(), [mapping(labels=LABELS)], progress=False)
        adapted = getattr(ours, call)(listed, [(IDS, MASK, LABELS)], adapter=adapter, progress=False)
        for name in expected:
            torch.testing.assert_close(found[name], expected[name], rtol=1e-10, atol=1e-12)
            torch.testing.assert_close(adapted[name], expected[name], rtol=1e-10, atol=1e-12)


def test_max_examples_cuts_all_tensors_of_a_batch():
    halves = [
        {key: value[start : start + 3] for key, value in mapping(labels=LABELS).items()} for start in (0, 3)
    ]
    ours = estimated(Texts(), halves, max_examples=4)
    assert ours.settings.count == 4
    assert_same(ours, estimated(Plain(), [(MEANS[:4], LABELS[:4])]))


def test_draws_do_not_depend_on_how_inputs_come():
    batches = [{key: value[start : start + 2] for key, value in mapping().items()} for start in (0, 2, 4)]
    ours = estimated(Texts(), batches, fisher="mc", seed=3)
    assert_same(ours, estimated(Plain(), [MEANS], fisher="mc", seed=3))


REFUSED = [
    (
        [mapping(labels=LABELS), mapping() | {"attention_mask": MASK[:5]}],
        ValueError,
        "every tensor with as many, got 6 in 'input_ids' and 5 in 'attention_mask' of batch 1",
    ),
    ([((IDS, MASK[:1]), LABELS)], ValueError, "got 6 in '0' and 1 in '1' of batch 0"),
    (
        [mapping(labels=LABELS[:3])],
        ValueError,
        r"as many targets as inputs, got 6 examples and targets \(3,\)",
    ),
    ([mapping(labels=LABELS, label=LABELS)], ValueError, "'labels' or 'label', got both in batch 0"),
    (
        [mapping(labels=IDS)],
        ValueError,
        "'labels' must hold what each position predicts, got the 'input_ids'",
    ),
    ([mapping(labels=IDS.where(MASK, -100))], ValueError, "got the 'input_ids' themselves in batch 0"),
    (
        [mapping(labels=["a"] * 6)],
        TypeError,
        "got a dict of 'input_ids': Tensor, .*, 'labels': list as batch 0",
    ),
    ([{1: IDS}], TypeError, r"got a dict of 1: Tensor as batch 0; convert .* adapter=ed.Adapter\(split=…\)"),
    ([{"scale": 1.0}], TypeError, "got a dict of 'scale': float as batch 0"),
    ([{"input_ids": torch.tensor(3)}], ValueError, "got one number as batch 0"),
    ([mapping(scale=MEANS / 0)], ValueError, "NaN or infinity in the input 'scale' of batch 0"),
]


@pytest.mark.parametrize(("loader", "error", "message"), REFUSED)
def test_batches_that_cannot_be_read_are_refused_and_leave_no_trace(loader, error, message):
    model = Texts()
    model.head[0].weight.grad = torch.ones_like(model.head[0].weight)
    model.words.weight.requires_grad_(False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    random, modes = torch.get_rng_state(), [module.training for module in model.modules()]
    with pytest.raises(error, match=f"estimate_factors: .*{message}"):
        estimated(model, loader, fisher="mc")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random) and [m.training for m in model.modules()] == modes
    assert torch.equal(model.head[0].weight.grad, torch.ones_like(model.head[0].weight))
    flags = [parameter.requires_grad for parameter in model.parameters()]
    assert flags == [False, True, True, True, True] and model.head[0].bias.grad is None
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize(
    ("answer", "adapter", "message"),
    [
        (lambda hidden, logits: [logits], None, "got a list of Tensor; pass adapter=ed.Adapter"),
        (lambda hidden, logits: {"hidden": hidden}, None, "got a dict of 'hidden': Tensor; pass adapter"),
        (lambda hidden, logits: (None, logits), None, "got a tuple of NoneType, Tensor"),
        (
            lambda hidden, logits: logits,
            ed.Adapter(logits=lambda z: (z,)),
            "adapter.logits must return a tensor, got a",
        ),
        (
            lambda hidden, logits: logits,
            ed.Adapter(split=lambda b: b),
            "adapter.split must return .*, got a dict of",
        ),
        (
            lambda hidden, logits: logits,
            split_of_three,
            "adapter must be an Adapter or None, got function; pass",
        ),
    ],
)
def test_what_no_default_covers_is_refused_with_the_remedy(answer, adapter, message):
    with pytest.raises(TypeError, match=f"estimate_factors: .*{message}"):
        estimated(Texts(answer), [mapping()], fisher="mc", adapter=adapter)
    with pytest.raises(TypeError, match="Adapter: split must be callable or None, got 3"):
        ed.Adapter(split=3)


def test_a_mapping_is_pruned_like_a_tensor_and_its_plan_keeps_what_it_was_called_with(tmp_path):
    factors = estimated(Texts(Output), [mapping(labels=LABELS)])
    factors.save(tmp_path / "factors")
    theirs = estimated(Plain(), [(MEANS, LABELS)])
    ours = ed.plan(Texts(Output), factors, target={"ratio": 0.4})
    loaded = ed.plan(Texts(Output), ed.Factors.load(tmp_path / "factors"), target={"ratio": 0.4})
    expected = ed.plan(Plain(), theirs, target={"ratio": 0.4})
    for plan in (ours, loaded):
        assert plan.flops_before == expected.flops_before and plan.flops_after == expected.flops_after
        assert {name: plan[name].params for name in plan} == {
            name: expected[name].params for name in expected
        }
        assert plan.example.keys() == {"input_ids", "attention_mask"}
        assert torch.equal(plan.example["input_ids"], IDS[:1]) and torch.equal(
            plan.example["attention_mask"], MASK[:1]
        )
    pruned, plainly = ours.apply(Texts(Output)), expected.apply(Plain())
    assert pruned.flops_after == plainly.flops_after == ours.flops_after
    torch.testing.assert_close(pruned.model(**mapping()).logits, plainly.model(MEANS), rtol=1e-10, atol=1e-12)


def only_logits(hidden: Tensor, logits: Tensor) -> dict[str, Tensor]:
    return {"logits": logits}


def test_filters_are_cut_and_the_file_is_checked_on_mappings(tmp_path):
    pytest.importorskip("torch_pruning")
    settings = {"target": {"ratio": 0.4}, "method": "l1", "progress": False}
    result = ed.prune(Texts(only_logits), [mapping(labels=LABELS)], **settings)
    plainly = ed.prune(Plain(), [(MEANS, LABELS)], **settings)
    torch.testing.assert_close(
        result.model(**mapping())["logits"], plainly.model(MEANS), rtol=1e-10, atol=1e-12
    )
    assert result.model.head[0].out_features < 6
    with pytest.raises(ValueError, match=r"'head\.0': it makes the model's output"):
        ed.prune(Texts(Output), [mapping()], **settings)
    result = ed.prune(Texts(), [mapping(labels=LABELS)], **settings)
    result.save(tmp_path / "net")
    assert torch.equal(ed.load(tmp_path / "net")(**mapping()), result.model(**mapping()))


@pytest.mark.parametrize("how", [{"scores": "ekfac"}, {"method": "l1"}, {"method": "taylor"}], ids=str)
def test_prune_and_pruner_hand_the_adapter_on(how):
    if "method" in how:
        pytest.importorskip("torch_pruning")
    adapter = ed.Adapter(split=split_of_three, logits=lambda output: output["logits"])
    settings = {"target": {"ratio": 0.4}, "progress": False, "fisher": "empirical", **how}
    result = ed.prune(Texts(only_logits), [(IDS, MASK, LABELS)], adapter=adapter, **settings)
    (step,) = ed.Pruner(Texts(only_logits), [(IDS, MASK, LABELS)], steps=1, adapter=adapter, **settings)
    expected = ed.prune(Plain(), [(MEANS, LABELS)], **settings).model(MEANS)
    for model in (result.model, step.model):
        torch.testing.assert_close(model(**mapping())["logits"], expected, rtol=1e-10, atol=1e-12)


def test_the_head_is_where_the_adapter_finds_the_logits():
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = (nn.Linear(8, 4).double() for _ in range(2))

        def forward(self, x: Tensor) -> list[Tensor]:
            return [self.first(x), self.second(x)]

    model, adapter = Two(), ed.Adapter(logits=lambda output: output[0])
    factors = estimated(model, [(MEANS, LABELS)], adapter=adapter)
    plan = ed.plan(model, factors, target={"ratio": 0}, adapter=adapter)
    assert plan["first"].note.startswith("the head") and list(factors) == ["first"]


def test_a_checkpoint_of_rounds_knows_its_adapter_by_name():
    def adapter() -> ed.Adapter:
        def split(batch) -> tuple:
            return split_of_three(batch)

        return ed.Adapter(split=split)

    def settings(**arguments) -> dict:
        return ed.Pruner(Texts(), [], target={"params": 0.5}, steps=2, **arguments).state_dict()["settings"]

    name = (
        "test_adapter.test_a_checkpoint_of_rounds_knows_its_adapter_by_name.<locals>.adapter.<locals>.split"
    )
    assert settings(adapter=adapter()) == settings(adapter=adapter())
    assert settings(adapter=adapter())["adapter"] == {"split": name, "logits": None}
    assert settings(example_inputs=mapping()) == settings(example_inputs=mapping(input_ids=IDS.clone()))
    assert settings(example_inputs=(IDS, MASK)) != settings(example_inputs=(MASK, IDS))
    assert settings(ignored_layers=("a", "b")) == settings(ignored_layers=["b", "a"])


def test_a_report_times_networks_on_mappings():
    result = ed.prune(Texts(), [mapping(labels=LABELS)], target={"ratio": 0.4}, progress=False)
    sizes = []
    result.model.register_forward_hook(
        lambda module, args, kwargs, output: sizes.append(kwargs["input_ids"]), with_kwargs=True
    )
    _, after = timed(Texts(), [result], [3], 1, [Measured(), Measured()])
    assert after.milliseconds[3] > 0 and all(torch.equal(ids, IDS[:1].expand(3, 5)) for ids in sizes)


@pytest.mark.parametrize(
    ("example", "kept"),
    [
        ({"ids": IDS, "x": MEANS, "scale": 0.5, "mode": "sum", "flag": True, "none": None}, True),
        ((IDS, MEANS, MASK, 3), True),
        (IDS, True),
        (MEANS, True),
        ({"ids": IDS, "more": [MASK, MASK]}, False),
        ({"ids": IDS, "scale": float("nan")}, False),
    ],
    ids=["mapping", "tuple", "whole numbers", "floating point", "nested", "not a number"],
)
def test_a_file_keeps_the_whole_numbers_of_an_example_and_nothing_else_of_the_data(example, kept, tmp_path):
    class Takes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(1, CLASSES).double()

        def forward(self, *args: Tensor, **kwargs: Tensor) -> Tensor:
            first = args[0] if args else kwargs["ids"]
            return self.layer(first[:, :1].double())

    factors = estimated(Takes(), [(example, LABELS)])
    factors.save(tmp_path / "factors")
    found = ed.Factors.load(tmp_path / "factors").example
    if not kept:
        assert factors.example is not None and found is None
        with pytest.raises(
            ValueError, match=r"plan: example_inputs must be .* where no factors hold one, got None"
        ):
            ed.plan(Takes(), ed.Factors.load(tmp_path / "factors"), target={"ratio": 0.4})
        return
    assert type(found) is type(example)
    pairs = zip(
        *(
            list(e.items() if isinstance(e, dict) else enumerate(e if isinstance(e, tuple) else [e]))
            for e in (found, example)
        ),
        strict=True,
    )
    for (key, ours), (name, theirs) in pairs:
        assert key == name
        if isinstance(theirs, Tensor):
            assert ours.dtype == theirs.dtype and torch.equal(
                ours, theirs[:1] * (not theirs.is_floating_point())
            )
        else:
            assert ours == theirs
