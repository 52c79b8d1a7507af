"""Logits of many positions and losses of one's own, against Fishers written out in float64."""

import pytest
import torch
import torch.nn.functional as F
from test_factors import assert_close, assert_same
from torch import Tensor, nn
from torch.func import functional_call, grad, jacrev

import eigendamage_ext as ed
from eigendamage_ext.curvature.fisher import Fisher, draw

WORDS, CLASSES, POSITIONS = 7, 3, 4
IDS = torch.tensor([[1, 2, 3, 4], [5, 6, 0, 0], [2, 2, 6, 1]])
MASK = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 1, 1]])
LABELS = torch.tensor([[0, 2, -100, 1], [1, 0, 2, -100], [-100, -100, 1, 2]])
COUNTED = (LABELS != -100) & (MASK == 1)


class Tagger(nn.Module):
    """A class for every word, of that word and those before it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.words = nn.Embedding(WORDS, 5).double()
        self.first, self.last = nn.Linear(5, 4).double(), nn.Linear(4, CLASSES, bias=False).double()

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        hidden = self.first(self.words(input_ids)).cumsum(dim=1).tanh()
        return self.last(hidden)


def batch(**more) -> dict[str, Tensor]:
    return {"input_ids": IDS, "attention_mask": MASK, **more}


def estimated(loader, **settings) -> ed.Factors:
    return ed.estimate_factors(Tagger(), loader, progress=False, **settings)


def loss_of_one(z: Tensor, y: Tensor) -> Tensor:
    """Of logits ``(T, C)`` and labels ``(T,)``, -100 where none counts."""
    return F.cross_entropy(z, y, reduction="sum")


def dense(name: str, counted: Tensor, fisher: str) -> list[Tensor]:
    """Every example's Fisher ``(P, P)`` of a layer's weight and bias, filter by filter [w_o | b_o]."""
    model, blocks = Tagger(), []
    layer = model.get_submodule(name)
    rows = (
        layer.weight.detach()
        if layer.bias is None
        else torch.cat([layer.weight, layer.bias[:, None]], 1).detach()
    )

    def logits(rows: Tensor, ids: Tensor) -> Tensor:
        weights = {f"{name}.weight": rows if layer.bias is None else rows[:, :-1]}
        if layer.bias is not None:
            weights[f"{name}.bias"] = rows[:, -1]
        return functional_call(model, weights, ids[None])[0]

    for ids, y, counts in zip(IDS, LABELS, counted, strict=True):
        y = y.clamp(min=0).where(counts, -100)
        z = logits(rows, ids).detach()
        J = jacrev(logits)(rows, ids).reshape(z.numel(), -1)
        if fisher == "empirical":
            g = grad(loss_of_one)(z, y).flatten() @ J
            blocks.append(torch.outer(g, g))
        else:
            H = jacrev(grad(loss_of_one))(z, y).reshape(z.numel(), z.numel())
            blocks.append(J.mT @ H @ J)
    return blocks


def output_fisher(name: str, counted: Tensor, fisher: str) -> Tensor:
    """1/N Σ_n Σ_t of the Fisher of a layer's output ``(T, c_out)``, position by position."""
    model, total = Tagger(), 0
    after = {
        "first": lambda out: model.last(out.cumsum(dim=0).tanh()),
        "last": lambda out: out,
    }[name]
    found = {}
    model.get_submodule(name).register_forward_hook(
        lambda module, args, output: found.update(out=output.detach())
    )
    model(IDS)
    for out, y, counts in zip(found["out"], LABELS, counted, strict=True):
        y = y.clamp(min=0).where(counts, -100)
        z = after(out).detach()
        J = jacrev(after)(out).reshape(z.numel(), *out.shape)
        if fisher == "empirical":
            g = torch.einsum("z,ztc->tc", grad(loss_of_one)(z, y).flatten(), J)
            total = total + g.mT @ g
        else:
            H = jacrev(grad(loss_of_one))(z, y).reshape(z.numel(), z.numel())
            total = total + torch.einsum("ytc,yz,ztd->cd", J, H, J)
    return total / len(IDS)


