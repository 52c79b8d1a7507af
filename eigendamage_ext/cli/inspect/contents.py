"""What a file holds, as plain data. Nothing of it is run; tensors are read only where their numbers count."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from eigendamage_ext import _checkpoint, artifact
from eigendamage_ext._files import (
    FORMAT_VERSION,
    MANIFEST_LIMIT,
    ArtifactError,
    Header,
    read_header,
    read_tensors,
)
from eigendamage_ext.artifact.allowlist import LEAVES
from eigendamage_ext.artifact.rebuild import rebuild
from eigendamage_ext.cli.inspect.shapes import Shapes, layers_in, parameters_in
from eigendamage_ext.cli.inspect.spectra import summary
from eigendamage_ext.cli.inspect.untrusted import counts, number, numbers, record, records, rows, text, texts
from eigendamage_ext.curvature import factors
from eigendamage_ext.pruning import iterative

VERSIONS = {
    artifact.FORMAT: artifact.VERSION,
    factors.FORMAT: FORMAT_VERSION,
    iterative.FORMAT: FORMAT_VERSION,
    _checkpoint.FORMAT: FORMAT_VERSION,
}
DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
}


def contents(path: str | os.PathLike[str], *, check: bool = False) -> dict[str, Any]:
    """What a file is and what it says of itself.

    Args:
        path: A model, factors, a checkpoint, plan.json, or any safetensors file.
        check: Read all tensors and compare their checksum; files of other programs have none.

    Returns:
        JSON: "path", "bytes", "kind", "format", "format_version" and "checksum_read", what files of its kind
        tell besides, and under "layers" what is known of each layer.

    Raises:
        ArtifactError: It is none of these, or damaged.
    """
    where = Path(path)
    if not where.is_file():
        got = "a folder" if where.is_dir() else "no file" if where.exists() else "nothing of that name"
        raise ArtifactError(f"inspect: FILE must be a file, got {got} at {str(path)!r}; name a file")
    about: dict[str, Any] = {"path": str(path), "bytes": where.stat().st_size}
    if _is_json(where):
        return about | {"kind": "plan", "format": "JSON"} | plan_in(_json(where))
    header = read_header(where, VERSIONS)
    if check and header.format:
        read_tensors(where, format=header.format, version=header.version)
    if header.format is None:
        return about | {"kind": "tensors", "format": "safetensors"} | _other(header)
    about |= {"format": header.format, "format_version": header.version, "checksum_read": check}
    if header.format == factors.FORMAT:
        return about | {"kind": "factors", "checksum_read": True} | _factors(where, header.manifest)
    if header.format == iterative.FORMAT:
        return about | {"kind": "pruning"} | _pruning(header)
    if header.format == _checkpoint.FORMAT:
        return about | {"kind": "training"} | _training(header)
    return about | {"kind": "model"} | _model(header)


def plan_in(data: Mapping[str, Any]) -> dict[str, Any]:
    """A plan, as `Plan.record` writes it."""
    settings = record(data, "settings")
    return {
        "plan": {
            **{key: text(settings, key) for key in ("method", "scores", "allocation")},
            "target": numbers(settings, "target"),
            "predicted_loss": number(data, "predicted_loss"),
        },
        "factors": _settings(record(settings, "factors")),
        **_costs(data),
        "skipped": texts(data, "skipped"),
        "layers": {name: _row(row) for name, row in records(data, "layers").items()},
    }


def _row(row: Mapping[str, Any]) -> dict[str, Any]:
    """What becomes of a layer; of one that loses filters, "widths" are the channels it had."""
    about: dict[str, Any] = {"form": text(row, "form")}
    inputs, filters = counts(row, "inputs", 2), counts(row, "filters", 2)
    if inputs and filters:
        about["form"] = "dense" if inputs[0] == inputs[1] and filters[0] == filters[1] else "filters"
        about |= {"widths": [inputs[0], filters[0]], "ranks": [inputs[1], filters[1]]}
    else:
        about["ranks"] = [number(row, "input_rank"), number(row, "output_rank")]
    return about | _costs(row) | {"predicted_loss": number(row, "predicted_loss"), "note": text(row, "note")}


def _costs(data: Mapping[str, Any]) -> dict[str, int | None]:
    """Parameters and FLOPs, before and after."""
    found: dict[str, int | None] = {}
    for key in ("params", "flops"):
        before, after = counts(data, key, 2) or (None, None)
        found |= {key: after, f"{key}_before": before}
    return found


def _settings(given: Mapping[str, Any]) -> dict[str, Any]:
    """How factors were estimated."""
    words = ("loss", "fisher", "kind", "weight_sharing", "autocast", "example_dtype")
    numerals = ("samples", "seed", "count", "moments_count", "diagonal_count", "gradient_count")
    found: dict[str, Any] = {key: text(given, key) for key in words}
    found |= {key: number(given, key) for key in numerals}
    found["example_shape"] = counts(given, "example_shape")
    return {key: value for key, value in found.items() if value is not None}


def _other(header: Header) -> dict[str, Any]:
    """Another program's file."""
    return {"metadata": {key: text(header.manifest, key) for key in header.manifest}} | _tensors(
        header.tensors
    )


