"""Models for other runtimes: torch.export and ONNX, written and compared with the model, for others to load.

To read a `.pt2` is to run what it says, so nothing here reads one but that which it has just written.
"""

import copy
import importlib.util
import inspect
import io
import logging
import os
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor, nn

from eigendamage_ext._adapter import Inputs, as_inputs, call, count, map_tensors, named_tensors
from eigendamage_ext._files import write_atomically
from eigendamage_ext.artifact.network import Network
from eigendamage_ext.curvature.state import check_model, preserved
from eigendamage_ext.pruning.channel_check import first_line, tensors_in
from eigendamage_ext.pruning.measure import dtype_of
from eigendamage_ext.pruning.plan import PruneResult

Run = Callable[[Inputs], list[Tensor]]

DIMENSION = "batch"  # its name in the file
LIMIT = 2_000_000_000  # bytes of weights in ONNX; what it is written with ends at 2³¹ with all the rest

# What torch says about itself.
WARNED = r"`isinstance\(treespec, LeafSpec\)` is deprecated"
LOGGERS = ("torch.onnx._internal.exporter._registration", "torch.fx.experimental.symbolic_shapes")
LOGGED = ("torchvision is not installed. Skipping ", "Unable to find user code corresponding to ")


def export(
    model: nn.Module | PruneResult,
    path: str | os.PathLike[str],
    *,
    example_inputs: Inputs | Mapping[str, Any] | None = None,
) -> None:
    """Writes a model for another runtime, atomically: `.pt2` for torch.export, `.onnx` for ONNX in one file.

    What is written is the model in eval mode, on the CPU, for any number of examples. The file is read again
    (`.onnx` by onnxruntime) and must give what the model gives, for the example and for another number of
    examples: no output may differ by more than √eps of its dtype times the largest. `load` does not read
    either, and neither can be trained; that is what `save` is for.

    Args:
        model: The model, or the result of pruning; it is left as it is.
        path: Where the file goes. ONNX needs the extra ``[onnx]``.
        example_inputs: What the model takes: a tensor ``(N, …)``, a tuple for several arguments, or a mapping
            for arguments by name; what is not a tensor there stays what it is. None: that of the result's
            plan.

    Raises:
        ModuleNotFoundError: A package that ONNX needs is missing; nothing has been done then.
        NotImplementedError: torch.export, ONNX or onnxruntime cannot follow the model; the reason.
        TypeError, ValueError: Another suffix, inputs that are none, over 2 GB for ONNX, or outputs that
            differ. Whatever is raised, a file that was there before is as it was.

    Warns:
        UserWarning: The `.onnx` was written and not compared, as onnxruntime is missing.
    """
    network, write = model.model if isinstance(model, PruneResult) else model, _writer(path)
    check_model(network, caller="export")
    if write is _onnx:
        _check_size(network)
    if example_inputs is None:
        example_inputs = _planned(model)
    example = _batch(example_inputs)

    def export_to(file: BinaryIO) -> None:
        copied = copy.deepcopy(network).to("cpu")
        with preserved(copied), torch.no_grad():
            checks = [example, _of(example, 3 if _number(example) != 3 else 2)]
            expected = [_outputs(copied, check) for check in checks]
            with _quiet():
                run = write(_program(copied, _of(example, 2)), file)
                found = [_run(run, check) for check in checks] if run else expected
            for ours, theirs, check in zip(expected, found, checks, strict=True):
                _compare(ours, theirs, _number(check), str(path))

    write_atomically(path, export_to, caller="export")


def _writer(path: str | os.PathLike[str]) -> Callable[[Any, BinaryIO], Run | None]:
    """What writes a file of that suffix, if what it needs is there."""
    suffix = Path(path).suffix
    if suffix == ".pt2":
        return _pt2
    if suffix != ".onnx":
        raise ValueError(f"export: path must end in .pt2 or .onnx, got {str(path)!r}; rename it")
    for name in ("onnx", "onnxscript"):
        if importlib.util.find_spec(name) is None:
            raise ModuleNotFoundError(
                f"export: {name} must be installed to write ONNX, got none; "
                'pip install "eigendamage-ext[onnx]"'
            )
    return _onnx