CASES = {
    "labels and mask": (batch(labels=LABELS), COUNTED),
    "mask alone": (batch(), MASK == 1),
    "labels alone": (((IDS,), LABELS), LABELS != -100),
    "neither": (IDS, torch.ones_like(MASK, dtype=torch.bool)),
    "another mask, and labels": (batch(labels=LABELS) | {"attention_mask": MASK[:, None]}, LABELS != -100),
}


@pytest.mark.parametrize("name", ["first", "last"])
@pytest.mark.parametrize(
    ("fisher", "case"),
    [(f, c) for f in ("exact", "empirical") for c in CASES if f == "exact" or "labels" in c],
)
def test_factors_and_diagonal_are_those_of_the_dense_fisher(name, fisher, case):
    data, counted = CASES[case]
    factors = estimated([data], fisher=fisher)
    assert_close(factors[name].G, output_fisher(name, counted, fisher))
    expected = torch.stack(dense(name, counted, fisher)).mean(dim=0)
    found = factors.diagonal(Tagger(), [data], progress=False)[name]
    assert_close(found.flatten(), expected.diagonal())
    moments = factors.second_moments(Tagger(), [data], progress=False)[name]
    Q = factors.eigenbasis()[name]
    width = moments.numel() // len(moments)
    columns = [o * found.shape[1] + i for o in range(len(found)) for i in range(width)]
    rotation = torch.kron(Q.G.vectors, Q.A.vectors)
    assert_close(moments.flatten(), (rotation.mT @ expected[columns][:, columns] @ rotation).diagonal())


@pytest.mark.parametrize("kind", ["channel", "patch"])
@pytest.mark.parametrize(
    "data", [batch(), batch(labels=LABELS), IDS], ids=["mask", "mask and labels", "neither"]
)
def test_the_input_factor_is_of_tokens_that_are_there(data, kind):
    model = Tagger()
    rows = [
        words[mask == 1] if isinstance(data, dict) else words
        for words, mask in zip(model.words(IDS).detach(), MASK, strict=True)
    ]
    expanded, means = torch.cat(rows), torch.stack([row.mean(dim=0) for row in rows])
    for weight_sharing, a in (("expand", expanded), ("reduce", means)):
        if kind == "patch":
            a = torch.cat([a, torch.ones_like(a[:, :1])], dim=1)
        settings = {"kind": kind, "weight_sharing": weight_sharing}
        assert_close(estimated([data], **settings)["first"].A, a.mT @ a / len(a))
        if isinstance(data, dict):
            parts = [{key: value[n : n + 1] for key, value in data.items()} for n in range(len(IDS))]
            assert_close(estimated(parts, **settings)["first"].A, a.mT @ a / len(a))


def test_gradients_are_those_of_the_mean_over_examples_of_their_sums():
    factors = estimated([batch(labels=LABELS)])
    model = Tagger()
    z = model(IDS)
    loss = F.cross_entropy(z.flatten(0, 1), LABELS.where(COUNTED, -100).flatten(), reduction="sum") / len(IDS)
    loss.backward()
    found = factors.gradients(Tagger(), [batch(labels=LABELS)], progress=False)
    assert_close(found["first"], torch.cat([model.first.weight.grad, model.first.bias.grad[:, None]], dim=1))
    assert_close(found["last"], model.last.weight.grad)


def test_draws_at_a_position_do_not_depend_on_the_batching():
    whole = estimated([batch()], samples=2, seed=5)
    parts = [{key: value[n : n + 1] for key, value in batch().items()} for n in range(len(IDS))]
    assert_same(whole, estimated(parts, samples=2, seed=5))
    short = [parts[0], {"input_ids": IDS[1:2, :2], "attention_mask": MASK[1:2, :2]}, parts[2]]
    assert_same(whole, estimated(short, samples=2, seed=5))
    assert not torch.equal(whole["first"].G, estimated([batch()], samples=2, seed=6)["first"].G)


