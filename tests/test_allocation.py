"""Budgets on plain numbers: targets, ranks, and the threshold against brute force."""

import itertools
import json
import math
from collections.abc import Callable
from fractions import Fraction
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eigendamage_ext.pruning import allocation
from eigendamage_ext.pruning.allocation import Side, Target, Term, allowed_ranks, parse_target


class Layer(NamedTuple):
    """Two sides, and what they cost together."""

    inputs: Side
    outputs: Side
    cost: Callable[[int, int], int]


def solve(layers, target, total):
    """Input and output rank of each layer."""
    sides = [side for layer in layers for side in (layer.inputs, layer.outputs)]
    terms = [Term((2 * l, 2 * l + 1), layer.cost) for l, layer in enumerate(layers)]
    ranks = allocation.solve(sides, terms, target, total)
    return list(zip(ranks[::2], ranks[1::2], strict=True))


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ({"flops": 0.5}, Target("flops", 0.5)),
        ({"params": 1}, Target("params", 1.0)),
        ({"flops": "50%"}, Target("flops", 0.5)),
        ({"params": " 12.5 % "}, Target("params", 0.125)),
        ({"flops": "33.3%"}, Target("flops", 0.333)),
        ({"ratio": 0}, Target("ratio", 0.0)),
        ({"ratio": np.float32(0.25)}, Target("ratio", 0.25)),
    ],
)
def test_targets(target, expected):
    assert parse_target(target) == expected


@pytest.mark.parametrize(
    ("target", "error", "message"),
    [
        (0.5, TypeError, r'target must be a dict such as \{"flops": 0.5\}, got 0.5'),
        ("50%", TypeError, "target must be a dict"),
        (None, TypeError, "got None"),
        ({}, ValueError, r"one key \(flops or params or ratio\), got \{\}"),
        ({"flops": 0.5, "params": 0.5}, ValueError, "one key"),
        ({"macs": 0.5}, ValueError, "must name flops or params or ratio, got 'macs'"),
        ({"flops": 0}, ValueError, r"the fraction kept, must lie in \(0, 1\], got 0"),
        ({"flops": 2}, ValueError, r"must lie in \(0, 1\], got 2"),
        ({"params": "150%"}, ValueError, r"must lie in \(0, 1\], got '150%'"),
        ({"flops": -0.1}, ValueError, r"must lie in \(0, 1\]"),
        ({"flops": math.nan}, ValueError, r"must lie in \(0, 1\], got nan"),
        ({"flops": math.inf}, ValueError, r"must lie in \(0, 1\]"),
        ({"flops": "nan%"}, ValueError, r"must lie in \(0, 1\]"),
        ({"ratio": 1}, ValueError, r"the share cut, must lie in \[0, 1\), got 1"),
        ({"ratio": "100%"}, ValueError, r"\[0, 1\)"),
        ({"flops": "abc"}, ValueError, "must be a number or a percentage such as \"50%\", got 'abc'"),
        ({"flops": "0.5"}, ValueError, "a percentage"),
        ({"flops": "5%%"}, ValueError, "a percentage"),
        ({"flops": "%"}, ValueError, "a percentage"),
        ({"flops": True}, TypeError, "must be a number or a percentage .*, got True"),
        ({"flops": None}, TypeError, "got None"),
        ({"flops": [0.5]}, TypeError, "got"),
    ],
)
def test_bad_targets_are_refused_with_what_was_given(target, error, message):
    with pytest.raises(error, match=message):
        parse_target(target)


@pytest.mark.parametrize(
    ("width", "max_ratio", "round_to", "expected"),
    [
        (4, 1, 1, [1, 2, 3, 4]),
        (4, 0.5, 1, [2, 3, 4]),
        (4, 0, 1, [4]),
        (1, 1, 1, [1]),
        (20, 0.95, 1, list(range(1, 21))),
        (100, 0.29, 1, list(range(71, 101))),
        (10, 0.95, 4, [4, 8, 10]),
        (8, 0.95, 4, [4, 8]),
        (16, 0.5, 3, [9, 12, 15, 16]),
        (3, 0.95, 8, [3]),
    ],
)
def test_allowed_ranks(width, max_ratio, round_to, expected):
    assert allowed_ranks(width, max_ratio=max_ratio, round_to=round_to) == expected


