"""Budgets: how many directions or filters every layer keeps so that the network costs what was asked for.

Numbers in, numbers out; nothing here knows a module.
"""

import heapq
import json
import math
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from numbers import Real
from typing import Any

MEASURES = ("flops", "params", "ratio")


@dataclass(frozen=True)
class Target:
    """What the network shall cost.

    Attributes:
        measure: "flops" or "params": `value` is the fraction kept; "ratio": the share of units cut.
        value: In (0, 1], of a ratio in [0, 1).
        exact: The fraction kept, where `value` is only the float nearest to it.
        yielding: Whether units that may not be cut stay although the target would cut them, as in the paper;
            otherwise a target that asks for them is an error.
    """

    measure: str
    value: float
    exact: Fraction | None = None
    yielding: bool = False

    @property
    def kept(self) -> Fraction:
        """The fraction kept, exactly as it was written in decimals."""
        if self.exact is not None:
            return self.exact
        value = Fraction(repr(self.value))
        return 1 - value if self.measure == "ratio" else value

    def __str__(self) -> str:
        return json.dumps({self.measure: self.value})


class UnreachableError(ValueError):
    """Even with every layer that may be cut at its smallest, the network costs more than was asked for.

    Attributes:
        nearest: The nearest target that can be met, where there is one.
    """

    def __init__(self, message: str, nearest: Target | None = None) -> None:
        super().__init__(message)
        self.nearest = nearest


def parse_target(target: Any) -> Target:
    """Reads ``{"flops": 0.5}``, ``{"params": "50%"}`` or ``{"ratio": 0.4}``; a `Target` is one already.

    Raises:
        TypeError: Not a mapping, or a value that is neither a number nor a string.
        ValueError: Another key, several keys, or a value out of range.
    """
    if isinstance(target, Target):
        return target
    if not isinstance(target, Mapping):
        raise TypeError(f'plan: target must be a dict such as {{"flops": 0.5}}, got {target!r}')
    if len(target) != 1:
        raise ValueError(f"plan: target must have one key ({' or '.join(MEASURES)}), got {target!r}")
    [(measure, given)] = target.items()
    if measure not in MEASURES:
        raise ValueError(f"plan: target must name {' or '.join(MEASURES)}, got {measure!r}")
    value = _fraction(measure, given)
    if measure == "ratio":
        if not 0 <= value < 1:
            raise ValueError(f"plan: target['ratio'], the share cut, must lie in [0, 1), got {given!r}")
    elif not 0 < value <= 1:
        raise ValueError(f"plan: target[{measure!r}], the fraction kept, must lie in (0, 1], got {given!r}")
    return Target(measure, value)


def _fraction(measure: str, given: Any) -> float:
    rule = f'plan: target[{measure!r}] must be a number or a percentage such as "50%", got {given!r}'
    if isinstance(given, str):
        number = given.strip()
        try:
            if number.endswith("%"):
                return float(Decimal(number[:-1]) / 100)
        except ArithmeticError:
            pass
        raise ValueError(rule)
    if isinstance(given, bool) or not isinstance(given, Real):
        raise TypeError(rule)
    return float(given)


def allowed_ranks(width: int, *, max_ratio: float, round_to: int) -> list[int]:
    """How many of `width` directions may be kept, ascending: multiples of `round_to`, or everything.

    At most ``max_ratio`` of them is cut, and the best one always stays.
    """
    least = max(1, width - math.floor(Fraction(repr(float(max_ratio))) * width))
    return [rank for rank in range(round_to, width, round_to) if rank >= least] + [width]


@dataclass(frozen=True)
class Side:
    """Something of which a number of units is kept: one side of a layer, or a group of coupled filters.

    Attributes:
        scores: One for each unit, best first, finite and never ascending.
        ranks: How many units may be kept, ascending; the last is all of them.
    """

    scores: Sequence[float]
    ranks: Sequence[int]

    def index_above(self, threshold: float) -> int:
        """Index into `ranks` of the smallest that keeps every unit scored above the threshold."""
        units = bisect_left(self.scores, -threshold, key=lambda score: -score)
        return bisect_left(self.ranks, units)


