"""What is asked of a network: a cut, or one round of several; or nothing, of the one that was trained."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .settings import Cut, Pruning, Settings

DENSE = "dense"


@dataclass(frozen=True)
class Asked:
    """A network after a cut, or after a round.

    Attributes:
        pruning, variant, cut: What is asked for; None, "dense" and None where that is nothing.
        step: Which round it is, from 1.
    """

    pruning: Pruning | None = None
    variant: str = DENSE
    cut: Cut | None = None
    step: int = 1

    @classmethod
    def all(cls, settings: Settings) -> Iterator["Asked"]:
        """Everything that is asked for, in order."""
        yield cls()
        for pruning in settings.pruning:
            for cut in pruning.cuts:
                for variant in pruning.variants:
                    for step in range(1, pruning.steps + 1):
                        yield cls(pruning, variant, cut, step)

    @property
    def budget(self) -> str:
        """In words."""
        if self.pruning is None or self.cut is None:
            return ""
        rounds = f", round {self.step}" if self.pruning.steps > 1 else ""
        return f"{self.cut.measure} {self.cut.value:g}{rounds}"

    @property
    def manner(self) -> str:
        """`Pruning.name`, or "dense"."""
        return self.pruning.name if self.pruning else DENSE

    @property
    def folder(self) -> Path:
        """Where its files go in the folder of a network."""
        if self.pruning is None:
            return Path(DENSE)
        place = Path(self.pruning.name) / self.variant / str(self.cut)
        return place / f"round-{self.step}" if self.pruning.steps > 1 else place

    @property
    def before(self) -> Path:
        """The folder of the round before."""
        return self.folder.with_name(f"round-{self.step - 1}")

    @property
    def kept(self) -> float:
        """Share of the work that is left, about."""
        if self.pruning is None or self.cut is None:
            return 1.0
        return self.cut.kept ** (self.step if self.cut.measure == "ratio" else self.step / self.pruning.steps)

    def record(self) -> dict[str, Any]:
        """As JSON."""
        found: dict[str, Any] = {"method": self.variant, "manner": self.manner}
        if self.cut is not None:
            found |= {"budget": self.cut.measure, "value": self.cut.value, "round": self.step}
        return found
