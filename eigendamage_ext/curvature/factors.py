"""Kronecker factors of a model's layers: estimating, keeping and storing them."""

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from eigendamage_ext._files import ArtifactError, read_tensors, write_tensors
from eigendamage_ext.curvature.batches import batches
from eigendamage_ext.curvature.checks import check_integer, check_word
from eigendamage_ext.curvature.collector import Collector
from eigendamage_ext.curvature.eigenbasis import Eigenbasis
from eigendamage_ext.curvature.fisher import FISHERS, LOSSES, Fisher
from eigendamage_ext.curvature.layers import LayerSpec, Patterns, select
from eigendamage_ext.curvature.moments import KINDS, WEIGHT_SHARINGS, factor_shapes
from eigendamage_ext.curvature.state import check_model, device_of, preserved

FORMAT = "eigendamage-factors"


@dataclass(frozen=True)
class LayerFactors:
    """A layer's Fisher block is about G ⊗ A.

    Attributes:
        A: Second moment of its inputs, ``(D, D)`` or, with groups, ``(g, D, D)``.
        G: Second moment of its output gradients, ``(c_out, c_out)`` or ``(g, c_out/g, c_out/g)``.
        count: Number of examples seen.
    """

    A: Tensor
    G: Tensor
    count: int


@dataclass(frozen=True)
class FactorSettings:
    """How factors were estimated, and from what.

    Attributes:
        loss, fisher, samples, kind, weight_sharing, seed: As given to `estimate_factors`.
        count: Number of examples seen.
        example_shape: Shape of the first input example, without the batch dimension.
        example_dtype: Its dtype, such as "float32".
    """

    loss: str
    fisher: str
    samples: int
    kind: str
    weight_sharing: str
    seed: int
    count: int
    example_shape: tuple[int, ...]
    example_dtype: str


