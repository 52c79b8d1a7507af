"""What a network in a file may be made of. None of it reads files, runs text or looks up a name.

Names in a file are keys of these tables and nothing else, so what is not here cannot be reached from a file.
"""

import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

CONTAINERS: Mapping[str, type[nn.Module]] = {
    kind.__name__: kind for kind in (nn.Sequential, nn.ModuleList, nn.ModuleDict, nn.Module)
}

LEAVES: Mapping[str, type[nn.Module]] = {
    name: getattr(nn, name)
    for name in (
        "Bilinear Conv1d Conv2d Conv3d ConvTranspose1d ConvTranspose2d ConvTranspose3d Embedding Linear "
        "MultiheadAttention TransformerEncoder TransformerEncoderLayer GRU LSTM "
        "BatchNorm1d BatchNorm2d BatchNorm3d GroupNorm InstanceNorm1d InstanceNorm2d InstanceNorm3d "
        "LayerNorm LocalResponseNorm RMSNorm "
        "CELU ELU GELU GLU Hardshrink Hardsigmoid Hardswish Hardtanh LeakyReLU LogSigmoid LogSoftmax Mish "
        "PReLU RReLU ReLU ReLU6 SELU SiLU Sigmoid Softmax Softmax2d Softmin Softplus Softshrink Softsign "
        "Tanh Tanhshrink Threshold "
        "AdaptiveAvgPool1d AdaptiveAvgPool2d AdaptiveAvgPool3d AdaptiveMaxPool1d AdaptiveMaxPool2d "
        "AdaptiveMaxPool3d AvgPool1d AvgPool2d AvgPool3d LPPool1d LPPool2d MaxPool1d MaxPool2d MaxPool3d "
        "AlphaDropout Dropout Dropout1d Dropout2d Dropout3d FeatureAlphaDropout "
        "CircularPad1d CircularPad2d CircularPad3d ConstantPad1d ConstantPad2d ConstantPad3d "
        "ReflectionPad1d ReflectionPad2d ReflectionPad3d ReplicationPad1d ReplicationPad2d "
        "ReplicationPad3d ZeroPad1d ZeroPad2d ZeroPad3d "
        "ChannelShuffle Flatten Fold Identity PixelShuffle PixelUnshuffle Unflatten Unfold Upsample "
        "UpsamplingBilinear2d UpsamplingNearest2d CosineSimilarity"
    ).split()
}

_OPERATORS = (
    "abs add and_ eq floordiv ge getitem gt iadd iand ifloordiv imatmul imul invert ior ipow isub itruediv "
    "ixor le lt matmul mod mul ne neg not_ or_ pos pow setitem sub truediv xor"
)
_TORCH = (
    "abs add addcmul addmm amax amin arange argmax argmin baddbmm bmm cat ceil chunk clamp clone concat cos "
    "cumsum diff div einsum eq erf exp flatten flip floor full full_like gather ge gt index_select le log "
    "log1p log2 log_softmax logical_and logical_not logical_or logsumexp lt masked_fill matmul max maximum "
    "mean min minimum mm movedim mul narrow ne neg ones ones_like outer permute pow prod rand_like "
    "randn_like reciprocal relu relu_ repeat_interleave reshape roll round rsqrt selu sigmoid sigmoid_ sign "
    "sin softmax split sqrt square squeeze stack std sub sum swapaxes swapdims tanh tanh_ tensor_split tile "
    "topk transpose tril triu unbind unflatten unsqueeze var var_mean where zeros zeros_like"
)
_FUNCTIONAL = (
    "adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d "
    "adaptive_max_pool3d affine_grid alpha_dropout avg_pool1d avg_pool2d avg_pool3d batch_norm bilinear celu "
    "celu_ channel_shuffle conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d "
    "cosine_similarity dropout dropout1d dropout2d dropout3d elu elu_ embedding feature_alpha_dropout fold "
    "gelu glu grid_sample group_norm hardshrink hardsigmoid hardswish hardtanh hardtanh_ instance_norm "
    "interpolate layer_norm leaky_relu leaky_relu_ linear local_response_norm log_softmax logsigmoid "
    "lp_pool1d lp_pool2d max_pool1d max_pool1d_with_indices max_pool2d max_pool2d_with_indices max_pool3d "
    "max_pool3d_with_indices mish normalize one_hot pad pixel_shuffle pixel_unshuffle prelu relu relu6 relu_ "
    "rms_norm rrelu rrelu_ scaled_dot_product_attention selu selu_ sigmoid silu softmax softmin softplus "
    "softshrink softsign tanh tanhshrink threshold threshold_ unfold upsample"
)
FUNCTIONS: Mapping[str, Callable[..., Any]] = {
    f"{module.__name__.removeprefix('torch.nn.')}.{name}": getattr(module, name)
    for module, names in ((operator, _OPERATORS), (torch, _TORCH), (F, _FUNCTIONAL))
    for name in names.split()
}

METHODS = frozenset(
    (
        "abs add add_ addcmul amax amin argmax argmin bernoulli_ bfloat16 bmm bool ceil chunk clamp clamp_ "
        "clone contiguous cos cumsum detach dim div div_ double eq erf exp expand expand_as flatten flip "
        "float floor gather ge gt half index_select int le log log1p log_softmax logical_and logical_not "
        "logical_or logsumexp long lt masked_fill masked_fill_ matmul max maximum mean min minimum mm "
        "movedim mul mul_ narrow ndimension ne neg new_empty new_full new_ones new_zeros numel permute pow "
        "prod reciprocal relu relu_ repeat repeat_interleave reshape reshape_as roll round rsqrt sigmoid "
        "sigmoid_ sign sin size softmax split sqrt square squeeze std stride sub sub_ sum swapaxes swapdims "
        "t tanh tanh_ tile to topk transpose tril triu type_as unbind unflatten unfold unsqueeze var view "
        "view_as where"
    ).split()
)

ATTRIBUTES = frozenset("T device dtype mT ndim shape".split())

WORDS = frozenset(
    (
        "area bicubic bilinear border circular constant cpu floor gelu linear mean nearest nearest-exact "
        "none reflect reflection relu replicate same sum tanh trilinear trunc valid zeros"
    ).split()
)

DTYPES: Mapping[str, torch.dtype] = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        torch.bool,
        torch.uint8,
        torch.int8,
        torch.int16,
        torch.int32,
        torch.int64,
        torch.float16,
        torch.bfloat16,
        torch.float32,
        torch.float64,
    )
}

MEMORY_FORMATS: Mapping[str, torch.memory_format] = {
    str(layout).removeprefix("torch."): layout
    for layout in (
        torch.contiguous_format,
        torch.preserve_format,
        torch.channels_last,
        torch.channels_last_3d,
    )
}

# Where a class of one of these was only given another constructor, it does what its base does.
_HARMLESS = frozenset(
    "__init__ __doc__ __module__ __annotations__ __annotate_func__ __annotations_cache__ __firstlineno__ "
    "__static_attributes__ __constants__ __qualname__ __parameters__ extra_repr reset_parameters".split()
)


def known_class(module: nn.Module) -> str | None:
    """The class in `LEAVES` or `CONTAINERS` that a module behaves as; None: it has code of its own."""
    for kind in type(module).__mro__:
        name = kind.__name__
        if LEAVES.get(name) is kind or CONTAINERS.get(name) is kind:
            return name
        if not vars(kind).keys() <= _HARMLESS:
            return None
    return None