def test_drawn_vectors_are_gradients_at_the_drawn_labels_where_they_count():
    z = torch.randn(3, POSITIONS, CLASSES, dtype=torch.float64)
    (vector,) = Fisher("cross_entropy", "mc", seed=7).vectors(z, LABELS, 11, batch())
    y = draw("cross_entropy", z, 7, 11, 0).argmax(dim=-1).where(COUNTED, -100)
    expected = torch.stack([grad(loss_of_one)(*one) for one in zip(z, y, strict=True)])
    torch.testing.assert_close(vector, expected, rtol=1e-12, atol=1e-13)


def test_of_an_encoder_and_a_decoder_the_mask_of_the_decoder_tells_which_positions_count():
    z = torch.randn(3, POSITIONS, CLASSES, dtype=torch.float64)
    inputs = {"attention_mask": MASK, "decoder_input_ids": IDS, "decoder_attention_mask": 1 - MASK}
    (vector,) = Fisher("cross_entropy", "mc").vectors(z, None, 0, inputs)
    assert torch.equal(vector.any(dim=2), MASK == 0)


def test_drawn_classes_follow_the_softmax_at_each_position_and_know_nothing_of_each_other():
    z = torch.tensor([[0.0, 1.0, -30.0], [2.0, 0.0, 0.5]], dtype=torch.float64).expand(40_000, 2, 3)
    y = draw("cross_entropy", z, seed=1, first=0, index=0)
    p = z[0].softmax(dim=1)
    assert ((y.mean(dim=0) - p).abs() <= 4.4 * (p * (1 - p) / 40_000).sqrt()).all()
    both = torch.einsum("na,nb->ab", y[:, 0], y[:, 1]) / 40_000
    joint = torch.outer(*p)
    assert ((both - joint).abs() <= 4.4 * (joint * (1 - joint) / 40_000).sqrt()).all()


def test_one_position_is_a_row_of_logits():
    z, y = torch.randn(5, 4, dtype=torch.float64), torch.tensor([0, 3, 1, 1, 2])
    for fisher in ("mc", "exact", "empirical"):
        chosen = Fisher("cross_entropy", fisher, samples=2)
        for row, position in zip(
            chosen.vectors(z, y, 3), chosen.vectors(z[:, None], y[:, None], 3), strict=True
        ):
            assert torch.equal(row, position[:, 0])


def squared_distance(logits: Tensor, targets: Tensor) -> Tensor:
    return ((logits - F.one_hot(targets.clamp(min=0), CLASSES)) ** 2).flatten(1).sum(dim=1)


def test_a_loss_of_ones_own_is_the_one_of_the_same_formula():
    x, y = torch.randn(6, 5, dtype=torch.float64), torch.rand(6, 3, dtype=torch.float64)
    model = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    weighted = nn.Parameter(torch.ones(()).double())

    def own(logits: Tensor, targets: Tensor) -> Tensor:
        return ((logits - targets) ** 2).sum(dim=1) * weighted

    settings = {"fisher": "empirical", "progress": False}
    ours = ed.estimate_factors(model, [(x[:4], y[:4]), (x[4:], y[4:])], loss=own, **settings)
    theirs = ed.estimate_factors(model, [(x, y)], loss="mse", **settings)
    assert_same(ours, theirs)
    assert ours.settings.loss.endswith("test_a_loss_of_ones_own_is_the_one_of_the_same_formula.<locals>.own")
    for call in ("second_moments", "diagonal", "gradients"):
        found = getattr(ours, call)(model, [(x, y)], loss=own, progress=False)
        expected = getattr(theirs, call)(model, [(x, y)], progress=False)
        for name in expected:
            assert_close(found[name], expected[name])
    assert weighted.grad is None


def test_a_file_of_factors_has_the_name_of_the_loss_and_wants_it_again(tmp_path):
    data = [batch(labels=LABELS)]
    estimated(data, loss=squared_distance, fisher="empirical").save(tmp_path / "factors")
    factors = ed.Factors.load(tmp_path / "factors")
    name = "test_token_level.squared_distance"
    assert factors.settings.loss == name
    for wrong in (None, loss_of_one):
        with pytest.raises(
            ValueError, match=f"diagonal: loss must be that of the factors, '{name}', got .*; give a"
        ):
            factors.diagonal(Tagger(), data, loss=wrong, progress=False)
    factors.diagonal(Tagger(), data, loss=squared_distance, progress=False)
    with pytest.raises(
        ValueError, match="gradients: loss must be that of the factors, 'cross_entropy', got test_"
    ):
        estimated(data).gradients(Tagger(), data, loss=squared_distance, progress=False)


