"""Kronecker factors of a model's layers: estimating, keeping and storing them."""

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from eigendamage_ext._files import ArtifactError, read_tensors, write_tensors
from eigendamage_ext.curvature.checks import check_autocast, check_integer, check_word
from eigendamage_ext.curvature.eigenbasis import Eigen, Eigenbasis, LayerEigenbasis
from eigendamage_ext.curvature.ekfac import SecondMoments, second_moment_shape
from eigendamage_ext.curvature.factor_sums import FactorSums
from eigendamage_ext.curvature.fisher import FISHERS, LOSSES, Fisher
from eigendamage_ext.curvature.layers import LayerSpec, Patterns, check_layer, select
from eigendamage_ext.curvature.moments import KINDS, WEIGHT_SHARINGS, factor_shapes
from eigendamage_ext.curvature.state import check_model, preserved

FORMAT = "eigendamage-factors"


@dataclass(frozen=True)
class LayerFactors:
    """A layer's Fisher block is about G ⊗ A.

    Attributes:
        A: Second moment of its inputs, ``(D, D)`` or, with groups, ``(g, D, D)``.
        G: Second moment of its output gradients, ``(c_out, c_out)`` or ``(g, c_out/g, c_out/g)``.
        count: Number of examples seen.
        S: Second moments of the weight's gradient in the eigenbasis, once `Factors.second_moments` has run.
        diagonal: The Fisher's diagonal, ``(c_out, D)``: one filter in each row, its bias last.
        gradient: Gradient of the mean loss at the given labels, likewise.
    """

    A: Tensor
    G: Tensor
    count: int
    S: Tensor | None = None
    diagonal: Tensor | None = None
    gradient: Tensor | None = None


