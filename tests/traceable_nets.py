"""Networks that say what they do to torch.fx, each in another way, and others that do not."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class InPlace(nn.Module):
    """Changes tensors that have a second name."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(6, 8)
        self.down = nn.Linear(8, 6)

    def forward(self, x: Tensor) -> Tensor:
        y = self.up(x)
        z = y
        y += 1
        y *= 2
        y[:, 1:3] = x[:, 1:3]
        y.mul_(0.5).add_(z)
        F.relu(y, inplace=True)
        return self.down(z - x.mean())


class Gate(nn.Module):
    """Parameters, buffers of both kinds and a plain tensor of its own; two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.randn(6))
        self.register_parameter("absent", None)
        self.register_buffer("offset", torch.randn(6))
        self.register_buffer("mask", torch.randint(0, 2, (6,)), persistent=False)
        self.plain = torch.randn(6)

    def forward(self, x: Tensor, scaled: bool, bias: Tensor | None = None) -> tuple[Tensor, Tensor]:
        y = x * self.scale if scaled else x
        if bias is not None:
            y = y + bias
        return y + self.offset, (y * self.mask).masked_fill(y > 1, float("-inf")).exp() + self.plain


class Gated(nn.Module):
    """Calls a module with constants, keywords and several inputs, and a layer twice."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 6)
        self.gate = Gate()
        self.bare = nn.Parameter(torch.randn(6, 6))

    def forward(self, x: Tensor, twice: bool = True) -> Tensor:
        x, gate = self.gate(self.layer(x), True, bias=x)
        if twice:
            x = self.layer(x)
        weight = torch.einsum("ij,kj->ik", self.bare, self.layer.weight)
        return F.linear(x * gate, weight, torch.tensor([0.5] * 6, dtype=x.dtype if False else None))


class DropPath(nn.Module):
    """Leaves out its input for some examples, in training."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        kept = x.new_empty((x.shape[0], 1)).bernoulli_(0.7)
        return x * kept / 0.7


class Modes(nn.Module):
    """Does in training what it does not do in evaluation, with another module even."""

    def __init__(self) -> None:
        super().__init__()
        self.drop = DropPath()
        self.aid = Gate()
        self.layer = nn.Linear(6, 6)
        self.norm = nn.BatchNorm1d(6)

    def forward(self, x: Tensor) -> Tensor:
        x = F.dropout(self.norm(self.layer(x)), 0.5, self.training)
        x = F.batch_norm(
            x, self.norm.running_mean, self.norm.running_var, training=self.training, momentum=0.3
        )
        x = self.drop(F.dropout(x, p=0.3 if self.training else 0.0))
        return x + self.aid(x, True)[0] if self.training else x * 2


class Attention(nn.Module):
    """A pre-norm block of attention, once by hand and once by the module."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(6, 8)
        self.position = nn.Parameter(torch.randn(1, 1, 8))
        self.norm = nn.LayerNorm(8)
        self.qkv = nn.Linear(8, 24)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True, bias=False)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x) + self.position
        n, t = x.shape[0], x.size(1)
        q, k, v = self.qkv(self.norm(x)).view(n, t, 3, 2, -1).permute(2, 0, 3, 1, 4).unbind(0)
        x = x + F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, t, 8)
        y, _ = self.attention(x, x, x, need_weights=False)
        return self.head((x + y).mean(1))


class Tied(nn.Module):
    """A layer by two names, a parameter by two names, a buffer by two names."""

    def __init__(self) -> None:
        super().__init__()
        self.encode = nn.Embedding(7, 6, padding_idx=0)
        self.middle = nn.Linear(6, 6)
        self.again = self.middle
        self.decode = nn.Linear(6, 7, bias=False)
        self.decode.weight = self.encode.weight
        self.register_buffer("a", torch.randn(6))
        self.register_buffer("b", self.a)

    def forward(self, x: Tensor) -> Tensor:
        return self.decode(self.again(torch.tanh(self.middle(self.encode(x)) + self.a * self.b)))