def _tensors(shapes: Shapes) -> dict[str, Any]:
    return {"tensors": len(shapes), "params": parameters_in(shapes), "layers": layers_in(shapes)}


def _model(header: Header) -> dict[str, Any]:
    """A model, as `artifact.save` writes it."""
    manifest = header.manifest
    provenance = record(manifest, "provenance")
    state = {n: shape for n, shape in header.tensors.items() if not n.startswith(artifact.EXTRA)}
    extra = {n.removeprefix(artifact.EXTRA): s for n, s in header.tensors.items() if n not in state}
    about: dict[str, Any] = {
        "provenance": {
            key: text(provenance, key) for key in ("eigendamage_ext", "torch", "weights", "parent")
        }
    }
    if manifest.get("network") is None:
        reason = text(manifest, "obstacle") or "its file is of version 1"
        about |= {"network": {"needs_class": True, "reason": reason}, **_tensors(header.tensors)}
    else:
        network = rebuild(manifest["network"], _without_memory(state), _without_memory(extra))
        modules = dict(network.named_modules(remove_duplicate=False))
        title = getattr(network, "network_title", type(network).__name__)
        about |= {"network": {"needs_class": False, "class": title, "modules": len(list(network.modules()))}}
        about |= _tensors(state) | {"params": sum(p.numel() for p in network.parameters())}
        for name, layer in about["layers"].items():
            layer["kind"] = _kind(modules.get(name))
    if provenance.get("plan") is None:
        return about
    plan = plan_in(record(provenance, "plan"))
    names = {**plan["layers"], **about["layers"]}
    layers = {name: _both(plan["layers"].get(name, {}), about["layers"].get(name, {})) for name in names}
    return plan | about | {"layers": layers}


def _both(plan: dict[str, Any], tensors: dict[str, Any]) -> dict[str, Any]:
    """A layer as its tensors are; only the plan knows of filters that it lost."""
    return plan | tensors | {key: plan[key] for key in ("form", "widths") if plan.get("form") == "filters"}


def _without_memory(shapes: Shapes) -> dict[str, Tensor]:
    for name, (dtype, _) in shapes.items():
        if dtype not in DTYPES:
            raise ArtifactError(
                f"inspect: tensors of a model must be of {', '.join(DTYPES)}, got {dtype} {name[:60]!r}; "
                "save it again"
            )
    return {name: torch.empty(s, dtype=DTYPES[dtype], device="meta") for name, (dtype, s) in shapes.items()}


def _kind(module: nn.Module | None) -> str | None:
    """Class of a layer, of a factored one that of its core; None of a tensor that is no layer's."""
    core = getattr(module, "core", module)
    return type(core).__name__ if type(core) in LEAVES.values() else None


def _factors(where: Path, manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Factors, and what their spectra are like."""
    found = factors.Factors.load(where)
    return {
        "factors": _settings(record(manifest, "settings")),
        "skipped": texts(manifest, "skipped"),
        "layers": {
            name: {
                "kind": spec.kind,
                "kernel": [] if spec.kind == "Linear" else list(spec.kernel_size),
                "A": summary(found[name].A),
                "G": summary(found[name].G),
            }
            for name, spec in found.specs.items()
        },
    }


def _pruning(header: Header) -> dict[str, Any]:
    """A checkpoint of `Pruner`: the model before the next round."""
    settings = record(header.manifest, "settings")
    return {
        "plan": {"method": text(settings, "method"), "target": numbers(settings, "target")},
        "schedule": text(settings, "schedule"),
        "steps": number(settings, "steps"),
        "history": rows(header.manifest, "history", ("round", "params", "flops", "predicted_loss")),
        **_tensors(header.tensors),
    }


def _training(header: Header) -> dict[str, Any]:
    """A checkpoint of training: the model after its last epoch so far."""
    model = {n.removeprefix("model."): s for n, s in header.tensors.items() if n.startswith("model.")}
    return {
        "epochs": number(record(header.manifest, "settings"), "epochs"),
        "history": rows(header.manifest, "history", ("epoch", "lr", "loss", "accuracy")),
        **_tensors(model),
    }


def _is_json(path: Path) -> bool:
    """Whether it is JSON and not safetensors."""
    with path.open("rb") as file:
        start = file.read(64)
    if len(start) > 8 and start[8:9] == b"{" and int.from_bytes(start[:8], "little") < path.stat().st_size:
        return False
    if start.startswith((b"PK", b"\x80")):
        raise ArtifactError(
            f"inspect: FILE must be safetensors or JSON, got a pickle or an archive, {str(path)!r}, which "
            "may run code when it is opened; save the model with eigendamage_ext.save"
        )
    return start.lstrip().startswith(b"{")


def _json(path: Path) -> dict[str, Any]:
    size = path.stat().st_size
    if size > MANIFEST_LIMIT:
        raise ArtifactError(
            f"inspect: a plan must have at most {MANIFEST_LIMIT:,} bytes, got {size:,} in {str(path)!r}; "
            "name another file"
        )
    try:
        data = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        data = None
    if not isinstance(data, dict) or not {"settings", "layers", "params", "flops"} <= data.keys():
        raise ArtifactError(
            f"inspect: {str(path)!r} must be a plan in JSON, got other or broken JSON; name another file"
        )
    return data
