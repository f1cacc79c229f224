"""The suite as lit_merge takes it: a network with frozen heads, and the token ids of every task."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxtyping import Bool, Int
from torch import Tensor

from lit_merge.checkpoints import SafetensorsFile
from lit_merge.data import TaskData
from lit_merge.data.streams import ImageSource
from lit_merge.data.task_data import Labelled
from lit_merge.networks.heads.cosine import CosineHeads
from lit_merge.networks.network import Network
from text_suite.encoder import fast_products, read_encoder, real_tokens, trimmed


class TextNetwork(Network):
    """The sentence encoder with frozen heads on it. Inputs are token ids (B, S), 0 where there is no text any more.

    Args:
        folder: of a suite that build.py made.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.encoder = read_encoder(folder)
        self.heads = CosineHeads.load(str(folder / "heads.safetensors"))
        self.freeze()

    def prepare(self, inputs: Int[Tensor, "B S"]) -> Int[Tensor, "B s"]:
        return trimmed(inputs)

    def token_mask(self, inputs: Int[Tensor, "B S"]) -> Bool[Tensor, "B s"]:
        return real_tokens(inputs)

    def features(self, inputs: Mapping[str, Tensor]) -> dict[str, Any]:
        with fast_products(self.device):
            return super().features(inputs)


class TokenIds(ImageSource):
    """Texts without labels, where lit_merge expects images: it looks at their number only."""

    def __init__(self, ids: Int[Tensor, "N S"]) -> None:
        self.ids = ids

    def __len__(self) -> int:
        return len(self.ids)

    def read(self, indices: Sequence[int]) -> Int[Tensor, "B S"]:
        return self.ids[list(indices)]


class TextSuite(TaskData):
    """Token ids of a suite: `pool` to adapt on, `validation` and `test` with labels, all disjoint.

    Args:
        folder: of a suite that build.py made.
        batch_size: texts of each task per adaptation step and process.
        seed: of the order in which texts are drawn.
    """

    def __init__(self, folder: Path, batch_size: int = 8, seed: int = 0) -> None:
        super().__init__(batch_size, eval_batch_size=256, num_workers=0, seed=seed)
        self.folder = folder
        self._tokens = SafetensorsFile(folder / "tokens.safetensors")

    @property
    def tasks(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(name.rpartition("/")[0] for name in self._tokens.shapes))

    @property
    def protocol(self) -> str:
        return "inductive (adapted on other texts than tested on)"

    def unlabelled(self) -> Mapping[str, ImageSource]:
        return {task: TokenIds(self._tokens.read(f"{task}/pool")) for task in self.tasks}

    def labelled(self, split: str) -> Mapping[str, Labelled]:
        labels = SafetensorsFile(self.folder / "labels.safetensors")
        found = {}
        for task in self.tasks:
            ids, classes = self._tokens.read(f"{task}/{split}"), labels.read(f"{task}/{split}")
            if split == "test":
                # Texts of similar length lie together: a batch holds little padding.
                order = real_tokens(ids).sum(1).argsort(stable=True)
                ids, classes = ids[order], classes[order]
            found[task] = (TokenIds(ids), classes)
        return found
