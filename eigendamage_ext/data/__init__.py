"""Image sets as plain tensors, and a small seeded loader. Nothing is downloaded.

Images are float32 ``(N, C, H, W)`` in [0, 1], or uint8 where asked for; labels are int64 ``(N,)``.
"""

from .archives import load_jpegs, load_npz
from .cifar import load_cifar10, load_cifar100
from .digits import digits
from .folders import class_names, load_folder, load_tiny_imagenet
from .idx import load_idx, load_mnist
from .loader import TensorLoader, Transform
from .sets import ImageSet, load_dataset
from .tensors import Split
from .transforms import crop_flip, normalize

__all__ = [
    "ImageSet",
    "Split",
    "TensorLoader",
    "Transform",
    "class_names",
    "crop_flip",
    "digits",
    "load_cifar10",
    "load_cifar100",
    "load_dataset",
    "load_folder",
    "load_idx",
    "load_jpegs",
    "load_mnist",
    "load_npz",
    "load_tiny_imagenet",
    "normalize",
]