def _check_size(model: nn.Module) -> None:
    """Refuses what would not fit in one file."""
    tensors = {id(t): t for t in (*model.parameters(), *model.buffers())}.values()
    size = sum(t.numel() * t.element_size() for t in tensors)
    if size > LIMIT:
        raise ValueError(
            f"export: model must have at most {LIMIT / 1e9:g} GB of weights for ONNX in one file, got "
            f"{size / 1e9:.1f} GB; export it to .pt2, or as model.half()"
        )


def _planned(model: nn.Module | PruneResult) -> Inputs:
    """The example of a result, in the dtype its model has by now."""
    if not isinstance(model, PruneResult):
        raise ValueError(
            "export: example_inputs must be given for a model that is no result of pruning, got None; "
            "pass inputs of the model"
        )
    dtype, example = dtype_of(model.model), model.plan.example
    cast: Inputs = map_tensors(lambda x: x.to(dtype) if x.is_floating_point() else x, example)
    return cast


def _batch(inputs: Any) -> Inputs:
    """Inputs on the CPU, checked."""
    batch = as_inputs(inputs)
    rule = "export: example_inputs must be a tensor, a tuple or a mapping with tensors"
    if batch is None:
        raise TypeError(f"{rule}, got {type(inputs).__name__}; pass what the model takes")
    if count(batch, rule, "example_inputs") < 1:
        raise ValueError(f"{rule} of one example or more, got none; pass some")
    moved: Inputs = map_tensors(lambda tensor: tensor.detach().to("cpu"), batch)
    return moved


def _of(batch: Inputs, number: int) -> Inputs:
    """A batch of so many: its examples again and again, random where they are zeros."""

    def resized(tensor: Tensor) -> Tensor:
        if not tensor.dim():
            return tensor
        rows = tensor[torch.arange(number) % len(tensor)]
        return torch.randn_like(rows) if rows.is_floating_point() and not rows.any() else rows

    many: Inputs = map_tensors(resized, batch)
    return many


def _outputs(model: nn.Module, batch: Inputs) -> list[Tensor]:
    """The tensors that the model returns; it may change its inputs."""
    try:
        return list(tensors_in(call(model, map_tensors(torch.clone, batch))))
    except Exception as error:
        raise ValueError(
            "export: example_inputs must be what the model takes, for any number of examples, got "
            f"{first_line(error)} for {_number(batch)}; pass other inputs, or change its forward"
        ) from error


def _run(run: Run, batch: Inputs) -> list[Tensor]:
    """The tensors that a file gives, likewise."""
    try:
        return run(map_tensors(torch.clone, batch))
    except Exception as error:
        raise NotImplementedError(
            f"export: model must be one that runs from its file, got {first_line(error)} for "
            f"{_number(batch)} examples; export it in another format, or as model.float()"
        ) from error


def _number(batch: Inputs) -> int:
    return count(batch, "export: example_inputs must be a batch", "example_inputs")


def _sizes(value: Any) -> Any:
    """What torch.export is told of the sizes of inputs: that the first of each is the batch's."""
    if isinstance(value, Tensor):
        return {0: torch.export.Dim(DIMENSION, min=1)} if value.dim() else None
    if isinstance(value, dict):
        return {key: _sizes(part) for key, part in value.items()}
    return type(value)(map(_sizes, value)) if isinstance(value, (tuple, list)) else None


def _program(model: nn.Module, batch: Inputs) -> torch.export.ExportedProgram:
    """What the model does, by torch.export, without the arguments and the lines of the source."""
    args: tuple[Any, ...] = () if isinstance(batch, dict) else batch if isinstance(batch, tuple) else (batch,)
    kwargs: dict[str, Any] = batch if isinstance(batch, dict) else {}
    _name_inputs(model)
    sizes = _sizes(kwargs or args)
    try:
        with redirect_stderr(io.StringIO()):  # where it prints how far it got
            program = torch.export.export(model, args, kwargs, dynamic_shapes=sizes, strict=False)
    except Exception as error:
        raise NotImplementedError(
            "export: model must be one that torch.export can follow for any number of examples, got "
            f"{_reason(error)}; change its forward, or keep it in a file of ed.save"
        ) from error
    program.example_inputs = None
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)
    return program


def _name_inputs(model: nn.Module) -> None:
    """Tells torch.export what the inputs of a network are called that was loaded without its class."""
    if isinstance(model, Network):
        forward = partial(type(model).forward, model)
        names = model.network_graphs.evaluation.inputs
        parameters = [inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD) for name in names]
        forward.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        model.forward = forward  # type: ignore[method-assign]


