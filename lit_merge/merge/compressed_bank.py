"""A bank written in as few bytes as are allowed."""

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lit_merge import __version__
from lit_merge.bank.base_reference import described
from lit_merge.bank.compressed_files import CompressedFiles
from lit_merge.bank.compression import Choice, Compression
from lit_merge.bank.feature_metric import Moments
from lit_merge.bank.storage_types import TYPES
from lit_merge.bank.task_bank import TaskBank
from lit_merge.checkpoints import canonical, open_checkpoint
from lit_merge.checkpoints.conversion import DType, parse_size
from lit_merge.checkpoints.inputs import check_apart
from lit_merge.checkpoints.locations import destination
from lit_merge.errors import MergeError, check_choice

StoredAs = DType | Literal["int8", "int4"]
Origin = Literal["own", "base"]


@dataclass(frozen=True)
class Compressed:
    """What became of a bank, or would.

    Attributes:
        choice: how every weight is stored, and its error.
        nbytes: of all files.
        model: bytes of one model, in the experts' dtypes.
        weights: bytes of every weight's tensors.
    """

    choice: Choice
    nbytes: int
    model: int
    weights: dict[str, int]


def is_compressed(budget: str | None, max_size: str | None, dtype: str | None, origin: str) -> bool:
    """Whether a bank with these options is written in the compressed format."""
    return budget is not None or max_size is not None or dtype in ("int8", "int4") or origin == "base"


def compress_bank(
    bank: TaskBank,
    output: str | Path | None,
    budget: str | None = None,
    max_size: str | None = None,
    dtype: StoredAs | None = None,
    origin: Origin = "own",
    base: str | Path | None = None,
    overwrite: bool = False,
    moments: Moments | None = None,
) -> Compressed:
    """Writes a bank with the directions and the storage types that leave least error in so many bytes.

    Args:
        bank: as it is, or cut before.
        output: the folder; None writes nothing, and says what would be written.
        budget: of all files, in models of the experts' dtypes, as `1.5x`.
        max_size: of all files, as `50MB`.
        dtype: one storage type for all; None takes what pays, of float16, int8 and int4 (and float32 for origins).
        origin: `own` stores the origin; `base` stores only what it differs from a checkpoint that whoever uses the bank
            has as well.
        base: that checkpoint: a path, or `hf://org/name`.
        overwrite: replace what stands there.
        moments: second moments of what flows into the weights, as `bank_moments` collects them: errors are measured on
            what weights do to their inputs rather than in the Frobenius norm.

    Raises:
        MergeError: options that do not go together; a budget below what the origin alone needs; a base that is none of
            this bank.
    """
    limit = bytes_allowed(bank, budget, max_size)
    if dtype not in (None, *TYPES):
        raise MergeError(f"dtype={dtype}: a bank of limited size takes {', '.join(TYPES)}")
    check_choice("origin", origin, Origin)
    checkpoint = about = None
    if origin == "base":
        if base is None:
            raise MergeError("origin=base needs the base: --model.base, a path or hf://org/name")
        checkpoint = canonical(open_checkpoint(base, "base"))
        if output is not None:
            check_apart(destination(output), checkpoint.files)
    compression = Compression(bank, dtype, checkpoint, moments)
    if checkpoint is not None:
        about = described(str(base), checkpoint, [n for n, kind in bank.dtypes.items() if kind.is_floating_point])
    recipe = {"lit_merge": __version__, "budget": budget, "max_size": max_size, "dtype": dtype, "origin": origin}
    files = CompressedFiles(compression, {name: one for name, one in recipe.items() if one is not None}, about)
    choice = files.within(limit)
    if output is not None:
        files.write(output, choice, overwrite)
    return Compressed(choice, files.nbytes(choice), model_bytes(bank), files.weights(choice))


def model_bytes(bank: TaskBank) -> int:
    """Of one model in the experts' dtypes."""
    return sum(math.prod(bank.shapes[name]) * dtype.itemsize for name, dtype in bank.dtypes.items())


def bytes_allowed(bank: TaskBank, budget: str | None, max_size: str | None) -> int | None:
    """Of all files; None where there is no limit.

    Raises:
        MergeError: both are given; no number of models, or no size.
    """
    if max_size is not None and budget is not None:
        raise MergeError("max_size and budget both say how large the bank may be: give one of them")
    if max_size is not None:
        return parse_size(max_size, "max_size")
    if budget is None:
        return None
    match = re.fullmatch(r"(\d+(?:\.\d+)?|\.\d+)\s*x?", budget.strip().lower())
    if match is None or float(match[1]) <= 0:
        raise MergeError(f"budget={budget!r}: expected a multiple of one model's bytes, as 1.5x")
    return int(float(match[1]) * model_bytes(bank))
