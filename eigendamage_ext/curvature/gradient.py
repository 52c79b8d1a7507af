"""The gradient of the mean loss at the given labels, by every weight and bias."""

from torch import Tensor
from torch.nn.grad import conv2d_weight

from eigendamage_ext.curvature.batches import Batch
from eigendamage_ext.curvature.layers import LayerSpec
from eigendamage_ext.curvature.moments import over_positions, pad
from eigendamage_ext.curvature.second_pass import WeightGradients


class Gradients(WeightGradients):
    """Sums the gradients of the examples' losses."""

    caller = "gradients"
    by_example = apart = False

    def add_input(self, name: str, x: Tensor, output: Tensor, batch: Batch) -> None:
        """Keeps the input; refuses a batch without labels."""
        if batch.targets is None:
            raise ValueError(
                f"gradients: loader must yield (input, target), got inputs alone in batch {batch.index}; "
                "add the labels, at which the loss has its gradient"
            )
        super().add_input(name, x, output, batch)

    def add(self, name: str, x: Tensor, g: Tensor, out: Tensor) -> None:
        """Adds the gradient of the batch's summed loss."""
        add_gradient(self.specs[name], x, g, out)


def add_gradient(spec: LayerSpec, x: Tensor, g: Tensor, out: Tensor) -> None:
    """Adds Σ_n ∇W_n of a batch to `out`.

    Args:
        spec: The layer.
        x: Its input, ``(N, c_in, H, W)`` or ``(N, …, c_in)``.
        g: The gradient at its output, ``(N, c_out, H, W)`` or ``(N, …, c_out)``.
        out: The sum so far, ``(c_out, D)``; the last column is that of a bias.
    """
    x, g = x.to(out.dtype), g.to(out.dtype)
    weight = out[:, :-1] if spec.bias else out
    if spec.kind == "Linear":
        weight += g.reshape(-1, spec.out_channels).mT @ x.reshape(-1, spec.in_channels)
    else:
        shape = (spec.out_channels, spec.in_per_group, *spec.kernel_size)
        geometry = {"stride": spec.stride, "dilation": spec.dilation, "groups": spec.groups}
        gradient = conv2d_weight(pad(spec, x), shape, g, **geometry)  # type: ignore[no-untyped-call]
        weight += gradient.flatten(1)
    if spec.bias:
        out[:, -1] += over_positions(spec, g, out.dtype).sum(dim=0)