class Causal(nn.Module):
    """One head of causal attention, positions and mask as long as the text."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Embedding(7, 6)
        self.position = nn.Embedding(9, 6)
        self.qkv = nn.Linear(6, 18)
        self.register_buffer("mask", torch.ones(9, 9).tril(), persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        _, length = tokens.size()
        x = self.token(tokens) + self.position(torch.arange(length, device=tokens.device))
        q, k, v = self.qkv(x).split(6, 2)
        scores = (q @ k.transpose(-2, -1)) * 6**-0.5
        scores = scores.masked_fill(self.mask[:length, :length] == 0, float("-inf"))
        return F.softmax(scores, -1) @ v


class Recurrent(nn.Module):
    """An LSTM in both directions, its states too, and a GRU behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(6, 4, 2, batch_first=True, dropout=0.3, bidirectional=True)
        self.gru = nn.GRU(8, 5, bias=False, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        y, (h, c) = self.lstm(x)
        return self.gru(y)[1][0] + h.sum((0, 2)).unsqueeze(1) * c.mean()


class Encoder(nn.Module):
    """torch's own encoder with a norm behind it, and one layer that norms first."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(6, 2, 9, batch_first=True, activation="gelu", bias=False)
        self.encoder = nn.TransformerEncoder(layer, 2, nn.LayerNorm(6, 1e-3), enable_nested_tensor=False)
        self.layer = nn.TransformerEncoderLayer(6, 3, 7, 0.2, norm_first=True, layer_norm_eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(self.encoder(x.to("cpu")).transpose(0, 1).to(torch.device("cpu"), x.dtype))


class Variadic(nn.Module):
    """Takes and hands on any number of arguments."""

    class Sum(nn.Module):
        def forward(self, first: Tensor, *others: Tensor, scale: float = 1.0, **named: Tensor) -> Tensor:
            for other in others:
                first = first + other
            return scale * first + named["bias"] if "bias" in named else scale * first

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 6)
        self.sums = nn.ModuleList(self.Sum() for _ in range(3))

    def forward(self, x: Tensor, *more: Tensor, scale: float = 2.0, **named: Tensor) -> Tensor:
        x = self.sums[0](self.layer(x), x, x * 2, *more, scale=scale, **named)
        return self.sums[2](self.sums[1](x, bias=self.layer(x)), x)


class Concatenated(nn.Module):
    """Hands lists of tensors from module to module, through a Sequential and an iterated ModuleList."""

    class Join(nn.Module):
        def forward(self, parts: list[Tensor]) -> Tensor:
            return torch.cat(parts, 1) if len(parts) > 1 else parts[0]

    class Convolution(nn.Conv2d):
        """A layer that only builds itself in another way."""

        def __init__(self, channels: int) -> None:
            super().__init__(channels, 4, 3, padding=1)

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([self.Convolution(3), self.Convolution(7)])
        self.norms = nn.ModuleDict({"7": nn.GroupNorm(1, 7), "11": nn.Identity()})
        self.joins = nn.ModuleList(self.Join() for _ in range(4))
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d((1, None)), nn.Flatten(), nn.LazyLinear(5))
        self.head(torch.zeros(1, 11, 1, 8))

    def forward(self, x: Tensor) -> Tensor:
        parts, joins = [x], iter(self.joins)
        for layer, norm in zip(self.layers, self.norms.values(), strict=True):
            parts.append(layer(F.relu(next(joins)(parts))))
            parts = [norm(next(joins)(parts))]
        return self.head(parts[0][..., 2:3, :])


ROWS, IMAGES, TOKENS = (6,), (3, 8, 8), (4, 6)
NETS = {
    "in place": (InPlace, ROWS),
    "gated": (Gated, ROWS),
    "modes": (Modes, ROWS),
    "attention": (Attention, TOKENS),
    "tied": (Tied, None),
    "causal": (Causal, None),
    "recurrent": (Recurrent, TOKENS),
    "encoder": (Encoder, TOKENS),
    "variadic": (Variadic, ROWS),
    "concatenated": (Concatenated, IMAGES),
}


def traceable_net(name: str) -> tuple[nn.Module, Tensor]:
    """A network in eval mode and seven examples."""
    build, shape = NETS[name]
    return build().eval(), torch.randn(7, *shape) if shape else torch.randint(0, 7, (7, 3))
