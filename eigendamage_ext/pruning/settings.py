"""The arguments of `plan`, checked before anything long begins."""

import math
from dataclasses import dataclass
from typing import Any

from eigendamage_ext.pruning.allocation import Target, parse_target
from eigendamage_ext.pruning.methods import METHODS
from eigendamage_ext.pruning.methods.directions import DirectionMethod
from eigendamage_ext.pruning.methods.filters import FilterMethod, Options

SCORES = ("kfac", "ekfac")
ALLOCATIONS = ("threshold", "least_loss")


@dataclass(frozen=True)
class Settings:
    """What `plan` was asked for; see there.

    Raises:
        ValueError, TypeError: An argument is out of range or of the wrong type.
    """

    target: Any
    method: str
    scores: str
    allocation: str
    max_ratio: float
    round_to: int
    prune_head: bool
    damping: float
    seed: int
    reference_compat: bool

    def __post_init__(self) -> None:
        goal = self.goal
        for argument, given, known in (
            ("method", self.method, tuple(METHODS)),
            ("scores", self.scores, SCORES),
            ("allocation", self.allocation, ALLOCATIONS),
        ):
            if given not in known:
                raise ValueError(f"plan: {argument} must be one of {', '.join(known)}, got {given!r}")
        if not self.cuts_directions:
            for argument, given, only in (
                ("scores", self.scores, SCORES[0]),
                ("allocation", self.allocation, ALLOCATIONS[0]),
            ):
                if given != only:
                    raise ValueError(
                        f"plan: {argument} must be left at {only!r} for method={self.method!r}, which cuts "
                        f"filters, got {given!r}"
                    )
        if self.allocation == "least_loss" and goal.measure == "ratio":
            raise ValueError(
                f"plan: target must be in flops or params for allocation='least_loss', got {self.target!r}; "
                "a ratio of units has no cost"
            )
        if self.allocation == "least_loss" and not self.cutter.predicts:
            raise ValueError(
                f"plan: allocation must be 'threshold' for method={self.method!r}, which does not predict "
                "all that is lost, got 'least_loss'"
            )
        _check_number("max_ratio", self.max_ratio)
        if not 0 <= self.max_ratio <= 1:
            raise ValueError(
                "plan: max_ratio must lie in [0, 1], the share of a side that may be cut, got "
                f"{self.max_ratio!r}"
            )
        for argument in ("prune_head", "reference_compat"):
            given = getattr(self, argument)
            if not isinstance(given, bool):
                raise TypeError(f"plan: {argument} must be True or False, got {given!r}")
        for argument in ("round_to", "seed"):
            given = getattr(self, argument)
            if isinstance(given, bool) or not isinstance(given, int):
                raise TypeError(f"plan: {argument} must be an integer, got {given!r}")
        if self.round_to < 1:
            raise ValueError(f"plan: round_to must be at least 1, got {self.round_to}")
        _check_number("damping", self.damping)
        if not 0 <= self.damping < math.inf:
            raise ValueError(f"plan: damping must be a number from 0 on, got {self.damping!r}")

    @property
    def goal(self) -> Target:
        """The target, read."""
        return parse_target(self.target)

    @property
    def cutter(self) -> DirectionMethod | FilterMethod:
        """The method, by its name."""
        return METHODS[self.method]

    @property
    def cuts_directions(self) -> bool:
        """Whether the method cuts directions, not filters."""
        return isinstance(self.cutter, DirectionMethod)

    @property
    def options(self) -> Options:
        """What the method is told."""
        return Options(self.damping, self.seed, self.reference_compat)

    def record(self) -> dict[str, Any]:
        """What counts for the method, as JSON."""
        names = ["method", "max_ratio", "round_to", "seed"]
        if self.cuts_directions:
            names += ["scores", "allocation", "prune_head"]
        else:
            names += ["damping", "reference_compat"]
        goal = self.goal
        return {"target": {goal.measure: goal.value}} | {name: getattr(self, name) for name in names}


def _check_number(argument: str, given: Any) -> None:
    if isinstance(given, bool) or not isinstance(given, int | float):
        raise TypeError(f"plan: {argument} must be a number, got {given!r}")
