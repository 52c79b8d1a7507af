"""Kronecker factors of a model's layers, and what else is measured of them: keeping and storing it."""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from eigendamage_ext._adapter import Adapter, Inputs, qualified_name
from eigendamage_ext._files import ArtifactError, read_tensors, write_tensors
from eigendamage_ext._objective import Loss
from eigendamage_ext.curvature.diagonal import Diagonal
from eigendamage_ext.curvature.eigenbasis import Eigen, Eigenbasis, LayerEigenbasis
from eigendamage_ext.curvature.ekfac import SecondMoments, second_moment_shape
from eigendamage_ext.curvature.example import PREFIX, from_file, to_file
from eigendamage_ext.curvature.fisher import LOSSES, Fisher
from eigendamage_ext.curvature.gradient import Gradients
from eigendamage_ext.curvature.layers import LayerSpec
from eigendamage_ext.curvature.moments import factor_shapes, weight_rows_shape
from eigendamage_ext.curvature.second_pass import WeightGradients, second_pass
from eigendamage_ext.curvature.settings import COUNTS, FactorSettings, read_settings, read_spec

FORMAT = "eigendamage-factors"


@dataclass(frozen=True)
class LayerFactors:
    """A layer's Fisher block is about G ⊗ A.

    Attributes:
        A: Second moment of its inputs, ``(D, D)`` or, with groups, ``(g, D, D)``.
        G: Second moment of its output gradients, ``(c_out, c_out)`` or ``(g, c_out/g, c_out/g)``.
        count: Number of examples seen.
        S: Second moments of the weight's gradient in the eigenbasis, once `Factors.second_moments` has run.
        diagonal: The Fisher's diagonal, ``(c_out, D)``, once `Factors.diagonal` has run: in each row a filter
            of the weight, c_in/g·K numbers, and its bias as last where the layer has one.
        gradient: The gradient of the mean loss, likewise, once `Factors.gradients` has run.
    """

    A: Tensor
    G: Tensor
    count: int
    S: Tensor | None = None
    diagonal: Tensor | None = None
    gradient: Tensor | None = None


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
        example: Inputs | None = None,
        basis: Eigenbasis | None = None,
    ) -> None:
        self.layers, self.specs, self.skipped = dict(layers), dict(specs), dict(skipped)
        self.settings = settings
        self._example, self._basis = example, basis

    def __getitem__(self, name: str) -> LayerFactors:
        return self.layers[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.layers)

    def __len__(self) -> int:
        return len(self.layers)

    def __repr__(self) -> str:
        return f"Factors({len(self)} layers, {len(self.skipped)} skipped, {self.settings})"

    @property
    def example(self) -> Inputs | None:
        """The inputs of the first example they have seen, every tensor ``(1, …)`` on the CPU.

        Whole numbers, such as token ids, are as they were, floating-point ones 0. None where the factors come
        from a file that could not hold it.
        """
        if self._example is None and self.settings.example_dtype:
            dtype = getattr(torch, self.settings.example_dtype.removeprefix("torch."))
            return torch.zeros(1, *self.settings.example_shape, dtype=dtype, device="cpu")
        return self._example

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
        loss: Loss | None = None,
        adapter: Adapter | None = None,
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
            loss: The function that these factors were estimated with, if it was one of your own.
            adapter: As `estimate_factors` takes it.
            progress: Show a progress bar.

        Returns:
            S by layer name. Of kind "channel" it has the weight's shape, ``(c_out, c_in/g, kh, kw)`` or
            ``(c_out, c_in)``; of kind "patch" it is ``(c_out, D)`` with the D of the factor A. Output and
            input directions are numbered as in `eigenbasis`, group after group.

        Raises:
            TypeError, ValueError: Naming the argument, layer or batch, and the remedy.
        """

        def collector(layers: Mapping[str, nn.Module], **settings: Any) -> SecondMoments:
            return SecondMoments(layers, self.eigenbasis(), kind=self.settings.kind, **settings)

        return self._measure(
            "S",
            partial(collector, offload=offload),
            model,
            loader,
            self._fisher("second_moments", loss),
            adapter=adapter,
            max_examples=max_examples,
            description="EKFAC second moments",
            progress=progress,
        )

    def diagonal(
        self,
        model: nn.Module,
        loader: Iterable[Any],
        *,
        max_examples: int | None = None,
        offload: bool = False,
        loss: Loss | None = None,
        adapter: Adapter | None = None,
        progress: bool = True,
    ) -> dict[str, Tensor]:
        """Measures the Fisher's diagonal in the weights' own coordinates, in a second pass over a loader.

        With the loss, Fisher, samples, seed and autocast of these factors, and no gradient of any example,

            1/N Σ_n Σ_v (∇W_nv)²

        It stays with the factors, as ``factors[name].diagonal``, and is saved with them. A layer's input is
        kept until its gradient arrives. Everything else is as in `second_moments`.

        Args:
            model: The model the factors were estimated on.
            loader: The same data, or other data: ``(input, target)``, or inputs alone.
            max_examples: Stop after exactly that many, within a batch if need be.
            offload: Keep sums in the CPU's memory, as in `estimate_factors`.
            loss: The function that these factors were estimated with, if it was one of your own.
            adapter: As `estimate_factors` takes it.
            progress: Show a progress bar.

        Returns:
            The diagonal by layer name, ``(c_out, D)``; the last column is that of a bias.

        Raises:
            TypeError, ValueError: Naming the argument, layer or batch, and the remedy.
        """
        return self._measure(
            "diagonal",
            partial(Diagonal, offload=offload),
            model,
            loader,
            self._fisher("diagonal", loss),
            adapter=adapter,
            max_examples=max_examples,
            description="Fisher diagonal",
            progress=progress,
        )

    def gradients(
        self,
        model: nn.Module,
        loader: Iterable[Any],
        *,
        max_examples: int | None = None,
        offload: bool = False,
        loss: Loss | None = None,
        adapter: Adapter | None = None,
        progress: bool = True,
    ) -> dict[str, Tensor]:
        """Measures the gradient of the mean loss at the given labels, in a second pass over a loader.

            1/N Σ_n ∇ℓ_n

        with the loss and autocast of these factors, in eval mode; no ``.grad`` is read or written. It stays
        with the factors, as ``factors[name].gradient``, and is saved with them. Everything else is as in
        `diagonal`.

        Args:
            model: The model the factors were estimated on.
            loader: The same data, or other data: ``(input, target)``.
            max_examples: Stop after exactly that many, within a batch if need be.
            offload: Keep sums in the CPU's memory, as in `estimate_factors`.
            loss: The function that these factors were estimated with, if it was one of your own.
            adapter: As `estimate_factors` takes it.
            progress: Show a progress bar.

        Returns:
            The gradient by layer name, ``(c_out, D)``; the last column is that of a bias.

        Raises:
            TypeError, ValueError: Naming the argument, layer or batch, and the remedy.
        """
        return self._measure(
            "gradient",
            partial(Gradients, offload=offload),
            model,
            loader,
            replace(self._fisher("gradients", loss), kind="empirical"),
            adapter=adapter,
            max_examples=max_examples,
            description="Gradients",
            progress=progress,
        )

    def _fisher(self, caller: str, loss: Loss | None) -> Fisher:
        """The Fisher of these factors, with the function that their loss was."""
        settings = self.settings
        if (loss is None) != (settings.loss in LOSSES) or (loss and qualified_name(loss) != settings.loss):
            raise ValueError(
                f"{caller}: loss must be that of the factors, {settings.loss!r}, got "
                f"{qualified_name(loss) if loss else None}; give a function of your own again, and None for "
                f"{', '.join(LOSSES)}"
            )
        return Fisher(loss or settings.loss, settings.fisher, settings.samples, settings.seed, caller)

    def _measure(
        self,
        field: str,
        collector: Callable[..., WeightGradients],
        model: nn.Module,
        loader: Iterable[Any],
        fisher: Fisher,
        **options: Any,
    ) -> dict[str, Tensor]:
        """Runs a second pass and keeps what it found in a field of every layer's factors."""
        autocast = getattr(torch, self.settings.autocast) if self.settings.autocast else None
        collector = partial(collector, autocast=autocast)
        means, count = second_pass(model, loader, self.specs, fisher, collector, **options)
        found: dict[str, Any] = {name: mean.to(self[name].A.device) for name, mean in means.items()}
        self.layers = {name: replace(layer, **{field: found[name]}) for name, layer in self.items()}
        counted: dict[str, Any] = {COUNTS[field]: count}
        self.settings = replace(self.settings, **counted)
        return found

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes one safetensors file, atomically.

        With second moments it holds the eigenbasis too: where eigenvalues are equal, another machine might
        find another basis, and S is true in one alone. Of the data it holds `example`.
        """
        tensors = {
            f"{name}.{field}": getattr(layer, field)
            for name, layer in self.items()
            for field in ("A", "G", *_measured(self.settings))
        }
        if self.settings.moments_count:
            for name, layer in self.eigenbasis().items():
                for side, eigen in (("A", layer.A), ("G", layer.G)):
                    tensors[f"{name}.{side}.values"] = eigen.values
                    tensors[f"{name}.{side}.vectors"] = eigen.vectors
        example, example_tensors = to_file(self._example)
        tensors |= example_tensors
        manifest = {
            "settings": asdict(self.settings),
            "example": example,
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
            settings = read_settings(manifest["settings"])
            specs = {spec.name: spec for spec in map(read_spec, manifest["layers"])}
            skipped = {str(name): str(reason) for name, reason in manifest["skipped"].items()}
            layers = {
                name: LayerFactors(
                    tensors[f"{name}.A"],
                    tensors[f"{name}.G"],
                    settings.count,
                    **{field: tensors[f"{name}.{field}"] for field in _measured(settings)},
                )
                for name in specs
            }
            basis = _basis(specs, tensors) if settings.moments_count else None
            example = manifest.get("example") and from_file(manifest["example"], tensors)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ArtifactError(
                f"load: {str(path)!r} must describe all its factors, got an incomplete manifest ({error!r}); "
                "save it again"
            ) from error
        shapes = {
            f"{name}.{field}": shape
            for name, spec in specs.items()
            for field, shape in _shapes(spec, settings).items()
        }
        for key, tensor in tensors.items():
            if key.startswith(PREFIX):
                continue
            if shapes.get(key) != tuple(tensor.shape) or not tensor.is_floating_point():
                raise ArtifactError(
                    f"load: {str(path)!r} must hold the factors that it describes, got {key!r} "
                    f"of {tensor.dtype} and shape {tuple(tensor.shape)} for {shapes.get(key, 'nothing')}; "
                    "save it again"
                )
        return cls(layers, specs, skipped, settings, example, basis)


def _measured(settings: FactorSettings) -> list[str]:
    """The fields that second passes have filled."""
    return [field for field, count in COUNTS.items() if getattr(settings, count)]


def _shapes(spec: LayerSpec, settings: FactorSettings) -> dict[str, tuple[int, ...]]:
    """Shapes of the tensors of one layer in a file."""
    A, G = factor_shapes(spec, settings.kind)
    shapes: dict[str, tuple[int, ...]] = {"A": A, "G": G}
    for field in _measured(settings):
        shapes[field] = weight_rows_shape(spec)
    if settings.moments_count:
        shapes["S"] = second_moment_shape(spec, settings.kind)
        shapes |= {"A.values": A[:-1], "A.vectors": A, "G.values": G[:-1], "G.vectors": G}
    return shapes


def _basis(names: Iterable[str], tensors: Mapping[str, Tensor]) -> Eigenbasis:
    """The eigenbasis among the tensors of a file."""

    def eigen(factor: str) -> Eigen:
        return Eigen(tensors[f"{factor}.values"], tensors[f"{factor}.vectors"])

    return Eigenbasis({name: LayerEigenbasis(eigen(f"{name}.A"), eigen(f"{name}.G")) for name in names})
