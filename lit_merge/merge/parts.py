"""Banks that are built on disk, part by part, by one process or several: more than memory holds."""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lit_merge.bank.low_rank import Delta, LowRank
from lit_merge.bank.task_bank import TaskBank
from lit_merge.checkpoints.tensor_values import check_held, read_values
from lit_merge.merge.job import Job, Part
from lit_merge.merge.journal import Journal
from lit_merge.merge.resuming import UnfinishedMerge


class PartsOnDisk:
    """The parts of a bank that are finished, of all processes.

    Args:
        folder: where they are.
        finished: what the journal knows of every weight.
    """

    def __init__(self, folder: Path, finished: Mapping[str, Mapping[str, Any]]) -> None:
        self.folder = folder
        self._places = {key: place for about in finished.values() for key, place in about["tensors"].items()}

    def read(self, key: str) -> Tensor:
        """The tensor of this name in a bank's file."""
        file, position, shape, dtype = self._places[key]
        return read_values(self.folder / file, position, shape, getattr(torch, dtype))

    def empty(self, key: str) -> Tensor:
        """The tensor of this name in a bank's file, on the device `meta`: its shape and dtype alone."""
        _, _, shape, dtype = self._places[key]
        return torch.empty(shape, dtype=getattr(torch, dtype), device="meta")

    def collect(
        self, names: Mapping[str, object], read: Callable[[str], Tensor]
    ) -> tuple[dict[str, Tensor], dict[str, Delta]]:
        """Origins and deltas of these weights, in their order."""
        deltas: dict[str, Delta] = {}
        for name in names:
            if f"U/{name}" in self._places:
                deltas[name] = LowRank(*(read(f"{factor}/{name}") for factor in "USV"))
            elif f"delta/{name}" in self._places:
                deltas[name] = read(f"delta/{name}")
        return {name: read(f"origin/{name}") for name in names}, deltas


def build_parts(
    job: Job,
    unfinished: UnfinishedMerge,
    cut: Callable[[Part], Part] = lambda part: part,
    dtype: torch.dtype | None = None,
) -> PartsOnDisk:
    """Makes all parts of a bank that are not finished yet, and waits until every process has made its share.

    Args:
        job: the same in every process.
        unfinished: the output that they are for; each weight that it knows is finished.
        cut: what becomes of a part before it is written.
        dtype: of origin and factors; None for the experts'.
    """
    journal = unfinished.journal
    names = unfinished.share(job.costs())
    writer = _PartWriter(journal, job.experts.shapes)
    for part in job.parts(dtype, names, in_blocks=names):
        writer.add(cut(part))
        del part  # not while the next one is computed
    unfinished.processes.wait()
    return PartsOnDisk(journal.folder, journal.all())


def bank_of(job: Job, parts: PartsOnDisk) -> TaskBank:
    """The bank of all parts, in memory."""
    origins, deltas = parts.collect(job.experts.shapes, parts.read)
    return job.bank(origins, job.run.finish(deltas))


class _PartWriter:
    """Puts parts one after the other into a file of this process."""

    def __init__(self, journal: Journal, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self.journal, self.shapes = journal, shapes
        self.file, self.end = f"parts-{journal.attempt}-{journal.rank}", 0
        self.tensors: dict[str, tuple[str, int, tuple[int, ...], str]] = {}

    def add(self, part: Part) -> None:
        name, shape = part.name, self.shapes[part.name]
        if part.row is None:
            self._put(f"origin/{name}", part.origin)
            if isinstance(part.delta, LowRank):
                for factor in "USV":
                    self._put(f"{factor}/{name}", getattr(part.delta, factor))
            elif part.delta is not None:
                self._put(f"delta/{name}", part.delta)
        else:
            self._put_rows(f"origin/{name}", part.origin[None], shape, part.row)
            if isinstance(part.delta, Tensor):
                self._put_rows(f"delta/{name}", part.delta, (len(part.delta), *shape), part.row)
        if part.last:
            self.journal.done(name, tensors=self.tensors)
            self.tensors = {}

    def _put(self, key: str, value: Tensor) -> None:
        check_held(key, value)
        self.journal.write(self.file, self._place(key, value, tuple(value.shape)), value)

    def _put_rows(self, key: str, value: Tensor, shape: tuple[int, ...], row: int) -> None:
        """Rows of one or several tensors of the same shape, which lie one after the other."""
        check_held(key, value)
        start = self._place(key, value, shape)
        inner = value[0, 0].nbytes
        height = math.prod(shape) * value.itemsize // (len(value) * inner)
        for i, rows in enumerate(value):
            self.journal.write(self.file, start + (i * height + row) * inner, rows)

    def _place(self, key: str, value: Tensor, shape: tuple[int, ...]) -> int:
        """Where a tensor begins in the file."""
        if key not in self.tensors:
            self.tensors[key] = (self.file, self.end, shape, str(value.dtype).removeprefix("torch."))
            self.end += math.prod(shape) * value.itemsize
        return self.tensors[key][1]
