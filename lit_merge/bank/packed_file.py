"""The file of a compressed bank, read as if it held the tensors of one that is not."""

from collections.abc import Mapping
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from lit_merge.bank.base_reference import BaseReference
from lit_merge.bank.checksums import sum_at
from lit_merge.bank.packing import BASE, Packed, sides_stored
from lit_merge.bank.storage_types import TYPES, unpack_rows
from lit_merge.checkpoints import SafetensorsFile
from lit_merge.checkpoints.tensor_values import checksum, is_finite
from lit_merge.errors import MergeError


class PackedFile:
    """The tensors of a bank by the names in `TaskBank.tensors()`, unpacked when they are read; matrices of several
    tasks end with directions of 0 where one task has fewer than another. What is read is looked at first, as by
    `BankFile`.

    Args:
        path: of the file.
        weights: what lies in it.
        layers: those with deltas.
        learnt: names of what adaptation learnt, which is not packed.
        sums: checksums of the parts, by the names in `TaskBank.tensors()`.
        base: what the origin differs from; None where it is stored.
    """

    def __init__(
        self,
        path: Path,
        weights: Mapping[str, Packed],
        layers: list[str],
        learnt: list[str],
        sums: Mapping[str, str],
        base: BaseReference | None,
    ) -> None:
        self.path, self.stored = path, SafetensorsFile(path)
        self.inputs, self.metadata = (*self.stored.inputs, *(() if base is None else base.inputs)), self.stored.metadata
        self.weights, self._sums, self._base, self._seen = weights, sums, base, set[tuple[str, int]]()
        self._first = 0 if base is None else 1
        expected = {name: kind for one, packed in weights.items() for name, kind in packed.layout(one).items()}
        for name in expected.keys() ^ self.stored.shapes.keys() ^ {"coefficients", *learnt}:
            raise MergeError(f"{path} and bank.json are of different banks: {name} is in one of them only")
        for name, (shape, dtype) in expected.items():
            if (self.stored.shapes[name], self.stored.dtypes[name]) != (shape, dtype):
                raise MergeError(
                    f"{path}: {name} is {self.stored.dtypes[name]} of shape {list(self.stored.shapes[name])}, expected "
                    f"{dtype} of {list(shape)}",
                    weight=name.rpartition("/")[2],
                )
        self.shapes = {name: self.stored.shapes[name] for name in ("coefficients", *learnt)}
        self.dtypes = {name: self.stored.dtypes[name] for name in ("coefficients", *learnt)}
        rows = (self.stored.shapes["coefficients"] or (0,))[0]
        for name, packed in weights.items():
            self.shapes[f"origin/{name}"], self.dtypes[f"origin/{name}"] = packed.shape, self._dtype(packed)
            if name in layers:
                for key, shape in self._delta(name, packed, rows).items():
                    self.shapes[key], self.dtypes[key] = shape, torch.float32

    def _dtype(self, packed: Packed) -> torch.dtype:
        if packed.origin in (BASE, "int8"):
            return torch.float32
        return packed.layout("")["origin/"][1]

    def _delta(self, name: str, packed: Packed, rows: int) -> dict[str, tuple[int, ...]]:
        if not packed.low_rank:
            return {f"delta/{name}": (rows, *packed.shape)}
        (m, n), k = packed.sides, packed.largest_rank
        return {f"U/{name}": (rows, m, k), f"S/{name}": (rows, k), f"V/{name}": (rows, n, k)}

    def empty(self) -> dict[str, Tensor]:
        """Name → a tensor of this shape and dtype without values, on the device `meta`."""
        return {name: torch.empty(shape, dtype=self.dtypes[name], device="meta") for name, shape in self.shapes.items()}

    def read(self, name: str) -> Tensor:
        """The tensor of this name, unpacked."""
        kind, _, weight = name.partition("/")
        if kind == "origin":
            return self._origin(weight)
        if weight in self.weights and kind in ("U", "S", "V", "delta"):
            return torch.cat([self.read_row(name, row) for row in range(self.shapes[name][0])])
        return self._looked_at(name, 0, self.stored.read(name))

    def read_row(self, name: str, row: int) -> Tensor:
        """The part (1, …) of one task; no other is read."""
        kind, _, weight = name.partition("/")
        if kind == "delta":
            return self._dense(weight, self._first + row)[None]
        value = self._vectors(kind, weight, self._first + row)
        return torch.nn.functional.pad(value, (0, self.shapes[name][-1] - value.shape[-1]))[None]

    def _origin(self, name: str) -> Tensor:
        packed = self.weights[name]
        if packed.origin == BASE:
            assert self._base is not None
            value = self._base.read(name)
            # What differs in nothing may be no floating-point number.
            return value.float() + self._dense(name, 0) if packed.ranks or value.is_floating_point() else value
        stored = self.stored.read(f"origin/{name}")
        if packed.origin != "int8":
            return self._looked_at(f"origin/{name}", 0, stored)
        scales = self.stored.read(f"scale/{name}")
        self._looked_at(f"origin/{name}", 0, stored, scales)
        return unpack_rows(stored, scales)

    def _dense(self, name: str, row: int) -> Float[Tensor, "..."]:
        packed = self.weights[name]
        u, s, v = (self._vectors(kind, name, row) for kind in ("U", "S", "V"))
        return ((u * s) @ v.T).view(packed.shape)

    def _vectors(self, kind: str, name: str, row: int) -> Tensor:
        """(k,) singular values of one row of a weight, or (m or n, k) its singular vectors."""
        packed = self.weights[name]
        counts = packed.counts(row)
        if kind == "S":
            first = sum(packed.rank(i) for i in range(row))
            value = self._slice(f"S/{name}", first, packed.rank(row)) if packed.ranks else torch.zeros(0)
            return self._looked_at(f"S/{name}", row, value)
        m, n = packed.sides
        count = m if kind == "U" else n
        if kind not in sides_stored(m, n):
            return torch.ones(count, packed.rank(row))
        stored = {one: self._slice(f"{kind}/{one}/{name}", *places) for one, places in counts.items()}
        self._looked_at(f"{kind}/{name}", row, *stored.values())
        parts = [TYPES[one].unpack(value, count) for one, value in stored.items()]
        return torch.cat(parts).T if parts else torch.zeros(count, 0)

    def _slice(self, name: str, first: int, count: int) -> Tensor:
        value = torch.empty(count, *self.stored.shapes[name][1:], dtype=self.stored.dtypes[name])
        self.stored.read_into(name, value, first)
        return value

    def _looked_at(self, name: str, row: int, *stored: Tensor) -> Tensor:
        """The first of them, once it is known that they are what was saved."""
        if (name, row) not in self._seen:
            if not all(is_finite(value) for value in stored):
                raise MergeError(
                    f"{self.path}: {name} holds NaN or infinity: it is damaged; make the bank anew",
                    weight=name.partition("/")[2] or None,
                )
            sums = self._sums.get(name)
            if sums is not None and sum_at(sums, row) != checksum(*stored):
                raise MergeError(
                    f"{self.path}: {name} is not as it was saved: its checksum is another one; copy the bank again, "
                    "or make it anew",
                    weight=name.partition("/")[2],
                )
            self._seen.add((name, row))
        return stored[0] if stored else torch.zeros(0)
