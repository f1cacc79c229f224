"""The one writer of merged weights: into the files of an output that is not finished."""

import os
from collections.abc import Iterable

from torch import Tensor

from lit_merge.checkpoints import Naming, rename
from lit_merge.checkpoints.safetensors_writer import TensorFiles
from lit_merge.checkpoints.tensor_values import check_held
from lit_merge.merge.resuming import UnfinishedMerge


class WeightWriter:
    """Puts merged weights into the files of an unfinished output.

    Args:
        naming: by which files name them.
        files: where they lie.
        unfinished: the output; its `share` says which weights this process is to merge.

    Attributes:
        copied: names of the files that were copied next to the weights, once all is written.
    """

    def __init__(self, naming: Naming, files: TensorFiles, unfinished: UnfinishedMerge) -> None:
        self.naming, self.files, self.unfinished = naming, files, unfinished
        self.copied: list[str] = []

    def put(self, weight: str, values: Tensor, start: int | None = None, last: bool = True) -> None:
        """Writes a weight, or a block of its rows.

        Args:
            weight: its canonical name.
            values: of all its rows, or of those from `start` on.
            start: None for a whole weight.
            last: whether all of it is there with these, so that it need not be written again after a kill.
        """
        whole = rename({weight: values}, self.naming) if start is None else None
        parts = {self.naming.place(weight).names[0]: values} if whole is None else whole
        self.put_named(parts.items(), start)
        if last:
            self.unfinished.journal.done(weight)

    def put_named(self, parts: Iterable[tuple[str, Tensor]], row: int | None = None) -> None:
        """Writes values by the names that they have in the files."""
        folder = self.unfinished.path.name
        for name, value in parts:
            check_held(name, value)
            file, position = self.files.place(name, value, row)
            self.unfinished.journal.write(os.path.join(folder, file) if file else folder, position, value)
