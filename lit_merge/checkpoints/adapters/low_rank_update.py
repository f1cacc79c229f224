"""scale · B A of one module of a LoRA adapter."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lit_merge.checkpoints.checkpoint import Checkpoint
from lit_merge.checkpoints.updates import Update
from lit_merge.errors import MergeError

MAGNITUDE = "lora_magnitude_vector"


@dataclass(frozen=True)
class LowRankUpdate:
    """What an adapter adds to one weight.

    Args:
        adapter: where B and A are read from.
        parts: of the adapter (`lora_A`, `lora_B`, …) → their names in it.
        scale: α / r, or α / √r.
        transposed: whether a square weight is stored as (in, out), as GPT-2's is.
    """

    adapter: Checkpoint
    parts: Mapping[str, str]
    scale: float
    transposed: bool

    def check(self, shape: tuple[int, ...]) -> None:
        """Raises ValueError where the adapter is for a weight of another shape."""
        a, b = (self.adapter.shapes[self.parts[part]] for part in self._pair)
        if len(a) != len(b) or len(a) < 2 or a[0] != b[1]:
            raise ValueError(f"the adapter's parts have shapes {list(a)} and {list(b)}")
        # Of a convolution: B is 1 × 1.
        there = (b[0], *a[1:])
        if self._embedding:
            there = there[::-1]
        if shape != there and not (len(shape) == 2 and shape == there[::-1] and not self._embedding):
            raise ValueError(f"the adapter is for {list(there)}")
        magnitude = self.parts.get(MAGNITUDE)
        if magnitude is not None and (self._embedding or len(shape) > 2):
            raise ValueError("DoRA is read for linear layers only: save the model after peft's merge_and_unload()")
        if magnitude is not None and math.prod(self.adapter.shapes[magnitude]) != b[0]:
            raise ValueError(f"the adapter's magnitudes are {list(self.adapter.shapes[magnitude])}")

    def add(self, weight: Tensor) -> Tensor:
        """The weight with the update in it, in float32 or more."""
        a, b = (self.adapter.read(self.parts[part]) for part in self._pair)
        dtype = torch.promote_types(torch.promote_types(weight.dtype, a.dtype), torch.float32)
        product = (b.flatten(1).to(dtype) @ a.flatten(1).to(dtype)).reshape(b.shape[0], *a.shape[1:])
        transposed = self._turns(tuple(product.shape), tuple(weight.shape))
        delta = (product.T if transposed else product) * self.scale
        merged = weight.to(dtype) + delta
        magnitude = self.parts.get(MAGNITUDE)
        if magnitude is None:
            return merged
        # DoRA: every output's row has the length that was learnt.
        rows = 0 if transposed else 1
        lengths = torch.linalg.norm(merged, dim=rows, keepdim=True)
        return merged * (self.adapter.read(magnitude).to(dtype).reshape(lengths.shape) / lengths)

    def factors(self, shape: tuple[int, ...]) -> Update | None:
        """What is added to a weight of this shape; None of DoRA, which changes the weight itself."""
        if MAGNITUDE in self.parts:
            return None
        a, b = (self.adapter.read(self.parts[part]) for part in self._pair)
        dtype = torch.promote_types(a.dtype, b.dtype)
        left, right = self.scale * wide(b.flatten(1)), wide(a.flatten(1))
        if self._turns((b.shape[0], *a.shape[1:]), shape):
            left, right = right.T, left.T
        return Update(left, right, shape, dtype)

    def _turns(self, product: tuple[int, ...], shape: tuple[int, ...]) -> bool:
        """Whether the weight is stored the other way round than B A."""
        square = len(product) == 2 and product[0] == product[1]
        return self._embedding or (self.transposed if square else product != shape)

    @property
    def _embedding(self) -> bool:
        return "lora_embedding_A" in self.parts

    @property
    def _pair(self) -> tuple[str, str]:
        return ("lora_embedding_A", "lora_embedding_B") if self._embedding else ("lora_A", "lora_B")


def wide(value: Tensor) -> Tensor:
    """In float32 or more."""
    return value.to(torch.promote_types(value.dtype, torch.float32))


def scale_of(module: str, rank: int, config: Mapping[str, Any], path: Path) -> float:
    """α / r of a module, or α / √r with `use_rslora`.

    Raises:
        MergeError: numbers that are none, or a rank that is not the configuration's.
    """
    try:
        expected = _of_pattern(module, config.get("rank_pattern"), config["r"])
        alpha = _of_pattern(module, config.get("alpha_pattern"), config["lora_alpha"])
        if type(alpha) not in (int, float):
            raise TypeError(f"{alpha!r} is no number")
    except (KeyError, TypeError, ValueError, re.error) as error:
        raise MergeError(f"{path}: no ranks and alphas can be read: {error!r}") from error
    if expected != rank:
        raise MergeError(f"{path} says that {module} has rank {expected}; the adapter's weights have {rank}")
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _of_pattern(module: str, patterns: Mapping[str, Any] | None, otherwise: Any) -> Any:
    """The first value whose pattern is the module's name or its end, as peft finds it."""
    found = (value for pattern, value in (patterns or {}).items() if re.match(rf"(.*\.)?({pattern})$", module))
    return next(found, otherwise)
