"""Augmentation: unlabelled inputs that are changed a little each time that they come up."""

import zlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

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
    def change(self, one: Tensor, draw: torch.Generator) -> Tensor:
        """An input, changed by numbers that are drawn from `draw`."""

    @abstractmethod
    def join(self, parts: list[Tensor]) -> Tensor:
        """Inputs as a batch."""

    def __call__(self, seed: int, inputs: Tensor, task: str, first: int) -> Tensor:
        """A batch of a task, of which `first` inputs were drawn before."""
        if task in self.spare:
            return inputs
        draw = torch.Generator()
        parts = []
        for i, one in enumerate(inputs):
            draw.manual_seed(zlib.crc32(f"augmentation/{seed}/{task}/{first + i}".encode()))
            parts.append(self.change(one, draw))
        return self.join(parts)


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

    def change(self, one: Tensor, draw: torch.Generator) -> Tensor:
        from torchvision.transforms.v2 import functional

        angle, scale, down, right, light, flip = (2 * torch.rand(6, generator=draw) - 1).tolist()
        image = one if one.dim() == 3 else one[None]
        height, width = image.shape[1:]
        border = torch.cat([image[:, 0], image[:, -1], image[:, :, 0], image[:, :, -1]], dim=1)
        image = functional.affine(
            functional.horizontal_flip(image) if self.flip and flip > 0 else image,
            angle=angle * self.degrees,
            translate=[round(right * self.shift * width), round(down * self.shift * height)],
            scale=1 + scale * self.scale,
            shear=[0.0],
            interpolation=functional.InterpolationMode.BILINEAR,
            fill=border.float().mean(1).tolist(),
        )
        image = functional.adjust_brightness(image, 1 + light * self.brightness)
        return image.view(one.shape)

    def join(self, parts: list[Tensor]) -> Tensor:
        return torch.stack(parts)


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

    def change(self, one: Tensor, draw: torch.Generator) -> Tensor:
        text = one[one != PADDING]
        ids = text % SEGMENT
        marks = (ids[:, None] == ids[[0, -1]]).any(1)
        return text[marks | (torch.rand(len(text), generator=draw) >= self.share)]

    def join(self, parts: list[Tensor]) -> Tensor:
        return torch.nn.utils.rnn.pad_sequence(parts, batch_first=True, padding_value=PADDING)