@dataclass(frozen=True)
class FactorSettings:
    """How factors were estimated, and from what.

    Attributes:
        loss, fisher, samples, kind, weight_sharing, seed: As given to `estimate_factors`.
        count: Number of examples seen.
        example_shape: Shape of the first input example, without the batch dimension.
        example_dtype: Its dtype, such as "float32".
        moments_count: Number of examples that `Factors.second_moments` saw; 0 before it has run.
        autocast: As given to `estimate_factors`, such as "bfloat16", or None.
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
    moments_count: int = 0
    autocast: str | None = None


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
        basis: Eigenbasis | None = None,
    ) -> None:
        self.layers, self.specs, self.skipped = dict(layers), dict(specs), dict(skipped)
        self.settings = settings
        self._basis = basis

    def __getitem__(self, name: str) -> LayerFactors:
        return self.layers[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.layers)

    def __len__(self) -> int:
        return len(self.layers)

    def __repr__(self) -> str:
        return f"Factors({len(self)} layers, {len(self.skipped)} skipped, {self.settings})"

    def eigenbasis(self, *, corrected: bool = False) -> Eigenbasis:
        """The eigenvalues and eigenvectors of all factors, computed at the first call and kept.

        ``basis[name].A`` and ``.G`` have ``.values`` and ``.vectors``.

        Args:
            corrected: ``basis[name].S`` is the diagonal to use in place of λ_G λ_Aᵀ (EKFAC).

        Raises:
            ValueError: There is no such diagonal; `second_moments` makes it.
        """
        if self._basis is None:
            self._basis = Eigenbasis.of({name: (layer.A, layer.G) for name, layer in self.items()})
        if not corrected:
            return self._basis
        if not self.settings.moments_count:
            raise ValueError(
                "eigenbasis: factors must have second moments for corrected=True, got none; call "
                "factors.second_moments(model, loader) first"
            )
        return Eigenbasis({name: replace(self._basis[name], S=layer.S) for name, layer in self.items()})

    def second_moments(
        self,
        model: nn.Module,
        loader: Iterable[Any],
        *,
        max_examples: int | None = None,
        offload: bool = False,
        progress: bool = True,
    ) -> dict[str, Tensor]:
        """Measures the Fisher's diagonal in the eigenbasis, for EKFAC, in a second pass over a loader.

        With the weight's own gradient ∇W_nv for example n and vector v of the Fisher, as a matrix (of kind
        "channel": at each kernel offset), and the loss, Fisher, samples, seed and autocast of these factors,

            S = 1/N Σ_n Σ_v (Q_Gᵀ ∇W_nv Q_A)²        George et al. 2018, arXiv 1806.03884

        S replaces λ_G λ_Aᵀ, which is what it would be if inputs and gradients were independent. Whatever
        way weight sharing went into the factors, S is exact in their eigenbasis. It stays with the factors,
        as ``factors[name].S``, and is saved with them. A layer's input is kept until its gradient arrives.

        The model is left as it was, as by `estimate_factors`; when the pass does not end, so are the factors.

        Args:
            model: The model the factors were estimated on.
            loader: The same data, or other data: ``(input, target)``, or inputs alone.
            max_examples: Stop after exactly that many, within a batch if need be.
            offload: Keep sums and eigenvectors in the CPU's memory, as in `estimate_factors`.
            progress: Show a progress bar.

        Returns:
            S by layer name. Of kind "channel" it has the weight's shape, ``(c_out, c_in/g, kh, kw)`` or
            ``(c_out, c_in)``; of kind "patch" it is ``(c_out, D)`` with the D of the factor A. Output and
            input directions are numbered as in `eigenbasis`, group after group.

        Raises:
            TypeError, ValueError: Naming the argument, layer or batch, and the remedy.
        """
        caller, settings = "second_moments", self.settings
        if max_examples is not None:
            max_examples = check_integer(caller, "max_examples", max_examples, least=1)
        check_model(model, caller=caller)
        covered = {
            name: check_layer(model, spec, caller=caller, origin="the factors")
            for name, spec in self.specs.items()
        }
        basis = self.eigenbasis()
        fisher = Fisher(settings.loss, settings.fisher, settings.samples, settings.seed, caller)
        with preserved(model):
            collector = SecondMoments(
                covered,
                basis,
                kind=settings.kind,
                autocast=getattr(torch, settings.autocast) if settings.autocast else None,
                offload=offload,
            )
            seen = collector.run(
                model,
                loader,
                fisher,
                max_examples=max_examples,
                description="EKFAC second moments",
                progress=progress,
            )
            moments = collector.moments(seen.count)
        if collector.dropped:
            reasons = "; ".join(f"{name!r}: {reason}" for name, reason in collector.dropped.items())
            raise ValueError(
                f"{caller}: every layer of the factors must have a gradient for each example, got {reasons}; "
                "leave these out with estimate_factors(layers=…)"
            )
        moments = {name: S.to(self[name].A.device) for name, S in moments.items()}
        self.layers = {name: replace(layer, S=moments[name]) for name, layer in self.items()}
        self.settings = replace(settings, moments_count=seen.count)
        return moments

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes one safetensors file, atomically.

        With second moments it holds the eigenbasis too: where eigenvalues are equal, another machine might
        find another basis, and S is true in one alone.
        """
        tensors = {
            f"{name}.{side}": getattr(layer, side) for name, layer in self.items() for side in ("A", "G")
        }
        if self.settings.moments_count:
            for name, layer in self.eigenbasis(corrected=True).items():
                assert layer.S is not None
                tensors[f"{name}.S"] = layer.S
                for side, eigen in (("A", layer.A), ("G", layer.G)):
                    tensors[f"{name}.{side}.values"] = eigen.values
                    tensors[f"{name}.{side}.vectors"] = eigen.vectors
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
            with_moments = settings.moments_count > 0
            layers = {
                name: LayerFactors(
                    tensors[f"{name}.A"],
                    tensors[f"{name}.G"],
                    settings.count,
                    tensors[f"{name}.S"] if with_moments else None,
                )
                for name in specs
            }
            basis = _basis(specs, tensors) if with_moments else None
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ArtifactError(
                f"load: {str(path)!r} must describe all its factors, got an incomplete manifest ({error!r}); "
                "save it again"
            ) from error
        for name, layer in layers.items():
            A, G = factor_shapes(specs[name], settings.kind)
            found, right = [layer.A, layer.G], [A, G]
            if basis is not None and layer.S is not None:
                eigen = basis[name].A, basis[name].G
                found += [layer.S, *(e.values for e in eigen), *(e.vectors for e in eigen)]
                right += [second_moment_shape(specs[name], settings.kind), A[:-1], G[:-1], A, G]
            shapes = [tuple(tensor.shape) for tensor in found]
            if shapes != right:
                raise ArtifactError(
                    f"load: {str(path)!r} must hold factors that fit layer {name!r}, got shapes "
                    f"{', '.join(map(str, shapes))}; save it again"
                )
        return cls(layers, specs, skipped, settings, basis)


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
    autocast: torch.dtype | None = None,
    offload: bool = False,
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
        autocast: Run the model forward and back under `torch.autocast` with this dtype, torch.bfloat16 or
            torch.float16; None in the dtype it has, whatever autocast surrounds the call. Sums are float32
            all the same. Gradients are those of single examples, so float16 needs no loss scaling.
        offload: Keep the sums in the CPU's memory: a device then holds no more than one layer's term at a
            time, and waits while each goes over in every batch.
        progress: Show a progress bar.

    Returns:
        The factors, on the device of each layer or, with `offload`, on the CPU; in the layer's dtype (halves:
        float32).

    Raises:
        TypeError, ValueError: Naming the argument, layer or batch, and the remedy.
    """
    caller = "estimate_factors"
    check_word(caller, "loss", loss, LOSSES)
    check_word(caller, "fisher", fisher, FISHERS)
    check_word(caller, "kind", kind, KINDS)
    check_word(caller, "weight_sharing", weight_sharing, WEIGHT_SHARINGS)
    samples = check_integer(caller, "samples", samples, least=1)
    seed = check_integer(caller, "seed", seed)
    if max_examples is not None:
        max_examples = check_integer(caller, "max_examples", max_examples, least=1)
    check_autocast(caller, autocast)
    check_model(model, caller=caller)
    covered, skipped = select(model, layers)
    _check_any(covered, skipped)
    with preserved(model):
        collector = FactorSums(
            covered, kind=kind, weight_sharing=weight_sharing, autocast=autocast, offload=offload
        )
        seen = collector.run(
            model,
            loader,
            Fisher(loss, fisher, samples, seed, caller),
            max_examples=max_examples,
            description="Kronecker factors",
            progress=progress,
        )
        sums = collector.factors(seen.count)
    skipped = {
        name: reason
        for name, _ in model.named_modules()
        if (reason := skipped.get(name) or collector.dropped.get(name))
    }
    _check_any(sums, skipped)
    return Factors(
        {name: LayerFactors(A, G, seen.count) for name, (A, G) in sums.items()},
        {name: LayerSpec.of(name, covered[name]) for name in sums},
        skipped,
        FactorSettings(
            loss=loss,
            fisher=fisher,
            samples=samples,
            kind=kind,
            weight_sharing=weight_sharing,
            seed=seed,
            count=seen.count,
            example_shape=seen.example_shape,
            example_dtype=seen.example_dtype,
            autocast=str(autocast).removeprefix("torch.") if autocast else None,
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


def _basis(names: Iterable[str], tensors: Mapping[str, Tensor]) -> Eigenbasis:
    """The eigenbasis among the tensors of a file."""

    def eigen(factor: str) -> Eigen:
        return Eigen(tensors[f"{factor}.values"], tensors[f"{factor}.vectors"])

    return Eigenbasis({name: LayerEigenbasis(eigen(f"{name}.A"), eigen(f"{name}.G")) for name in names})


def _tuples(fields: dict[str, Any]) -> dict[str, Any]:
    """Fields as JSON gives them, with lists as the tuples they were."""
    return {key: tuple(value) if isinstance(value, list) else value for key, value in fields.items()}