class Factors(Mapping[str, LayerFactors]):
    """Kronecker factors by layer name.

    Attributes:
        layers: The factors, in the order of the model.
        specs: The layers in numbers.
        skipped: Layers without factors, with the reason.
        settings: How the factors were estimated.
    """

    def __init__(
        self,
        layers: Mapping[str, LayerFactors],
        specs: Mapping[str, LayerSpec],
        skipped: Mapping[str, str],
        settings: FactorSettings,
    ) -> None:
        self.layers, self.specs, self.skipped = dict(layers), dict(specs), dict(skipped)
        self.settings = settings

    def __getitem__(self, name: str) -> LayerFactors:
        return self.layers[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.layers)

    def __len__(self) -> int:
        return len(self.layers)

    def __repr__(self) -> str:
        return f"Factors({len(self)} layers, {len(self.skipped)} skipped, {self.settings})"

    def eigenbasis(self) -> Eigenbasis:
        """The eigenvalues and eigenvectors of all factors, computed at the first call and kept."""
        return self._eigenbasis

    @cached_property
    def _eigenbasis(self) -> Eigenbasis:
        return Eigenbasis.of({name: (layer.A, layer.G) for name, layer in self.items()})

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes one safetensors file, atomically."""
        tensors = {
            f"{name}.{side}": getattr(layer, side) for name, layer in self.items() for side in ("A", "G")
        }
        manifest = {
            "settings": asdict(self.settings),
            "layers": [asdict(self.specs[name]) for name in self],
            "skipped": self.skipped,
        }
        write_tensors(path, tensors, manifest, format=FORMAT)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Factors":
        """Reads what `save` wrote, onto the CPU; runs no code from the file.

        Raises:
            ArtifactError: The file is missing, truncated, corrupted, of another format or of a newer version.
        """
        tensors, manifest = read_tensors(path, format=FORMAT)
        try:
            settings = FactorSettings(**_tuples(manifest["settings"]))
            specs = {
                spec.name: spec for spec in (LayerSpec(**_tuples(numbers)) for numbers in manifest["layers"])
            }
            skipped = dict(manifest["skipped"])
            layers = {
                name: LayerFactors(tensors[f"{name}.A"], tensors[f"{name}.G"], settings.count)
                for name in specs
            }
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ArtifactError(
                f"load: {str(path)!r} must describe all its factors, got an incomplete manifest ({error!r}); "
                "save it again"
            ) from error
        for name, layer in layers.items():
            found = layer.A.shape, layer.G.shape
            if found != factor_shapes(specs[name], settings.kind):
                raise ArtifactError(
                    f"load: {str(path)!r} must hold factors that fit layer {name!r}, got shapes "
                    f"{tuple(found[0])} and {tuple(found[1])}; save it again"
                )
        return cls(layers, specs, skipped, settings)


def estimate_factors(
    model: nn.Module,
    loader: Iterable[Any],
    *,
    loss: str = "cross_entropy",
    fisher: str = "mc",
    samples: int = 1,
    kind: str = "channel",
    weight_sharing: str = "expand",
    layers: Patterns | None = None,
    max_examples: int | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Factors:
    """Estimates the Kronecker factors of every Conv2d and Linear of a model in one pass over a loader.

    With a_nt the input patch of example n at output position t, a_ntk its pixel at kernel offset k, and g_nt
    the gradient of that example's own loss at the layer's output,

        patch    A = 1/(N·T)   Σ_n Σ_t     a_nt a_ntᵀ        Grosse & Martens 2016
        channel  A = 1/(N·T·K) Σ_n Σ_t Σ_k a_ntk a_ntkᵀ      Wang et al. 2019
                 G = 1/N       Σ_n Σ_t     g_nt g_ntᵀ        summed over the vectors of the Fisher

    The model runs in eval mode and is left as it was: weights, gradients, requires_grad, buffers, modes,
    hooks and the random state, whatever happens.

    Args:
        model: Returns logits ``(N, C)`` for an input ``(N, …)``; "mse" and "bce_with_logits" allow ``(N,)``.
        loader: Yields ``(input, target)`` or inputs alone; batches move to the model's device.
        loss: "cross_entropy", "mse" (Σ(z − y)², no ½) or "bce_with_logits", summed over an example's outputs.
        fisher: "mc", gradients at labels drawn from the model; "exact", the expectation over such labels, one
            backward pass for each output; or "empirical", gradients at the given labels.
        samples: Number of draws for "mc". A draw depends on the seed, the example's number and its own alone.
        kind: "channel" (c_in × c_in, offsets of a kernel share it) or "patch" (c_in·K, and 1 for a bias).
        weight_sharing: "expand", each position a row of its own; or "reduce", the mean input and the summed
            gradient of an example (Eschenhagen et al. 2023); each layer's input must then start with N.
        layers: Only these: exact names, globs or module types, one or several.
        max_examples: Stop after exactly that many, within a batch if need be.
        seed: Seed of the draws.
        progress: Show a progress bar.

    Returns:
        The factors, on the device of each layer, in its dtype (halves: float32).

    Raises:
        TypeError, ValueError: Naming the argument, layer or batch, and the remedy.
    """
    check_word("loss", loss, LOSSES)
    check_word("fisher", fisher, FISHERS)
    check_word("kind", kind, KINDS)
    check_word("weight_sharing", weight_sharing, WEIGHT_SHARINGS)
    samples = check_integer("samples", samples, least=1)
    seed = check_integer("seed", seed)
    if max_examples is not None:
        max_examples = check_integer("max_examples", max_examples, least=1)
    check_model(model)
    covered, skipped = select(model, layers)
    _check_any(covered, skipped)
    chosen = Fisher(loss, fisher, samples, seed)
    count, example_shape, example_dtype = 0, torch.Size(), ""
    with preserved(model):
        collector = Collector(covered, kind=kind, weight_sharing=weight_sharing)
        stream = batches(
            loader,
            device=device_of(model),
            max_examples=max_examples,
            description="Kronecker factors",
            progress=progress,
        )
        with collector.attached(), closing(stream):
            for batch in stream:
                collector.collect(model, batch, chosen)
                if count == 0:
                    example_shape, example_dtype = batch.inputs.shape[1:], str(batch.inputs.dtype)
                count += len(batch)
        sums = collector.factors(count)
    skipped = {
        name: reason
        for name, _ in model.named_modules()
        if (reason := skipped.get(name) or collector.dropped.get(name))
    }
    _check_any(sums, skipped)
    return Factors(
        {name: LayerFactors(A, G, count) for name, (A, G) in sums.items()},
        {name: LayerSpec.of(name, covered[name]) for name in sums},
        skipped,
        FactorSettings(
            loss=loss,
            fisher=fisher,
            samples=samples,
            kind=kind,
            weight_sharing=weight_sharing,
            seed=seed,
            count=count,
            example_shape=tuple(example_shape),
            example_dtype=example_dtype.removeprefix("torch."),
        ),
    )


def _check_any(layers: Mapping[str, Any], skipped: Mapping[str, str]) -> None:
    """Refuses to go on without a single layer."""
    if not layers:
        reasons = "; ".join(f"{name!r}: {reason}" for name, reason in list(skipped.items())[:5])
        raise ValueError(
            "estimate_factors: model must have a Conv2d or Linear that can be covered, got "
            f"{f'none ({reasons})' if reasons else 'no such layer'}; see `layers`"
        )


def _tuples(fields: dict[str, Any]) -> dict[str, Any]:
    """Fields as JSON gives them, with lists as the tuples they were."""
    return {key: tuple(value) if isinstance(value, list) else value for key, value in fields.items()}
