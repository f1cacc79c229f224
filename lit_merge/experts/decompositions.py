"""Singular value decompositions that several methods, ranks and scalings share, computed once."""

import hashlib
import json
import os
from pathlib import Path
from urllib.parse import quote

from jaxtyping import Float
from torch import Tensor

from lit_merge.bank.low_rank import LowRank
from lit_merge.checkpoints import SafetensorsFile, write_safetensors
from lit_merge.checkpoints.inputs import writes
from lit_merge.checkpoints.locations import destination
from lit_merge.checkpoints.locks import clear_workplaces
from lit_merge.checkpoints.own import check_own
from lit_merge.errors import MergeError

# In a file's metadata: which matrix it is of.
MATRIX = "lit_merge_matrix"


class Decompositions:
    """Remembers the leading singular triplets of every matrix that was asked for, in memory or in files.

    Args:
        folder: where files are kept for later runs, one per matrix; None keeps them in memory only.
        of: what tells these experts from others (files, sizes, times); other experts get another subfolder.

    Raises:
        MergeError: a folder that cannot be written; an input of the command, or a place in one; a folder that holds
            another output, or lies in one.
    """

    def __init__(self, folder: str | os.PathLike[str] | None = None, of: object = None) -> None:
        digest = hashlib.blake2b(json.dumps(of, sort_keys=True, default=str).encode(), digest_size=8).hexdigest()
        self.folder = None if folder is None else destination(folder) / digest
        if folder is not None:
            writes(destination(folder), "decompositions")
        if self.folder is not None and os.path.lexists(self.folder):
            check_own(self.folder)
            clear_workplaces(self.folder)
        self.computed = 0
        """Number of decompositions that had to be computed."""
        self._kept: dict[str, LowRank] = {}

    def get(self, key: str, matrices: Float[Tensor, "T m n"], rank: int, exact: bool = False) -> LowRank:
        """The leading `rank` singular triplets of `matrices`.

        Args:
            key: names the matrices: the same key always stands for the same ones.
            matrices: what to decompose where it is not known yet.
            rank: number of directions; all are computed and kept, so that one decomposition serves every rank.
            exact: see `truncated_svd`.
        """
        known = self._kept.get(key) or self._read(key, tuple(matrices.shape))
        if known is None:
            known = LowRank.from_dense(matrices, min(matrices.shape[1:]), exact)
            self.computed += 1
            if self.folder is not None:
                tensors = {"U": known.U, "S": known.S, "V": known.V}
                write_safetensors(self._path(key), tensors, {"format": "pt", MATRIX: key}, overwrite=True)
        if self.folder is None:
            self._kept[key] = known
        return known.truncate(rank)

    def _path(self, key: str) -> Path:
        assert self.folder is not None
        return self.folder / f"{quote(key, safe=' ')}.safetensors"

    def _read(self, key: str, shape: tuple[int, ...]) -> LowRank | None:
        if self.folder is None or not self._path(key).exists():
            return None
        check_own(self._path(key))
        file = SafetensorsFile(self._path(key))
        rank = min(shape[1:])
        wanted = {"U": (*shape[:2], rank), "S": (shape[0], rank), "V": (shape[0], shape[2], rank)}
        # Files of earlier versions do not say which matrix they are of.
        if file.shapes != wanted or file.metadata.get(MATRIX, key) != key:
            raise MergeError(f"{file.path} is no decomposition of {key}: remove it, or choose another folder")
        return LowRank(*(file.read(name) for name in ("U", "S", "V")))
