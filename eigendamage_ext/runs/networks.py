"""The network that a configuration names, with its weights; nothing is unpickled."""

from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor, nn

from eigendamage_ext import artifact
from eigendamage_ext._files import read_header
from eigendamage_ext._tables import check_choice
from eigendamage_ext.models.preresnet import PreResNet
from eigendamage_ext.models.resnet import ResNet
from eigendamage_ext.models.vgg import CONVOLUTIONS, VGG
from eigendamage_ext.runs.factories import is_factory, made_by
from eigendamage_ext.runs.settings import Network

State = Mapping[str, Tensor]


def load_network(settings: Network, caller: str) -> nn.Module:
    """The network of `model` and `weights`, on the CPU.

    Raises:
        ValueError: There is none, or its weights do not fit; an ArtifactError where a file is damaged.
    """
    name, weights = settings.model, None if settings.weights is None else Path(settings.weights)
    if weights is not None:
        _check_file(weights, f"{caller}: weights")
    if is_factory(name):
        model = made_by(name, f"{caller}: model")
        if not isinstance(model, nn.Module):
            raise ValueError(
                f"{caller}: model must be a torch.nn.Module, got {type(model).__name__} from {name}"
            )
    elif name in BUILT_IN:
        if weights is None or _ours(weights):
            raise ValueError(
                f"{caller}: weights must be a file with the state_dict of a {name}, whose sizes it tells, "
                f"got {settings.weights}; name a network that was saved as model instead"
            )
        state = load_file(weights)
        try:
            model = BUILT_IN[name](state)
        except (KeyError, IndexError, ValueError, StopIteration) as error:
            raise ValueError(
                f"{caller}: weights must be those of a {name}, got others in {weights} ({error}); pass model "
                "as package.module:factory"
            ) from error
    elif name.endswith(".safetensors") or Path(name).is_file():
        _check_file(Path(name), f"{caller}: model")
        model = artifact.load(name)
    else:
        check_choice(f"{caller}: model, without .safetensors or a colon,", name, BUILT_IN)
    return model if weights is None else _with_weights(model, weights, caller)


def _check_file(path: Path, what: str) -> None:
    if not path.is_file():
        raise ValueError(f"{what} must name a file, got {path}, which does not exist")
    if path.suffix in (".pt", ".pth", ".bin", ".pkl", ".ckpt"):
        raise ValueError(
            f"{what} must be a safetensors file, got {path}: reading a pickle can run code; where you trust "
            "it, convert it with safetensors.torch.save_file(model.state_dict(), 'weights.safetensors')"
        )


def _ours(path: Path) -> bool:
    """Whether a file holds a network that `save` wrote."""
    return read_header(path, {artifact.FORMAT: artifact.VERSION}).format is not None


def _with_weights(model: nn.Module, path: Path, caller: str) -> nn.Module:
    """The model with weights from a file, layers rebuilt as they are there."""
    if _ours(path):
        return artifact.load(path, into=model)
    try:
        model.load_state_dict(load_file(path))
    except RuntimeError as error:
        lines = [line.strip().rstrip(".") for line in str(error).splitlines()]
        found = "; ".join(lines[1:3]) or lines[0]
        raise ValueError(
            f"{caller}: weights must fit the model, got {path} ({found}); pass those of this network"
        ) from error
    return model


def _resnet(state: State) -> nn.Module:
    shortcut = "B" if any(".shortcut." in name for name in state) else "A"
    return ResNet(2 + 6 * _blocks(state), _stages(state, "0.conv1"), *_ends(state), shortcut)


def _preresnet(state: State) -> nn.Module:
    return PreResNet(2 + 9 * _blocks(state), _stages(state, "0.conv3"), *_ends(state))


def _vgg(state: State) -> nn.Module:
    names = [name for name in state if state[name].dim() == 4]
    weights = [state[name] for name in sorted(names, key=lambda name: int(name.split(".")[1]))]
    depth = next(depth for depth, counts in CONVOLUTIONS.items() if sum(counts) == len(weights))
    widths = [len(weights[sum(CONVOLUTIONS[depth][:stage])]) for stage in range(5)]
    return VGG(depth, widths, len(state["linear.weight"]), weights[0].shape[1])


BUILT_IN = {"resnet": _resnet, "preresnet": _preresnet, "vgg": _vgg}


def _blocks(state: State) -> int:
    """Of one stage."""
    return sum(name.startswith("layer1.") and name.endswith(".conv1.weight") for name in state)


def _stages(state: State, layer: str) -> list[int]:
    """Output channels of a layer in each stage."""
    return [len(state[f"layer{stage}.{layer}.weight"]) for stage in (1, 2, 3)]


def _ends(state: State) -> tuple[int, int]:
    """Classes, and channels of the images."""
    return len(state["linear.weight"]), state["conv1.weight"].shape[1]
