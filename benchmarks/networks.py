"""Networks that are not ours: which of their layers are covered, and what becomes of them.

    python -m benchmarks.networks       writes the table in docs/networks.md

All but the last are architectures of Hugging Face transformers, small and with random weights.
"""

import re
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import eigendamage_ext as ed
from eigendamage_ext._adapter import Inputs

PAGE = Path(__file__).resolve().parents[1] / "docs" / "networks.md"
BEGIN, END = "<!-- networks -->", "<!-- /networks -->"
KEPT = 0.6
CLASSES, TOKENS = 5, 40


class DenseNet(nn.Module):
    """Two stages of layers that see all that was before them, concatenated (Huang et al. 2017)."""

    def __init__(self, growth: int = 8, layers: int = 3) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 2 * growth, 3, padding=1, bias=False)
        width, stages = 2 * growth, []
        for _ in range(2):
            stage = []
            for _ in range(layers):
                stage.append(
                    nn.Sequential(
                        *(nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, 2 * growth, 1, bias=False)),
                        *(nn.BatchNorm2d(2 * growth), nn.ReLU()),
                        nn.Conv2d(2 * growth, growth, 3, padding=1, bias=False),
                    )
                )
                width += growth
            stages.append(nn.ModuleList(stage))
        self.stages = nn.ModuleList(stages)
        self.transition = nn.Conv2d(2 * growth + layers * growth, 2 * growth + layers * growth, 1)
        self.norm, self.head = nn.BatchNorm2d(width), nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for number, stage in enumerate(self.stages):
            if number:
                x = F.avg_pool2d(self.transition(x), 2)
            for layer in stage:
                x = torch.cat([x, layer(x)], 1)
        return self.head(F.relu(self.norm(x)).mean((2, 3)))


def resnet() -> nn.Module:
    from transformers import ResNetConfig, ResNetForImageClassification

    config = ResNetConfig(
        embedding_size=16,
        hidden_sizes=[32, 64],
        depths=[2, 1],
        downsample_in_bottleneck=True,
        num_labels=CLASSES,
    )
    return ResNetForImageClassification(config)


def convnext() -> nn.Module:
    from transformers import ConvNextConfig, ConvNextForImageClassification

    config = ConvNextConfig(num_stages=2, hidden_sizes=[16, 32], depths=[1, 1], num_labels=CLASSES)
    config.drop_path_rate = 0.1
    return ConvNextForImageClassification(config)


def mobilenet() -> nn.Module:
    from transformers import MobileNetV2Config, MobileNetV2ForImageClassification

    config = MobileNetV2Config(depth_multiplier=0.25, finegrained_output=False, num_labels=CLASSES)
    return MobileNetV2ForImageClassification(config)


def regnet() -> nn.Module:
    from transformers import RegNetConfig, RegNetForImageClassification

    config = RegNetConfig(
        embedding_size=8, hidden_sizes=[16, 32], depths=[1, 1], groups_width=8, num_labels=CLASSES
    )
    return RegNetForImageClassification(config)


def vit() -> nn.Module:
    from transformers import ViTConfig, ViTForImageClassification

    return ViTForImageClassification(ViTConfig(image_size=32, patch_size=8, **TRANSFORMER))


def swin() -> nn.Module:
    from transformers import SwinConfig, SwinForImageClassification

    config = SwinConfig(
        image_size=32,
        patch_size=4,
        embed_dim=16,
        depths=[2, 1],
        num_heads=[2, 2],
        window_size=4,
        num_labels=CLASSES,
    )
    return SwinForImageClassification(config)


def bert() -> nn.Module:
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(vocab_size=TOKENS, max_position_embeddings=16, **TRANSFORMER)
    return BertForSequenceClassification(config)


def gpt2() -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=TOKENS, n_embd=32, n_layer=2, n_head=2, n_positions=16, bos_token_id=0, eos_token_id=0
    )
    return GPT2LMHeadModel(config)


TRANSFORMER = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "num_labels": CLASSES,
}
NETWORKS: Mapping[str, Callable[[], nn.Module]] = {
    "ResNet": resnet,
    "ConvNeXt": convnext,
    "MobileNetV2": mobilenet,
    "RegNet": regnet,
    "ViT": vit,
    "Swin": swin,
    "BERT": bert,
    "GPT-2": gpt2,
    "DenseNet-like": DenseNet,
}


def network(name: str, *, seed: int = 0) -> nn.Module:
    """One of `NETWORKS`, in evaluation, with weights of that seed."""
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        return NETWORKS[name]().eval()


def batch(name: str, count: int = 8) -> Inputs:
    """Images ``(N, 3, 32, 32)`` for it, or texts of 8 tokens, for BERT of different lengths."""
    generator = torch.Generator().manual_seed(1)
    if name not in ("BERT", "GPT-2"):
        return torch.randn(count, 3, 32, 32, generator=generator)
    inputs = {"input_ids": torch.randint(TOKENS, (count, 8), generator=generator)}
    if name == "BERT":
        lengths = torch.arange(count) % 5 + 4
        inputs["attention_mask"] = (torch.arange(8) < lengths[:, None]).long()
    return inputs


def prune(name: str, model: nn.Module) -> ed.PruneResult:
    """The model at 0.6 of its FLOPs."""
    return ed.prune(model, [batch(name)], target={"flops": KEPT}, progress=False)


def row(name: str, result: ed.PruneResult, obstacle: str | None) -> str:
    """A row of the table.

    Args:
        name: The network.
        result: What became of it.
        obstacle: Why its file needs `into`, or None.
    """
    plan = result.plan
    cells = (
        name,
        len(plan),
        sum(line.form != "dense" for line in plan.values()),
        _counted(line.note for line in plan.values() if line.form == "dense"),
        _counted(plan.skipped.values()),
        f"{result.flops_after / result.flops_before:.2f}",
        "`into=`" if obstacle else "class-free",
    )
    return f"| {' | '.join(map(str, cells))} |"


def _counted(reasons: Iterable[str]) -> str:
    """Each reason, up to its first colon or semicolon, and how often it is there; the most frequent first."""
    counts = Counter(re.split("[;:]", reason)[0] for reason in reasons)
    return "; ".join(reason if n == 1 else f"{n} × {reason}" for reason, n in counts.most_common())


def saved(result: ed.PruneResult, path: Path) -> str | None:
    """Saves a result; why its file needs `into`, or None."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result.save(path)
    return str(caught[0].message) if caught else None


def main() -> None:
    """Prunes every network and writes the table."""
    rows = [
        "| network | covered | cut | covered and left whole | listed as not covered | FLOPs | file |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in NETWORKS:
        result = prune(name, network(name))
        with tempfile.TemporaryDirectory() as folder:
            rows.append(row(name, result, saved(result, Path(folder) / "net.safetensors")))
        print(rows[-1])
    text = PAGE.read_text()
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    PAGE.write_text("\n".join((before + BEGIN, *rows, END)) + after)


if __name__ == "__main__":
    main()