def layer(inputs, outputs, cost, round_to=1, max_ratio=1.0):
    return Layer(
        *(Side(s, allowed_ranks(len(s), max_ratio=max_ratio, round_to=round_to)) for s in (inputs, outputs)),
        cost=cost,
    )


scores = st.lists(st.integers(0, 6).map(float), min_size=1, max_size=5).map(lambda s: sorted(s, reverse=True))


@st.composite
def layers(draw):
    """A layer with the costs of three forms, of which dense and one-sided ones make plateaus."""
    inputs, outputs = draw(scores), draw(scores)
    m, n = len(inputs), len(outputs)
    k, p = draw(st.integers(1, 9)), draw(st.integers(1, 4))

    def cost(i, o):
        return min(k * m * n, p * m * i + k * i * n, k * m * o + o * n, p * m * i + k * i * o + o * n)

    return layer(inputs, outputs, cost, draw(st.integers(1, 3)), draw(st.sampled_from([0.5, 0.95, 1.0])))


@st.composite
def problems(draw):
    chosen = draw(st.lists(layers(), min_size=1, max_size=3))
    other = draw(st.integers(0, 50))
    total = other + sum(x.cost(len(x.inputs.scores), len(x.outputs.scores)) for x in chosen)
    return chosen, Target("flops", draw(st.integers(5, 100)) / 100), total, other


def spent(layers, ranks, other):
    return other + sum(x.cost(*r) for x, r in zip(layers, ranks, strict=True))


def next_ranks(layers, ranks):
    """Every way to raise one rank by one step: (score of the best unit it restores, layer, ranks then)."""
    for index, (x, pair) in enumerate(zip(layers, ranks, strict=True)):
        for s, side in enumerate((x.inputs, x.outputs)):
            higher = [r for r in side.ranks if r > pair[s]]
            if higher:
                raised = (higher[0], pair[1]) if s == 0 else (pair[0], higher[0])
                yield side.scores[pair[s]], index, raised


def brute_force(layers, target, total, other):
    """Every threshold in turn, then every step in turn."""
    budget = math.floor(Fraction(repr(target.value)) * total)

    def at(threshold):
        def rank(side):
            kept = sum(score > threshold for score in side.scores)
            return min(r for r in side.ranks if r >= kept)

        return [(rank(x.inputs), rank(x.outputs)) for x in layers]

    every = sorted({-1.0, *itertools.chain(*((*x.inputs.scores, *x.outputs.scores) for x in layers))})
    fitting = [at(t) for t in every if spent(layers, at(t), other) <= budget]
    if not fitting:
        return None
    ranks = fitting[0]
    while True:
        for _, index, raised in sorted(next_ranks(layers, ranks), key=lambda step: -step[0]):
            trial = [*ranks[:index], raised, *ranks[index + 1 :]]
            if spent(layers, trial, other) <= budget:
                ranks = trial
                break
        else:
            return ranks


examples = settings(max_examples=300, deadline=None, derandomize=True)


@examples
@given(problems())
def test_the_threshold_is_that_of_brute_force(problem):
    layers, target, total, _ = problem
    expected = brute_force(*problem)
    if expected is None:
        with pytest.raises(ValueError, match="nearest reachable value"):
            solve(layers, target, total)
    else:
        assert solve(layers, target, total) == expected


@examples
@given(problems())
def test_the_target_is_met_from_below_and_nothing_more_fits(problem):
    layers, target, total, other = problem
    try:
        ranks = solve(layers, target, total)
    except ValueError:
        ranks = [(x.inputs.ranks[0], x.outputs.ranks[0]) for x in layers]
        assert spent(layers, ranks, other) > target.kept * total
        return
    assert spent(layers, ranks, other) <= target.kept * total
    for x, (i, o) in zip(layers, ranks, strict=True):
        assert i in x.inputs.ranks and o in x.outputs.ranks
    for _, index, raised in next_ranks(layers, ranks):
        more = [*ranks[:index], raised, *ranks[index + 1 :]]
        assert spent(layers, more, other) > target.kept * total


