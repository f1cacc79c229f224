"""Encoders that run with weights handed to them, and the frozen heads on them.

Libraries of models are imported when a network is built. Nothing here merges or adapts.
"""

from lit_merge.networks.heads.base import Heads
from lit_merge.networks.heads.cosine import CosineHeads, ReleasedHeads
from lit_merge.networks.heads.linear import LinearHeads, load_heads
from lit_merge.networks.heads.zero_shot import ZeroShotHeads
from lit_merge.networks.image_encoders import HuggingFaceImageEncoder, OpenClipImageEncoder
from lit_merge.networks.network import Network, compute_dtype
from lit_merge.networks.text_encoders import HuggingFaceTextEncoder