def _reason(error: Exception) -> str:
    """What torch.export says, by the line of the model that it names if it does."""
    found = re.search(r'File "(.*)", line (\d+), in .*\n\s*(.*)', str(error))
    if found is None:
        return first_line(error)
    file, line, code = found.groups()
    return f"{type(error).__name__} at {file}:{line}: {code.strip()}"


def _origin(error: BaseException) -> Exception:
    """What an error came from in the end."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error if isinstance(error, Exception) else RuntimeError(str(error))


def _pt2(program: torch.export.ExportedProgram, file: BinaryIO) -> Run:
    """Writes torch.export's format, and returns what runs it."""
    content = io.BytesIO()  # what torch writes itself it does not check
    torch.export.save(program, content)
    file.write(content.getbuffer())
    file.seek(0)
    loaded = torch.export.load(file).module()

    return lambda batch: list(tensors_in(call(loaded, batch)))


def _tensor_inputs(program: torch.export.ExportedProgram) -> list[str]:
    """Names of the inputs that are tensors."""
    kinds = torch.export.graph_signature
    return [
        spec.arg.name
        for spec in program.graph_signature.input_specs
        if spec.kind == kinds.InputKind.USER_INPUT and isinstance(spec.arg, kinds.TensorArgument)
    ]


def _onnx(program: torch.export.ExportedProgram, file: BinaryIO) -> Run | None:
    """Writes ONNX, and returns what runs it, if it is there."""
    try:
        sizes = [{0: DIMENSION}, *[None] * (len(_tensor_inputs(program)) - 1)]
        found = torch.onnx.export(program, dynamo=True, verbose=False, dynamic_shapes=sizes)
        assert found is not None
        content = found.model_proto.SerializeToString()
    except Exception as error:
        reason = first_line(_origin(error))
        raise NotImplementedError(
            f"export: model must be one that ONNX can hold, got {reason}; export it to .pt2"
        ) from error
    file.write(content)
    if importlib.util.find_spec("onnxruntime") is None:
        warnings.warn(
            "export: the .onnx was not compared with the model, as onnxruntime is not installed; "
            "pip install onnxruntime",
            stacklevel=5,
        )
        return None
    import onnxruntime  # type: ignore[import-untyped,import-not-found,unused-ignore]

    file.seek(0)
    try:
        session = onnxruntime.InferenceSession(file.read(), providers=["CPUExecutionProvider"])
    except Exception as error:
        raise NotImplementedError(
            f"export: model must be one that onnxruntime can run, got {first_line(error)}; export it as "
            "model.float(), or to .pt2"
        ) from error
    names = [argument.name for argument in session.get_inputs()]

    def run(batch: Inputs) -> list[Tensor]:
        arrays = [tensor.numpy() for _, tensor in named_tensors(batch)]
        outputs = session.run(None, dict(zip(names, arrays, strict=True)))
        return [torch.from_numpy(output) for output in outputs]

    return run


def _compare(ours: list[Tensor], theirs: list[Tensor], number: int, path: str) -> None:
    """Refuses a file that gives other outputs than the model, for so many examples."""
    rule = f"export: {path!r} must give the outputs of the model for {number} examples"
    remedy = "save it by ed.save, and export it in another format"
    kinds, found = ([(tuple(t.shape), t.dtype) for t in some] for some in (ours, theirs))
    if kinds != found or not ours:
        raise ValueError(f"{rule}, got {found} in place of {kinds}; {remedy}")
    for a, b in zip(ours, theirs, strict=True):
        rtol = torch.finfo(a.dtype).eps ** 0.5 if a.is_floating_point() else 0.0
        finite = a.double().nan_to_num(posinf=0, neginf=0).abs()
        limit = rtol * float(finite.max()) if a.numel() else 0.0
        if not torch.allclose(a.double(), b.double(), rtol=0, atol=limit, equal_nan=True):
            error = float((a.double() - b.double()).abs().max())
            raise ValueError(f"{rule} up to {limit:.1e}, got a difference of {error:.1e}; {remedy}")


@contextmanager
def _quiet() -> Iterator[None]:
    """Without warnings that nobody can do anything about."""

    def passes(record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith(LOGGED)

    loggers = [logging.getLogger(name) for name in LOGGERS]
    for logger in loggers:
        logger.addFilter(passes)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", WARNED, FutureWarning)
            yield
    finally:
        for logger in loggers:
            logger.removeFilter(passes)
