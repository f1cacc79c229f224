"""Networks that run a forward with weights handed in, and their frozen heads."""

from lit_merge.networks.base import Network, compute_dtype
from lit_merge.networks.heads import CosineHeads, Heads
from lit_merge.networks.hugging_face import HuggingFaceImageEncoder
from lit_merge.networks.hugging_face_text import HuggingFaceTextEncoder
from lit_merge.networks.linear_heads import LinearHeads
from lit_merge.networks.open_clip import OpenClipImageEncoder
from lit_merge.networks.released_heads import ReleasedHeads
from lit_merge.networks.zero_shot import ZeroShotHeads

__all__ = [
    "CosineHeads",
    "Heads",
    "HuggingFaceImageEncoder",
    "HuggingFaceTextEncoder",
    "LinearHeads",
    "Network",
    "OpenClipImageEncoder",
    "ReleasedHeads",
    "ZeroShotHeads",
    "compute_dtype",
]
