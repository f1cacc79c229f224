"""The experts of a merge and their base, opened and checked against each other."""

import hashlib
import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from lit_merge.checkpoints import Checkpoint, Selection, Source, named_like
from lit_merge.checkpoints.input_file import InputFile
from lit_merge.console import html_table, listed
from lit_merge.errors import MergeWarning, MisfitError
from lit_merge.experts.alignment import align, differences, matching
from lit_merge.experts.files import open_all

# Entries of all experts in one block of a weight that comes in blocks, and a multiple of what vectorised loops take in
# one step.
BLOCK, ALIGNED = 2**25, 1024

# What layers saw of their inputs: no learnt weights, so neither are their differences task vectors. A mean of variances
# is one, above 0; a sum of differences need not be.
STATISTICS = ("running_mean", "running_var")
Piece = tuple[str, slice | None]
"""A weight's name and which of its rows; None for all."""


class Experts:
    """Opened checkpoints by task. Construction reads headers only.

    Weights of a CLIP go by canonical names (`Naming`), whatever library the files are of; `naming` is the first
    expert's. Weights of other models keep their names.

    Args:
        sources: task → path or state dict, in the order of the tasks.
        base: the pretrained checkpoint, where it is known.
        exclude: shell patterns of weights that are not merged, as `classifier.*`, in experts and base alike.
        crop: of vocabularies that differ by tokens which were added, merge the rows that all have.

    Raises:
        MisfitError: names, shapes or dtypes that differ.
        MergeError: no experts; a file that is missing or broken; a pattern that matches no weight, or patterns that
            leave none.

    `whole` and `whole_base` hold them with what is excluded; `dtypes` are the first expert's, in which merges are
    written, `widest` those that hold the values of all.
    """

    def __init__(
        self,
        sources: Mapping[str, Source],
        base: Source | None = None,
        exclude: Sequence[str] = (),
        crop: bool = False,
    ) -> None:
        self.whole, self.whole_base = open_all(sources, base)
        self.checkpoints, self.base = align(self.whole, self.whole_base, exclude, crop)
        self.exclude = tuple(exclude)
        if found := list(differences(self.checkpoints, self.base)):
            raise MisfitError(found)
        first = next(iter(self.checkpoints.values()))
        self.tasks = tuple(self.checkpoints)
        self.naming = first.naming
        self.shapes = first.shapes
        self.dtypes = first.dtypes
        self.nbytes = sum(checkpoint.nbytes for checkpoint in self.checkpoints.values())
        self._warned: set[str] = set()
        self.widest = {name: self._widest(name) for name in self.dtypes}

    def __repr__(self) -> str:
        return f"Experts: {self.summary}"

    def _repr_html_(self) -> str:
        """For notebooks: a row for every expert."""
        rows = [(task, one.label, f"{one.nbytes / 1e6:,.1f} MB") for task, one in self.checkpoints.items()]
        return html_table(self.summary, ("task", "from", "size"), rows)

    @property
    def summary(self) -> str:
        """Tasks and sizes, in a line."""
        base = "no base" if self.base is None else f"base {self.base.label}"
        count = sum(math.prod(shape) for shape in self.shapes.values())
        size = f"{len(self.shapes)} weights with {count / 1e6:,.1f} M parameters, {self.nbytes / 1e6:,.1f} MB together"
        return f"{len(self.tasks)} tasks ({listed(self.tasks)}), {size}, {base}"

    @property
    def recipe(self) -> dict[str, object]:
        """What a bank says of the files that it was made of: their names, and digests (`InputFile.digest`)."""
        files = {task: one.inputs for task, one in self.checkpoints.items()}
        about: dict[str, object] = {"inputs": {task: _described(inputs) for task, inputs in files.items() if inputs}}
        if self.base is not None and self.base.inputs:
            about["base"] = _described(self.base.inputs)
        return about

    @property
    def cropped(self) -> dict[str, int]:
        """Weight → number of rows, of vocabularies of which some checkpoints have more."""
        return {
            name: self.shapes[name][0]
            for name in self.shapes
            if any(name in file.shapes and file.shapes[name] != self.shapes[name] for file in self._files)
        }

    @property
    def excluded(self) -> list[str]:
        """Weights that are left out of the merge by name."""
        names = dict.fromkeys(name for file in self._files for name in (*file.shapes, *file.unfit))
        found = matching(self.exclude, names)
        return [name for name in names if name in found]

    def _widest(self, name: str) -> torch.dtype:
        """In which a weight of all experts can be held; says once that they are stored in several dtypes."""
        found = self.dtypes[name]
        for task, checkpoint in self.checkpoints.items():
            if (other := checkpoint.dtypes[name]) != self.dtypes[name]:
                text = f"{name} is {self.dtypes[name]} in {self.tasks[0]} and {other} in {task}: merged in float32"
                self.warn_once("dtypes", f"{text} or wider and written in the first one's, or in --dtype")
                found = torch.promote_types(found, other)
        return found

    def precision(self, name: str) -> torch.dtype:
        """The widest dtype of a weight and of its updates."""
        found = self.dtypes[name]
        for checkpoint in self.checkpoints.values():
            if checkpoint.is_updated(name) and (update := checkpoint.update(name)) is not None:
                found = torch.promote_types(found, update.dtype)
        return found

    @property
    def statistics(self) -> list[str]:
        """Weights that are no learnt ones, but what layers saw of their inputs: they are averaged."""
        return [name for name in self.shapes if name.rpartition(".")[2] in STATISTICS]

    def of_base_file(self) -> list[str]:
        """Tasks whose expert is the file of the base."""
        base = set() if self.whole_base is None else {path.resolve() for path in self.whole_base.files}
        found = {task: {path.resolve() for path in file.files} for task, file in self.whole.items()}
        return [task for task, files in found.items() if files and files == base]

    def left_to_base(self) -> Checkpoint | None:
        """What is excluded from the merge, as the base has it; None where it has nothing of that, or goes by other
        names than the experts'."""
        if self.whole_base is None or not self.naming.identity:
            return None
        # By the experts' names, as what is merged is.
        whole = named_like(self.whole_base, next(iter(self.whole.values())).shapes)
        excluded = set(self.excluded)
        there = {name: name for name in whole.shapes if excluded & {name, whole.name_of(name)}}
        return Selection(whole, there) if there else None

    def left_to(self, task: str) -> Checkpoint | None:
        """What is excluded from the merge, as the expert of a task has it, its classifier for example; and as the base
        has it where that expert has nothing of it, or goes by other names."""
        whole = self.whole[task]
        there = {name: name for name in whole.shapes if name in set(self.excluded)}
        return Selection(whole, there) if there and self.naming.identity else self.left_to_base()

    @property
    def copies(self) -> set[str]:
        """Weights of the experts that are not merged, being equal to others: tied ones under a second name."""
        names = {name for file in self.whole.values() for name in file.shapes}
        return names - self.shapes.keys() - set(self.excluded)

    @property
    def identity(self) -> object:
        """What tells these files from others: paths, sizes and times; None where weights are in memory only."""
        opened = self._files
        if not all(checkpoint.inputs for checkpoint in opened):
            return None
        return [file.stamp for checkpoint in opened for file in checkpoint.inputs]

    @property
    def files(self) -> list[Path]:
        """That experts and base are read from; none where they are in memory."""
        return [path for checkpoint in self._files for path in checkpoint.files]

    @property
    def _files(self) -> list[Checkpoint]:
        return [*self.whole.values(), *([] if self.whole_base is None else [self.whole_base])]

    @property
    def sizes(self) -> dict[str, int]:
        """Weight → its bytes in all experts together."""
        return {name: self.size((name, None)) for name in self.shapes}

    def sizes_of(self, pieces: Sequence[Piece]) -> dict[str, int]:
        """Rows of weights, under names of their own → their bytes in all experts together."""
        return {f"{name} {rows}": self.size((name, rows)) for name, rows in pieces}

    def size(self, piece: Piece) -> int:
        """Bytes of a weight, or of some of its rows, in all experts together."""
        return len(self.tasks) * math.prod(self.shape(piece)) * self.dtypes[piece[0]].itemsize

    def shape(self, piece: Piece) -> tuple[int, ...]:
        """The shape of a weight, or of some of its rows."""
        name, rows = piece
        return self.shapes[name] if rows is None else (rows.stop - rows.start, *self.shapes[name][1:])

    def blocks(self, name: str) -> list[Piece]:
        """A weight as blocks of its rows, where it is large, for work that treats every entry by itself: the results
        are those of the whole, to the bit."""
        shape = self.shapes[name]
        inner = math.prod(shape[1:])
        # Of a number of entries by which vectorised loops treat each as they do within the whole.
        step = ALIGNED // math.gcd(ALIGNED, inner)
        count = step * max(1, BLOCK // (step * inner * len(self.tasks) or 1))
        # The factors of updates are of whole weights.
        if not shape or count >= shape[0] or any(file.is_updated(name) for file in self.checkpoints.values()):
            return [(name, None)]
        return [(name, slice(start, min(start + count, shape[0]))) for start in range(0, shape[0], count)]

    def warn_once(self, kind: str, text: str) -> None:
        """Warns of a kind of weights, however many there are and however often they are read."""
        if kind not in self._warned:
            self._warned.add(kind)
            warnings.warn(text, MergeWarning, stacklevel=2)


def _described(files: Sequence[InputFile]) -> dict[str, str]:
    """Names of files, and a digest of all of them."""
    digests = [file.digest() for file in files]
    whole = digests[0] if len(files) == 1 else hashlib.blake2b("".join(digests).encode(), digest_size=16).hexdigest()
    return {"file": ", ".join(file.path.name for file in files), "digest": whole}
