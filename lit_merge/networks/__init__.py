"""Networks that run a forward with weights handed in, and their frozen heads."""

from lit_merge.networks.base import Network
from lit_merge.networks.heads import CosineHeads, ReleasedHeads
from lit_merge.networks.open_clip import OpenClipImageEncoder
from lit_merge.networks.zero_shot import ZeroShotHeads

__all__ = ["CosineHeads", "Network", "OpenClipImageEncoder", "ReleasedHeads", "ZeroShotHeads"]
