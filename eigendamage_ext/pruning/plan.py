"""A plan: what becomes of every layer, what that costs and what it loses; editable, nothing changed yet."""

import difflib
import json
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, NamedTuple, Protocol, TypeVar

from torch import nn

from eigendamage_ext._adapter import Inputs, map_tensors, named_tensors
from eigendamage_ext._files import weights_digest
from eigendamage_ext._finite import check_finite
from eigendamage_ext.curvature.layers import LayerSpec, check_layer
from eigendamage_ext.curvature.state import check_model
from eigendamage_ext.pruning.measure import Measurement, dtype_of, measure
from eigendamage_ext.pruning.table import change, table


class Change(NamedTuple):
    """A number before and after."""

    before: int
    after: int


class Row(Protocol):
    """What becomes of one layer, as far as every plan tells it.

    Attributes:
        name: Its name in the model.
        spec: The layer in numbers.
        params: Parameters before and after.
        flops: FLOPs of one example before and after, 2·MAC.
        predicted_loss: Increase of the mean loss that the method predicts for this cut alone; None if it
            does not predict any.
        note: Why the layer was left alone, or that it was set by hand.
    """

    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def spec(self) -> LayerSpec: ...  # noqa: D102
    @property
    def params(self) -> Change: ...  # noqa: D102
    @property
    def flops(self) -> Change: ...  # noqa: D102
    @property
    def predicted_loss(self) -> float | None: ...  # noqa: D102
    @property
    def note(self) -> str: ...  # noqa: D102


R = TypeVar("R", bound=Row)