@examples
@given(problems())
def test_the_nearest_value_in_the_message_is_reachable_and_a_little_less_is_not(problem):
    layers, _, total, _ = problem
    with pytest.raises(ValueError, match="must be reachable") as error:
        solve(layers, Target("flops", 1e-9), total)
    nearest = parse_target(json.loads(str(error.value).split("value is ")[1].split(", with")[0]))
    solve(layers, nearest, total)
    with pytest.raises(ValueError, match="must be reachable"):
        solve(layers, Target("flops", nearest.value - 2e-4), total)


def test_one_threshold_holds_for_all_layers():
    a = layer([9.0, 5.0, 1.0], [8.0, 4.0], lambda i, o: i + o)
    b = layer([7.0, 3.0], [6.0, 2.0, 0.0], lambda i, o: i + o)
    assert solve([a, b], Target("ratio", 0.5), 10) == [(2, 1), (1, 1)]
    assert solve([a, b], Target("ratio", 0.0), 10) == [(3, 2), (2, 3)]


def test_ratio_names_the_largest_share_that_can_be_cut():
    one = layer([3.0, 2.0, 1.0, 0.0], [3.0, 2.0, 1.0, 0.0], lambda i, o: i + o, max_ratio=0.5)
    with pytest.raises(
        ValueError, match=r'got \{"ratio": 0.75\}; the nearest reachable value is \{"ratio": 0.5\}'
    ):
        solve([one], Target("ratio", 0.75), 8)
    assert solve([one], Target("ratio", 0.5), 8) == [(2, 2)]


def test_equal_scores_are_broken_by_order():
    a, b = (layer([1.0] * 3, [1.0] * 3, lambda i, o: i + o) for _ in range(2))
    assert solve([a, b], Target("ratio", 0.5), 12) == [(3, 1), (1, 1)]


def test_a_layer_that_is_not_cheaper_stays_whole():
    plateau = layer([2.0, 1.0, 0.0], [2.0, 1.0, 0.0], lambda i, o: min(9, 6 * i + o * o))
    other = layer([5.0, 4.0], [5.0, 4.0], lambda i, o: 10 * i * o)
    assert solve([plateau, other], Target("flops", 0.6), 49) == [(3, 3), (2, 1)]


def test_no_layers():
    assert solve([], Target("flops", 1.0), 10) == []
    with pytest.raises(ValueError, match=r'nearest reachable value is \{"flops": 1.0\}'):
        solve([], Target("flops", 0.5), 10)


def test_sides_that_share_terms_are_those_of_brute_force():
    """A chain of convolutions: each but the last makes the inputs of the next."""
    generator = np.random.default_rng(0)
    for _ in range(200):
        widths = generator.integers(1, 5, size=3)
        sides = [
            Side(sorted(map(float, generator.integers(0, 7, size=n)), reverse=True), range(1, n + 1))
            for n in widths.tolist()
        ]
        first, last = generator.integers(1, 5, size=2).tolist()
        terms = [
            Term((0,), lambda a, first=first: 2 * first * a),
            Term((0, 1), lambda a, b: 3 * a * b),
            Term((1, 2), lambda b, c: b * c),
            Term((2, 0), lambda c, a: c + a),
            Term((2,), lambda c, last=last: c * last),
        ]

        def spent(ranks, terms=terms):
            return sum(term.cost(*(ranks[s] for s in term.sides)) for term in terms)

        other = int(generator.integers(0, 10))
        total = other + spent(widths.tolist())
        share = float(generator.integers(20, 100)) / 100
        budget = math.floor(Fraction(repr(share)) * total) - other
        fitting = []
        for threshold in sorted({-1.0, *(score for side in sides for score in side.scores)}):
            ranks = [max(1, sum(score > threshold for score in side.scores)) for side in sides]
            if spent(ranks) <= budget:
                fitting = ranks
                break
        if not fitting:
            with pytest.raises(ValueError, match="nearest reachable value"):
                allocation.solve(sides, terms, Target("flops", share), total)
            continue
        while True:
            steps = [
                (-side.scores[fitting[s]], s) for s, side in enumerate(sides) if fitting[s] < len(side.scores)
            ]
            for _, s in sorted(steps):
                more = [*fitting[:s], fitting[s] + 1, *fitting[s + 1 :]]
                if spent(more) <= budget:
                    fitting = more
                    break
            else:
                break
        assert allocation.solve(sides, terms, Target("flops", share), total) == fitting
