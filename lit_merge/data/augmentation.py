"""Augmentation: unlabelled inputs that are changed a little each time that they come up."""

import zlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import grid_sample

from lit_merge.data.texts.tokens import PADDING, SEGMENT
from lit_merge.errors import Finite, MergeError


@dataclass(frozen=True, kw_only=True)
class Augmentation(Finite, ABC):
    """Changes inputs of the stream to adapt on, and no others. The merge and the experts see the same changed inputs.

    How an input is changed depends on the data's seed, its task, and how many inputs of the task were drawn before: a
    fit that goes on sees what the unbroken one would have seen.
    """

    spare: Sequence[str] = ()
    """Tasks whose inputs stay as they are."""

    @abstractmethod
    def change(self, inputs: Tensor, draws: Sequence[torch.Generator]) -> Tensor:
        """Inputs (B, …), each changed by numbers that are drawn from its own one of `draws`."""

    def __call__(self, seed: int, inputs: Tensor, task: str, first: int) -> Tensor:
        """A batch of a task, of which `first` inputs were drawn before."""
        if task in self.spare:
            return inputs
        seeds = (zlib.crc32(f"augmentation/{seed}/{task}/{first + i}".encode()) for i in range(len(inputs)))
        return self.change(inputs, [torch.Generator().manual_seed(one) for one in seeds])


@dataclass(frozen=True, kw_only=True)
class ImageAugmentation(Augmentation):
    """Turns, scales, shifts and brightens every image a little, each by a number drawn evenly from its range.

    Where nothing of the image comes to lie, its border's mean colour is. Choose ranges that leave every class what it
    is: a 6 that is turned by 180 degrees is a 9.

    Args:
        degrees: turns by up to so many, to either side.
        scale: makes larger or smaller by up to this share.
        shift: moves by up to this share of height and width.
        brightness: makes lighter or darker by up to this share.
        flip: mirrors every other image, left to right.
        spare: tasks whose images stay as they are.

    Raises:
        MergeError: a number that is negative; degrees above 180, or a share of 1 or more.
    """

    degrees: float = 10.0
    scale: float = 0.1
    shift: float = 0.1
    brightness: float = 0.2
    flip: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.degrees <= 180:
            raise MergeError(f"augment: degrees={self.degrees}: expected a number from 0 to 180")
        for name in ("scale", "shift", "brightness"):
            if not 0 <= (value := getattr(self, name)) < 1:
                raise MergeError(f"augment: {name}={value}: expected a share from 0, below 1")

    def change(self, inputs: Tensor, draws: Sequence[torch.Generator]) -> Tensor:
        drawn = torch.stack([2 * torch.rand(6, generator=draw) - 1 for draw in draws])
        angle, scale, down, right, light, flip = drawn.view(len(drawn), 6, 1, 1, 1).unbind(1)
        images = inputs if inputs.dim() == 4 else inputs[:, None]
        height, width = images.shape[-2:]
        if self.flip:
            images = torch.where(flip > 0, images.flip(-1), images)
        # All at once, which torchvision's functions do for images that change alike only.
        values = images.float()
        border = torch.cat([values[..., 0, :], values[..., -1, :], values[..., 0], values[..., -1]], dim=-1)
        fill = border.mean(-1)[..., None, None]
        turn = torch.deg2rad(self.degrees * angle)
        size, right, down = (
            1 + self.scale * scale,
            (self.shift * width * right).round(),
            (self.shift * height * down).round(),
        )
        # From a pixel to where it was, both counted from the middle.
        x = torch.arange(width).view(1, 1, 1, width) - (width - 1) / 2 - right
        y = torch.arange(height).view(1, 1, height, 1) - (height - 1) / 2 - down
        source = (x * turn.cos() + y * turn.sin()) / size, (y * turn.cos() - x * turn.sin()) / size
        grid = torch.stack([source[0] * (2 / width), source[1] * (2 / height)], -1)[:, 0]
        values = grid_sample(values - fill, grid, padding_mode="zeros", align_corners=False)
        values = values.add_(fill).mul_(1 + self.brightness * light)
        values = values.clamp_(0, 1) if inputs.is_floating_point() else values.clamp_(0, 255).round_()
        return values.to(inputs.dtype).view(inputs.shape)


@dataclass(frozen=True, kw_only=True)
class WordDropout(Augmentation):
    """Leaves out tokens of a text at random; the marks at its ends and between the texts of a pair stay.

    Args:
        share: of the tokens that are left out.
        spare: tasks whose texts stay as they are.

    Raises:
        MergeError: a share outside [0, 1).
    """

    share: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.share < 1:
            raise MergeError(f"augment: share={self.share}: expected a number from 0, below 1")

    def change(self, inputs: Tensor, draws: Sequence[torch.Generator]) -> Tensor:
        parts = [self._without(one[one != PADDING], draw) for one, draw in zip(inputs, draws, strict=True)]
        return torch.nn.utils.rnn.pad_sequence(parts, batch_first=True, padding_value=PADDING)

    def _without(self, text: Tensor, draw: torch.Generator) -> Tensor:
        ids = text % SEGMENT
        marks = (ids[:, None] == ids[[0, -1]]).any(1)
        return text[marks | (torch.rand(len(text), generator=draw) >= self.share)]
