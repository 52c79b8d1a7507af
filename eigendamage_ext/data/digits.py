"""scikit-learn's handwritten digits."""

import torch

from .tensors import Split


def digits(seed: int = 0, *, test_fraction: float = 0.25) -> Split:
    """scikit-learn's 1,797 handwritten digits, ``(N, 1, 8, 8)``, split with every class in proportion.

    Args:
        seed: Chooses the split.
        test_fraction: Share of every class in the test part.

    Raises:
        ImportError: scikit-learn is not installed.
    """
    if not 0 < test_fraction < 1:
        raise ValueError(f"digits: test_fraction must lie between 0 and 1, got {test_fraction}")
    try:
        from sklearn.datasets import load_digits  # type: ignore[import-untyped,unused-ignore]
    except ImportError as error:
        raise ImportError(
            "digits: scikit-learn must be installed (it holds the images); "
            'pip install "eigendamage-ext[demo]"'
        ) from error
    bunch = load_digits()
    images = torch.from_numpy(bunch.images).float().div(16).unsqueeze(1)
    labels = torch.from_numpy(bunch.target).long()
    generator = torch.Generator().manual_seed(seed)
    train, test = [], []
    for label in range(int(labels.max()) + 1):
        members = (labels == label).nonzero().flatten()
        members = members[torch.randperm(len(members), generator=generator, device="cpu")]
        cut = round(len(members) * test_fraction)
        test.append(members[:cut])
        train.append(members[cut:])
    # Mixed, so that the head of either part holds every class.
    parts = [
        torch.cat(p)[torch.randperm(sum(map(len, p)), generator=generator, device="cpu")]
        for p in (train, test)
    ]
    return Split(*((images[part], labels[part]) for part in parts))
