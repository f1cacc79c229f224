"""Weights in several files with an index that says which weight is in which."""

import math
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from lit_merge.checkpoints.checkpoint import Checkpoint
from lit_merge.checkpoints.input_file import InputFile
from lit_merge.checkpoints.json_text import parse_json
from lit_merge.checkpoints.safetensors_writer import DIGEST
from lit_merge.checkpoints.single_file import open_one_file
from lit_merge.errors import MergeError, MergeWarning


class ShardedFiles(Checkpoint):
    """The files that an index, `model.safetensors.index.json` or another, names. Each is opened once.

    Args:
        path: the index.
        lenient: leave out what cannot be merged, rather than refuse the file: see `Checkpoint.unfit`.

    Raises:
        MergeError: no index, a shard that is missing or broken, or one that is not of this index.
    """

    def __init__(self, path: InputFile, lenient: bool = False) -> None:
        index = path.path
        self.label = str(index)
        weight_map, about = read_index(path)
        self._shards: dict[str, Checkpoint] = {}
        for shard in sorted(set(weight_map.values())):
            if not (index.parent / shard).exists():
                raise MergeError(f"{index} names {shard}, which is missing: copy or download it again")
            file = self._shards[shard] = open_one_file(index.parent / shard, lenient)
            if file.metadata.get(DIGEST) != about.get(DIGEST):
                raise MergeError(
                    f"{file.label} is of another merge than {index}: their {DIGEST} differ; copy all files of one merge"
                )
        self.unfit = {name: what for file in self._shards.values() for name, what in file.unfit.items()}
        self._where = {name: self._shards[shard] for name, shard in weight_map.items() if name not in self.unfit}
        for name, file in self._where.items():
            if name not in file.shapes:
                raise MergeError(
                    f"{index} says that {name} is in {file.label}, which has no such weight: it is a shard of another "
                    "model; copy or download it again",
                    weight=name,
                )
        for shard, file in self._shards.items():
            for name in file.shapes:
                if weight_map.get(name) != shard:
                    raise MergeError(
                        f"{file.label} holds {name}, which {index} does not place there: it is a shard of another "
                        "model; copy or download it again",
                        weight=name,
                    )
        self.inputs = (path, *(file for shard in self._shards.values() for file in shard.inputs))
        self.shapes = {name: file.shapes[name] for name, file in self._where.items()}
        self.dtypes = {name: file.dtypes[name] for name, file in self._where.items()}
        self.nbytes = sum(file.nbytes for file in self._shards.values())
        self.tied = tuple(group for file in self._shards.values() for group in file.tied)
        self._check_size(about.get("total_size"))

    def _check_size(self, total: object) -> None:
        held = sum(math.prod(shape) * self.dtypes[name].itemsize for name, shape in self.shapes.items())
        # Not refused: indices of converted models often keep the size that the model had before.
        if isinstance(total, int | float) and total != held:
            warnings.warn(
                f"{self.label} speaks of {total:,.0f} bytes of weights, its shards hold {held:,}: is a shard of "
                "another model?",
                MergeWarning,
                stacklevel=3,
            )

    def read(self, name: str) -> Tensor:
        return self._where[name].read(name)

    def read_into(self, name: str, out: Tensor, row: int = 0) -> None:
        self._where[name].read_into(name, out, row)


def read_index(file: InputFile) -> tuple[dict[str, str], Mapping[str, Any]]:
    """weight → shard, and what else the index says of them.

    Raises:
        MergeError: unreadable, a Git LFS pointer, or no index.
    """
    path, _ = file.path, file.start("an index of shards")
    try:
        index = parse_json(file.text("an index of shards"))
        weight_map, metadata = index["weight_map"], index.get("metadata")
        wellformed = bool(weight_map) and all(isinstance(shard, str) for shard in weight_map.values())
    except MergeError:
        raise
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise MergeError(f"{path} is no index of shards: it has no weight_map: {error}") from error
    if not wellformed:
        raise MergeError(f"{path} is no index of shards: its weight_map does not map weights to files")
    for shard in weight_map.values():
        # Shards lie next to their index; another place would be a stranger's choice of what to read.
        if Path(shard).name != shard or shard in ("", ".", ".."):
            raise MergeError(f"{path} names the shard {shard!r}, expected a file next to it")
    return weight_map, metadata if isinstance(metadata, dict) else {}
