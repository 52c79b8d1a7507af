"""Image sets as plain tensors, and a small seeded loader. Nothing is downloaded.

Images are float32 ``(N, C, H, W)`` in [0, 1], labels int64 ``(N,)``.
"""

from .archives import load_jpegs, load_npz
from .digits import digits
from .loader import TensorLoader, Transform
from .tensors import Split
from .transforms import crop_flip, normalize

__all__ = [
    "Split",
    "TensorLoader",
    "Transform",
    "crop_flip",
    "digits",
    "load_jpegs",
    "load_npz",
    "normalize",
]