def test_prune_hands_a_loss_of_ones_own_on():
    data = [batch(labels=LABELS)]
    settings = {"target": {"ratio": 0.4}, "fisher": "empirical", "progress": False}
    made = ed.prune(Tagger(), data, loss=squared_distance, scores="ekfac", **settings)
    factors = estimated(data, loss=squared_distance, fisher="empirical")
    factors.second_moments(Tagger(), data, loss=squared_distance, progress=False)
    expected = ed.plan(Tagger(), factors, target={"ratio": 0.4}, scores="ekfac")
    assert made.plan.predicted_loss == expected.predicted_loss > 0


REFUSED = [
    (
        {},
        batch(labels=LABELS.masked_fill(MASK == 1, -100)),
        "a position that counts in every batch, got targets",
    ),
    ({"fisher": "empirical"}, batch(), "must yield .* for fisher='empirical', got inputs alone"),
    (
        {},
        batch(labels=LABELS[:, 0]),
        r"targets must be \(3, 4\), one for each position .*, got \(3,\); set -100",
    ),
    ({"fisher": "empirical"}, batch(labels=LABELS + 5), r"must lie in \[0, 3\), got -95 to 7"),
    (
        {},
        batch() | {"attention_mask": MASK[:, :2]},
        r"attention_mask must be \(3, 4\), .* got \(3, 2\); give targets",
    ),
    (
        {"loss": squared_distance},
        batch(labels=LABELS),
        "fisher must be 'empirical' for a loss of your own, got 'mc'",
    ),
    (
        {"loss": squared_distance, "fisher": "exact"},
        batch(),
        "fisher must be 'empirical' for a loss of your own",
    ),
    ({"loss": squared_distance, "fisher": "empirical"}, batch(), "must yield .* got inputs alone"),
    (
        {"loss": "hinge"},
        batch(),
        "loss must be one of 'cross_entropy', .* or a function of logits and targets, got",
    ),
    (
        {"loss": "mse"},
        batch(),
        r"logits for loss='mse' must have the shape \(N, C\) or \(N,\), got \(3, 4, 3\); flatten",
    ),
]


@pytest.mark.parametrize(("settings", "data", "message"), REFUSED)
def test_what_cannot_be_counted_is_refused(settings, data, message):
    with pytest.raises(ValueError, match=f"estimate_factors: .*{message}"):
        estimated([data], **settings)


@pytest.mark.parametrize(
    ("own", "message"),
    [
        (lambda z, y: z.sum(), r"a number for each of 3 examples, got torch.float64 \(\); sum over"),
        (lambda z, y: z.sum(dim=2), r"got torch.float64 \(3, 4\)"),
        (lambda z, y: z.sum(dim=(1, 2)).long(), r"got torch.int64 \(3,\)"),
        (lambda z, y: 3.0, "got float; sum"),
        (lambda z, y: z.detach().sum(dim=(1, 2)), "loss must depend on the logits by operations of PyTorch"),
        (
            lambda z, y: z.sum(dim=(1, 2)) / 0,
            "loss must have a finite gradient at finite logits, got NaN or infinity",
        ),
    ],
)
def test_a_loss_that_is_none_is_refused(own, message):
    with pytest.raises(ValueError, match=message):
        estimated([batch(labels=LABELS)], loss=own, fisher="empirical")


def test_an_own_losss_exception_leaves_no_trace():
    def broken(logits: Tensor, targets: Tensor) -> Tensor:
        torch.rand(1)
        raise KeyError("here")

    model, random = Tagger(), torch.get_rng_state()
    with pytest.raises(KeyError, match="here"):
        ed.estimate_factors(model, [batch(labels=LABELS)], loss=broken, fisher="empirical", progress=False)
    assert torch.equal(torch.get_rng_state(), random) and model.training
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())
