"""What CLIP's image towers of any library have in common: how images go in, and heads on what comes out."""

from collections.abc import Sequence

from jaxtyping import Float, UInt8
from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from torch import Tensor, tensor

from lit_merge.errors import MergeError
from lit_merge.finite import check_finite
from lit_merge.networks.base import Network
from lit_merge.networks.linear_heads import load_heads
from lit_merge.networks.released_heads import ReleasedHeads
from lit_merge.networks.zero_shot import ZeroShotHeads


class ClipImages(Network):
    """A network of square images, uint8, (B, H, W) or (B, 3, H, W)."""

    mean: Tensor
    std: Tensor

    def take(
        self,
        image_size: int | Sequence[int],
        mean: Sequence[float] | None,
        std: Sequence[float] | None,
        heads: str | ZeroShotHeads | ReleasedHeads,
        config: str,
    ) -> None:
        """The end of building: size of images, mean and deviation of their pixels (CLIP's for None), heads."""
        check_finite({"mean": mean, "std": std}, config)
        self.heads = load_heads(heads) if isinstance(heads, str) else heads.build(config)
        self.image_size = int(image_size if isinstance(image_size, int) else image_size[0])
        self.register_buffer("mean", tensor(mean or OPENAI_DATASET_MEAN)[:, None, None], False)
        self.register_buffer("std", tensor(std or OPENAI_DATASET_STD)[:, None, None], False)
        self.freeze()

    def prepare(self, inputs: UInt8[Tensor, "B ..."]) -> Float[Tensor, "B 3 H W"]:
        if inputs.shape[-2:] != (self.image_size, self.image_size):
            raise MergeError(
                f"images of {' × '.join(map(str, inputs.shape[-2:]))} for a network that takes squares of "
                f"{self.image_size}: set the data's image_size"
            )
        images = inputs if inputs.ndim == 4 else inputs[:, None].expand(-1, 3, -1, -1)
        return (images.to(self.mean.dtype) / 255 - self.mean) / self.std
