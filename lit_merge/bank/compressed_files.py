"""The files of a compressed bank: their size to the byte before one is written, and the files."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lit_merge.bank.budget import Steps, within
from lit_merge.bank.checksums import WIDTH
from lit_merge.bank.compression import Choice, Compression
from lit_merge.bank.files import sizes_of, write_bank_folder
from lit_merge.bank.learnt import DIRECTIONS
from lit_merge.bank.named_tensors import digest
from lit_merge.bank.packed_tensors import packed_tensors
from lit_merge.bank.packing import Layout
from lit_merge.checkpoints.tensor_values import checksum
from lit_merge.errors import MergeError


class CompressedFiles:
    """What a compression becomes on disk.

    Args:
        compression: of the bank.
        recipe: how it was asked for, for the description.
        base: what the description says of the base, see `base_reference.described`; None without one.
    """

    def __init__(
        self, compression: Compression, recipe: Mapping[str, Any], base: Mapping[str, Any] | None = None
    ) -> None:
        self.compression, self.recipe, self.base = compression, recipe, base
        # The search for what a budget holds asks for the size of hundreds of descriptions.
        self._about_bank = compression.bank.about("", {})

    def within(self, budget: int | None) -> Choice:
        """What is stored in files of so many bytes at most; all of the bank, as far as the types go, for None.

        Raises:
            MergeError: the budget is below what origin and coefficients need.
        """
        steps, least = self.compression.steps, self.compression.least
        if budget is None:
            return self.compression.choice(steps, len(steps))
        if (needed := self._after(steps, least)) > budget:
            way_out = "" if self.base is not None else ", or store it as a difference from the base with --origin base"
            raise MergeError(
                f"a budget of {budget:,} bytes is below the {needed:,} that the bank needs without any delta (origin, "
                f"coefficients, description): take a larger one{way_out}"
            )
        return self.compression.choice(*within(steps, self._after, budget, least))

    def nbytes(self, choice: Choice) -> int:
        """Bytes of all files, to the byte."""
        layout = self._layout(choice)
        rows = self.compression.rows + (self.base is not None)
        sums: dict[str, str] = {}
        for name, packed in choice.weights.items():
            here = {key.partition("/")[0] for key in packed.layout(name)} - {"scale"}
            own = rows if name in self.compression.bank.deltas else 1
            sums |= {f"{kind}/{name}": "0" * WIDTH * (1 if kind == "origin" else own) for kind in here}
        shapes = {name: shape for name, (shape, _) in layout.items()}
        dtypes = {name: dtype for name, (_, dtype) in layout.items()}
        return sum(sizes_of(self._about(choice, layout, "0" * 32, sums), shapes, dtypes))

    def weights(self, choice: Choice) -> dict[str, int]:
        """Bytes of the tensors of every weight."""
        return {name: _nbytes(packed.layout(name)) for name, packed in choice.weights.items()}

    def write(self, path: str | Path, choice: Choice, overwrite: bool = False) -> None:
        """Writes the folder, whole or not at all; what is written is in memory. See `TaskBank.save`."""
        values, sums = self._values(choice)
        layout = self._layout(choice)
        bank = self.compression.bank
        fingerprint, _ = digest((bank.tasks, bank.layers), values, values.__getitem__)
        values |= self._plain(choice)
        about = self._about(choice, layout, fingerprint, sums)
        write_bank_folder(path, about, {name: values[name] for name in layout}, values.__getitem__, overwrite)

    def _after(self, steps: Steps, count: int) -> int:
        return self.nbytes(self.compression.choice(steps, count))

    def _values(self, choice: Choice) -> tuple[dict[str, Tensor], dict[str, str]]:
        """The packed tensors, and checksums by the names that they are read by."""
        values: dict[str, Tensor] = {}
        sums: dict[str, str] = {}
        for name, packed in choice.weights.items():
            found = dict(packed_tensors(name, packed, self.compression.bank.origin[name], self.compression.directions))
            values |= {key: torch.cat(parts) if len(parts) > 1 else parts[0] for key, parts in found.items()}
            together: dict[str, list[list[Tensor]]] = {}
            for key, parts in found.items():
                together.setdefault("origin" if key.startswith("scale/") else key.partition("/")[0], []).append(parts)
            for kind, several in together.items():
                sums[f"{kind}/{name}"] = "".join(checksum(*rows) for rows in zip(*several, strict=True))
        return values, sums

    def _plain(self, choice: Choice) -> dict[str, Tensor]:
        """Coefficients, and what adaptation learnt; coefficients of directions are those of the directions kept."""
        bank, found = self.compression.bank, {"coefficients": self.compression.bank.coefficients}
        for key, value in bank.learnt.items():
            kind, _, name = key.partition("/")
            if kind == DIRECTIONS:
                value = value.gather(-1, self.compression.orders[name])
                value = torch.nn.functional.pad(value, (0, choice.weights[name].largest_rank - value.shape[-1]))
            found[key] = value.contiguous()
        return found

    def _layout(self, choice: Choice) -> Layout:
        bank = self.compression.bank
        found = {key: one for name, packed in choice.weights.items() for key, one in packed.layout(name).items()}
        found["coefficients"] = tuple(bank.coefficients.shape), bank.coefficients.dtype
        for key, value in bank.learnt.items():
            kind, _, name = key.partition("/")
            shape = (len(value), choice.weights[name].largest_rank) if kind == DIRECTIONS else tuple(value.shape)
            found[key] = shape, value.dtype
        return found

    def _about(self, choice: Choice, layout: Layout, fingerprint: str, sums: Mapping[str, str]) -> dict[str, Any]:
        bank = self.compression.bank
        low_rank = [name for name in bank.deltas if choice.weights[name].low_rank]
        about = self._about_bank | {
            "fingerprint": fingerprint,
            "checksums": dict(sums),
            "ranks": {name: choice.weights[name].largest_rank for name in low_rank},
            "nbytes": _nbytes(layout),
            "packed": {name: packed.describe() for name, packed in choice.weights.items()},
            "recipe": dict(bank.recipe) | dict(self.recipe) | {"kept": choice.kept},
        }
        return about if self.base is None else about | {"base": dict(self.base)}


def _nbytes(layout: Layout) -> int:
    return sum(torch.Size(shape).numel() * dtype.itemsize for shape, dtype in layout.values())