@dataclass(frozen=True)
class Term:
    """A part of the network whose cost depends on some sides.

    Attributes:
        sides: Numbers of the sides.
        cost: Cost in the budget's measure of their ranks: an integer, never falling in any of them.
    """

    sides: tuple[int, ...]
    cost: Callable[..., int]


def allowed(target: Target, total: int, fixed: int, *, least: int) -> int:
    """What the layers that may be cut may cost together.

    Args:
        target: Which measure, and how much of it.
        total: What the whole network costs uncut in this measure.
        fixed: What the part of it costs that stays as it is.
        least: What the layers cost at their smallest ranks.

    Raises:
        UnreachableError: That is too much; the message names the nearest reachable value.
    """
    allowance = math.floor(target.kept * total) - fixed
    if least <= allowance or target.yielding:
        return max(least, allowance)
    kept = math.ceil(Fraction(fixed + least, total) * 10_000) if total else 10_000
    nearest = Target(target.measure, (10_000 - kept if target.measure == "ratio" else kept) / 10_000)
    raise UnreachableError(
        f"plan: target must be reachable, got {target}; the nearest reachable value is {nearest}, with every "
        "layer that may be cut at its smallest rank; raise max_ratio, lower round_to or ignore fewer layers",
        nearest,
    )


def solve(sides: Sequence[Side], terms: Sequence[Term], target: Target, total: int) -> list[int]:
    """Ranks under one global threshold whose total cost meets the target from below.

    The lowest threshold on the scores of all units that meets the target is found by bisection; then the
    units it cut come back, best first, wherever the next rank of their side still fits, until none does.
    So no single side can keep more: what is left below the target is less than the smallest step.

    Args:
        sides: Those that may be cut.
        terms: What depends on them.
        target: Which measure, and how much of it.
        total: What the whole network costs uncut in this measure, the terms included.

    Returns:
        The rank of each side.

    Raises:
        UnreachableError: Even the smallest allowed ranks cost too much; the message names the nearest value.
    """

    def spent(indices: Sequence[int]) -> int:
        return sum(_cost(sides, term, indices) for term in terms)

    fixed = total - spent([len(side.ranks) - 1 for side in sides])
    allowance = allowed(target, total, fixed, least=spent([0] * len(sides)))
    thresholds = [-math.inf, *sorted({score for side in sides for score in side.scores})]

    def indices(k: int) -> list[int]:
        return [side.index_above(thresholds[k]) for side in sides]

    def fits(k: int) -> bool:
        return spent(indices(k)) <= allowance

    chosen = indices(bisect_left(range(len(thresholds)), True, key=fits))
    _bring_back(sides, terms, chosen, allowance)
    return [side.ranks[at] for side, at in zip(sides, chosen, strict=True)]


def _cost(sides: Sequence[Side], term: Term, indices: Sequence[int]) -> int:
    """Cost of a term at indices into the ranks of the sides."""
    return term.cost(*(sides[s].ranks[indices[s]] for s in term.sides))


def _bring_back(sides: Sequence[Side], terms: Sequence[Term], chosen: list[int], allowance: int) -> None:
    """Raises ranks while they fit, by the best unit each step restores; changes the indices in `chosen`."""
    of_side: list[list[int]] = [[] for _ in sides]
    for t, term in enumerate(terms):
        for s in term.sides:
            of_side[s].append(t)
    # A step may make another one fit that failed before: it may lead to another form of their layer.
    neighbours = [sorted({n for t in of_side[s] for n in terms[t].sides} | {s}) for s in range(len(sides))]
    heap: list[tuple[float, int, int]] = []

    def offer(s: int) -> None:
        at = chosen[s]
        if at + 1 < len(sides[s].ranks):
            heapq.heappush(heap, (-sides[s].scores[sides[s].ranks[at]], s, at))

    for s in range(len(sides)):
        offer(s)
    costs = [_cost(sides, term, chosen) for term in terms]
    slack = allowance - sum(costs)
    while heap:
        _, s, at = heapq.heappop(heap)
        if chosen[s] != at:
            continue
        chosen[s] += 1
        raised = {t: _cost(sides, terms[t], chosen) for t in of_side[s]}
        step = sum(cost - costs[t] for t, cost in raised.items())
        if step > slack:
            chosen[s] -= 1
            continue
        slack -= step
        for t, cost in raised.items():
            costs[t] = cost
        for n in neighbours[s]:
            offer(n)