class Plan(Mapping[str, R], ABC, Generic[R]):
    """What becomes of every layer, by name: made by `plan`, edited by `set`, carried out by `apply`.

    Attributes:
        settings: What it was made with, as JSON: target, method and the arguments that count for it, and
            under "factors" the settings of the factors.
        skipped: Why a layer is not in the plan, by name.
        params_before: Parameters of the whole model.
        flops_before: FLOPs of the whole model for one example, as `torch.utils.flop_counter` counts them.
    """

    COLUMNS: ClassVar[Mapping[str, str]]  # of the table: title, and "left" or "right"

    def __init__(
        self,
        rows: Mapping[str, R],
        *,
        settings: Mapping[str, Any],
        skipped: Mapping[str, str],
        original: Measurement,
        example: Inputs,
    ) -> None:
        self._rows = dict(rows)
        self._example, self._dtype = example, original.dtype
        self.settings = dict(settings)
        self.skipped = dict(skipped)
        self.params_before = original.params
        self.flops_before = original.flops

    def __getitem__(self, name: str) -> R:
        return self._rows[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def example(self) -> Inputs:
        """The inputs whose FLOPs count: a tensor, a tuple or a mapping, tensors ``(1, ...)``."""
        return self._example

    @property
    def target(self) -> dict[str, float]:
        """What was asked for: {"flops": 0.5}."""
        return dict(self.settings["target"])

    @property
    def params_after(self) -> int:
        """Parameters of the whole model once the plan is carried out."""
        return self.params_before - sum(row.params.before - row.params.after for row in self.values())

    @property
    def flops_after(self) -> int:
        """FLOPs of the whole model for one example once the plan is carried out."""
        return self.flops_before - sum(row.flops.before - row.flops.after for row in self.values())

    @property
    def predicted_loss(self) -> float | None:
        """Sum over the layers, as no model here has terms between layers; None if none is predicted."""
        losses = [row.predicted_loss for row in self.values() if row.predicted_loss is not None]
        return sum(losses) if losses else None

    def __str__(self) -> str:
        rows = [
            (
                row.name,
                *self._cells(row),
                change(*row.params),
                change(*row.flops),
                _loss(row.predicted_loss),
                row.note,
            )
            for row in self.values()
        ]
        blank = [""] * (len(self.COLUMNS) - 5)
        rows += [(name or "the model", *blank, "", "", "", reason) for name, reason in self.skipped.items()]
        totals = (
            "whole model",
            *blank,
            change(self.params_before, self.params_after),
            change(self.flops_before, self.flops_after),
            _loss(self.predicted_loss),
            "",
        )
        return f"{self._title()}\n{table(self.COLUMNS, rows, totals)}"

    @abstractmethod
    def set(self, *args: Any, **kwargs: Any) -> None:
        """Edits a layer; costs and predicted loss follow."""

    def apply(self, model: nn.Module, *, inplace: bool = False) -> "PruneResult":
        """Carries the plan out.

        New weights come from those of the model at hand, which may differ from those that were scored (a
        moving average, another dtype); its layers must have the same names and shapes.

        Args:
            model: The model, left as it is unless `inplace`.
            inplace: Change `model` itself.

        Raises:
            ValueError: A layer is missing or of another shape, or a weight is not finite; nothing has been
                changed then.
        """
        check_model(model, caller="apply")
        check_finite(model, caller="apply")
        for row in self.values():
            check_layer(model, row.spec, caller="apply", origin="the plan")
        example, dtype = self._example, dtype_of(model)
        if dtype != self._dtype:
            example = map_tensors(lambda x: x.to(dtype) if x.is_floating_point() else x, example)
        before, parent = measure(model, example), weights_digest(model.state_dict())
        whole = [(module, dict(module._modules)) for module in model.modules()] if inplace else []
        try:
            rebuilt = self._rebuild(model, inplace)
            after = measure(rebuilt, example)
        except BaseException:
            for module, children in whole:
                module._modules.update(children)
            raise
        return PruneResult(rebuilt, self, before.params, after.params, before.flops, after.flops, parent)

    def record(self) -> dict[str, Any]:
        """All that the plan says, as JSON."""
        return {
            "settings": self.settings,
            "params": [self.params_before, self.params_after],
            "flops": [self.flops_before, self.flops_after],
            "predicted_loss": self.predicted_loss,
            "example": {
                name: [list(tensor.shape[1:]), str(tensor.dtype).removeprefix("torch.")]
                for name, tensor in named_tensors(self._example)
            },
            "skipped": self.skipped,
            "layers": {
                name: {
                    **self._shape(row),
                    "params": row.params,
                    "flops": row.flops,
                    "predicted_loss": row.predicted_loss,
                    "note": row.note,
                }
                for name, row in self.items()
            },
        }

    def _title(self) -> str:
        return f"{self.settings['method']}, target {json.dumps(self.target)}"

    @abstractmethod
    def _cells(self, row: R) -> Sequence[str]:
        """The cells of a row between the layer's name and its parameters."""

    @abstractmethod
    def _shape(self, row: R) -> dict[str, Any]:
        """What the layer becomes, as JSON."""

    @abstractmethod
    def _rebuild(self, model: nn.Module, inplace: bool) -> nn.Module:
        """The smaller model."""

    def _check_name(self, name: str, known: Iterable[str], caller: str) -> None:
        """Refuses what is no layer of the plan, with the nearest names."""
        known = list(known)
        if name in known:
            return
        if name in self.skipped:
            remedy = f"it was skipped: {self.skipped[name]}"
        else:
            nearest = difflib.get_close_matches(name, known, cutoff=0.0)
            remedy = f"the nearest names are {', '.join(map(repr, nearest))}"
        raise ValueError(f"plan.{caller}: name must be a layer of the plan, got {name!r}; {remedy}")


def _loss(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"


@dataclass(frozen=True)
class PruneResult:
    """A pruned model, the plan it came from, and what both models cost, measured.

    Attributes:
        model: The smaller model, in the train or eval mode of the original.
        plan: What was done.
        params_before: Parameters of the original.
        params_after: Parameters of `model`.
        flops_before: FLOPs of the original for one example, counted by `torch.utils.flop_counter`.
        flops_after: FLOPs of `model`, counted likewise.
        parent: SHA-256 of the original's state; its file tells the same of itself.
    """

    model: nn.Module
    plan: Plan[Any]
    params_before: int
    params_after: int
    flops_before: int
    flops_after: int
    parent: str

    def __str__(self) -> str:
        return (
            f"{self.plan}\nmeasured: parameters {self.params_before:,} → {self.params_after:,}, "
            f"FLOPs {self.flops_before:,} → {self.flops_after:,}"
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the model, with the plan as its provenance; see `eigendamage_ext.save`."""
        from eigendamage_ext.artifact import save  # the artefact stands above pruning

        save(self, path)

    def export(self, path: str | os.PathLike[str], *, example_inputs: Any = None) -> None:
        """Writes the model for another runtime, ``.pt2`` or ``.onnx``; see `eigendamage_ext.export`."""
        from eigendamage_ext.artifact.export import export  # the artefact stands above pruning

        export(self, path, example_inputs=example_inputs)

    def report(self, path: str | os.PathLike[str], **options: Any) -> None:
        """Writes one HTML page of what was cut and why.

        With the original network it tells how much faster this one is, with a loader too what it lost.

        Args:
            path: Where the page goes.
            options: See `eigendamage_ext.report.gather`: model, loader, factors, …
        """
        from eigendamage_ext.report import gather, write_report  # likewise

        write_report(path, gather(self, **options))
