"""Checksums in the header of a safetensors file, of the header and of every tensor: what one command writes, and
another reads as its own, is seen to be as it was written."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from lit_merge.checkpoints.json_text import parse_json
from lit_merge.checkpoints.tensor_values import checksum
from lit_merge.errors import MergeError

# Under which they stand among the header's texts.
KEY = "lit_merge_checksums"
AGAIN = "copy the file again, or remove it to have it made anew"


def with_checksums(metadata: Mapping[str, str], tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Texts for a header, with the checksums of these tensors."""
    shapes = {name: tuple(value.shape) for name, value in tensors.items()}
    dtypes = {name: value.dtype for name, value in tensors.items()}
    sums = {name: checksum(value) for name, value in tensors.items()}
    whole = _digest(metadata, shapes, dtypes, sums)
    return {**metadata, KEY: json.dumps({"header": whole, "tensors": sums})}


class Checksums:
    """Those of a file that is read: each tensor is looked at the first time that it is read.

    Args:
        path: of the file, for messages.
        metadata: texts of its header, of which the checksums are taken away.
        shapes: of all tensors.
        dtypes: likewise.

    Raises:
        MergeError: the header is not as it was written. Files of others have no checksums.
    """

    def __init__(
        self,
        path: Path,
        metadata: dict[str, str],
        shapes: Mapping[str, tuple[int, ...]],
        dtypes: Mapping[str, torch.dtype],
    ) -> None:
        self.path, self._left = path, dict[str, str]()
        if (text := metadata.pop(KEY, None)) is None:
            return
        try:
            about = parse_json(text)
            self._left = dict(about["tensors"])
            right = about["header"] == _digest(metadata, shapes, dtypes, self._left)
        except (ValueError, LookupError, TypeError):
            right = False
        if not right:
            raise MergeError(f"{path} is not as it was saved: its header was changed; {AGAIN}")

    def check(self, name: str, value: Tensor) -> None:
        """Raises MergeError where a tensor that was read is not as it was written."""
        wanted = self._left.get(name)
        if wanted is not None and wanted != checksum(value):
            raise MergeError(
                f"{self.path}: {name} is not as it was saved: its checksum is another one; {AGAIN}", weight=name
            )
        self._left.pop(name, None)


def _digest(
    metadata: Mapping[str, str],
    shapes: Mapping[str, tuple[int, ...]],
    dtypes: Mapping[str, torch.dtype],
    sums: Mapping[str, str],
) -> str:
    rows = sorted((name, list(shape), str(dtypes[name]), sums[name]) for name, shape in shapes.items())
    text = json.dumps([sorted(metadata.items()), rows, sorted(sums)])
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
