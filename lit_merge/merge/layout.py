"""How merged weights are laid out as files: one safetensors file, or a folder that loads as the experts' did."""

import math
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from lit_merge.bank.task_bank import TaskBank
from lit_merge.checkpoints import Checkpoint, Naming, StateDict, check_output, rename
from lit_merge.checkpoints.companions.copies import CopiedFiles
from lit_merge.checkpoints.companions.cropping import rows_of
from lit_merge.checkpoints.companions.files import COPIED
from lit_merge.checkpoints.folders import SUFFIXES
from lit_merge.checkpoints.kinds import Kind
from lit_merge.checkpoints.locations import destination
from lit_merge.checkpoints.safetensors_writer import MARK, TensorFiles, written_weights
from lit_merge.console import LISTED, say
from lit_merge.errors import MergeError
from lit_merge.experts.experts import Experts
from lit_merge.merge.processes import ALONE, Processes
from lit_merge.merge.resuming import resuming
from lit_merge.merge.weight_writer import WeightWriter

# What transformers writes into one file at most.
SHARD = 5 * 10**9
# Of files with a program in them, which are written elsewhere.
PROGRAMS = (".pt2", ".onnx")
# In the name of a weight inside a numbered block.
BLOCK = re.compile(r"(^|\.)\d+\.")


@dataclass(frozen=True)
class Layout:
    """The weights of a merge as files hold them.

    Attributes:
        shapes, dtypes: by canonical name.
        naming: by which files name them.
        kept: weights that are written as this checkpoint has them, in addition to the merged ones.
        lost: weights of the experts that are neither merged nor kept.
        copied: what is copied next to the weights, where there is something.
    """

    shapes: dict[str, tuple[int, ...]]
    dtypes: dict[str, torch.dtype]
    naming: Naming
    kept: Checkpoint | None = None
    lost: tuple[str, ...] = ()
    copied: CopiedFiles | None = None

    @classmethod
    def of(
        cls,
        experts: Experts,
        naming: Naming | None = None,
        task: str | None = None,
        dtype: torch.dtype | None = None,
    ) -> "Layout":
        """The layout of a merge of these experts: a folder gets what lies next to the first of them whose
        vocabulary is that of the result, or next to their base. Of one task's weights, that task's expert is asked
        first. Floating-point weights are written in `dtype`; None takes the experts'."""
        kept, cropped = experts.left_to_base() if task is None else experts.left_to(task), experts.cropped
        naming = experts.naming if naming is None else naming
        written = dict(experts.shapes) | ({} if kept is None else kept.shapes)
        lost = tuple(name for name in experts.excluded if name not in written)
        first, *others = sorted(experts.whole, key=lambda one: one != task)
        base = [] if experts.whole_base is None else [experts.whole_base]
        models = [experts.whole[first], *base, *(experts.whole[one] for one in others)]
        # Configuration and tokenizer must be of what is written: of a vocabulary that is cut, or that the base keeps,
        # as it may keep a head with its classes.
        own = kept is not None and not all(BLOCK.search(name) for name in kept.shapes)

        def unlike(one: Checkpoint) -> tuple[bool, bool]:
            other = any(written.get(name, shape) != shape for name, shape in one.shapes.items())
            return other, own and one is not (experts.whole_base if task is None else experts.whole[task])

        copied = CopiedFiles.of(
            _of_library(naming, sorted(models, key=unlike)),
            written,
            rows=min((rows_of(name, experts.shapes[name]) for name in cropped), default=None),
            most_tokens=task is None and not cropped and not own,
        )
        if copied is not None:
            copied = replace(copied, copies=frozenset(experts.copies), lost=lost, expert=experts.whole[first])
        layout = cls(dict(experts.shapes), dict(experts.dtypes), naming, kept, lost, copied)
        return layout.in_dtype(dtype)

    def in_dtype(self, dtype: torch.dtype | None) -> "Layout":
        """This layout with all floating-point weights in this dtype; unchanged for None."""
        if dtype is None:
            return self
        message = str(dtype).removeprefix("torch.")
        dtypes = {name: dtype if kind.is_floating_point else kind for name, kind in self.dtypes.items()}
        copied = None if self.copied is None else self.copied.with_changes(dtype=message, torch_dtype=message)
        return replace(self, dtypes=dtypes, copied=copied)

    @classmethod
    def of_bank(
        cls,
        bank: TaskBank,
        naming: Naming,
        experts: Experts | None = None,
        base: Checkpoint | None = None,
        task: str | None = None,
        dtype: torch.dtype | None = None,
    ) -> "Layout":
        """The layout of a bank of these experts, or of this pretrained model, where they are at hand.

        Args:
            bank: what is written.
            naming: by which files name its weights.
            experts: that it was made of.
            base: the model whose configuration and tokenizer serve, where the experts are not at hand.
            task: whose weights alone are written.
            dtype: of the floating-point weights; None takes the experts'.

        Raises:
            MergeError: experts or a base of other weights than the bank's.
        """
        shapes = bank.shapes
        dtypes = dict(bank.dtypes)
        if experts is not None:
            _check_same(shapes, experts.shapes, "the experts", shapes.keys() | experts.shapes.keys())
            layout = replace(cls.of(experts, naming, task), shapes=shapes, dtypes=dtypes)
        else:
            if base is not None:
                _check_same(shapes, base.shapes, base.label, shapes)
            copied = CopiedFiles.of(_of_library(naming, [] if base is None else [base]), shapes)
            layout = cls(shapes, dtypes, naming, copied=copied)
        return layout.in_dtype(dtype)

    @property
    def nbytes(self) -> int:
        """Bytes of all merged weights."""
        return sum(math.prod(shape) * self.dtypes[name].itemsize for name, shape in self.shapes.items())

    @contextmanager
    def writing(
        self,
        output: str | os.PathLike[str],
        plan: object = None,
        max_shard_bytes: int | None = None,
        overwrite: bool = False,
        processes: Processes = ALONE,
        form: str = "merged",
    ) -> Iterator[WeightWriter]:
        """Yields what takes merged weights as they come, one in memory at a time; they appear at `output` when the
        block ends, whole or not at all.

        Args:
            output: a `.safetensors` file, or else a folder: of shards with an index, or one file where that is enough,
                with configuration and tokenizer where there are some.
            plan: see `resuming`.
            max_shard_bytes: of one file in a folder; 5 GB, as transformers does, by default.
            overwrite: replace what stands there.
            processes: which write it together.
            form: what the files' headers say that the weights are.

        Raises:
            MergeError: a path that exists or cannot be written, or the name of another format; a naming
                that does not know these weights.
        """
        kind = written_by(form, () if self.copied is None else self.copied.names)
        limit = None if is_file(destination(output)) else max_shard_bytes or SHARD
        check_output(output, overwrite, kind)
        if self.lost and limit is not None and processes.first:
            more = ", …" if len(self.lost) > LISTED else ""
            say(f"not written, for want of a base: {', '.join(self.lost[:LISTED])}{more}")
        files, kept = self._files(limit, form)
        copied = None if limit is None or self.copied is None else self._fitted(self.copied, files)
        plan = None if plan is None else [plan, limit, asdict(self.naming)]
        with resuming(output, plan, files.create, overwrite, processes, kind) as unfinished:
            writer = WeightWriter(self.naming, files, unfinished)
            yield writer
            processes.wait()
            if not processes.first or limit is None:
                return
            writer.put_named(kept)
            files.seal(unfinished.path, unfinished.journal.extents(unfinished.path.name))
            for stray in unfinished.path.iterdir():  # of an attempt that was killed while it copied
                if stray.name not in files.names:
                    shutil.rmtree(stray) if stray.is_dir() else stray.unlink()
            writer.copied = [] if copied is None else copied.copy_to(unfinished.path)

    def _fitted(self, copied: CopiedFiles, files: TensorFiles) -> CopiedFiles:
        """What is copied, with what is true of these files, so that they load whole."""
        written = {name: (shape, files.dtypes[name]) for name, shape in files.shapes.items()}
        merged = {name for weight in self.shapes for name in self.naming.place(weight).names}
        return copied.fitted(written, written.keys() - merged)

    def in_blocks(self) -> list[str]:
        """Weights whose rows are rows of the files."""
        return [name for name in self.shapes if self.naming.place(name).plain]

    def _files(self, limit: int | None, form: str) -> tuple[TensorFiles, Iterable[tuple[str, Tensor]]]:
        """The files, and what is kept in them in addition to the merged weights."""
        meta = {name: torch.empty(shape, dtype=self.dtypes[name], device="meta") for name, shape in self.shapes.items()}
        files = {name: (tuple(value.shape), value.dtype) for name, value in rename(meta, self.naming).items()}
        others = StateDict({}) if self.kept is None or limit is None else self.kept
        kept = [name for name in others.shapes if name not in files]
        files |= {name: (others.shapes[name], others.dtypes[name]) for name in kept}
        shapes = {name: shape for name, (shape, _) in files.items()}
        dtypes = {name: dtype for name, (_, dtype) in files.items()}
        about = {"format": "pt", MARK: form}
        return TensorFiles(shapes, dtypes, limit, about), ((name, others.read(name)) for name in kept)


def written_by(form: str, copied: Iterable[str] = ()) -> Kind:
    """Merged weights in one of the forms of `export`, with the files of these names that are copied next to them."""
    command = "merge` or `lit-merge export --format merged" if form == "merged" else f"export --format {form}"
    return written_weights(command, form, "|".join([COPIED, *map(re.escape, copied)]))


def _of_library(naming: Naming, checkpoints: Iterable[Checkpoint]) -> list[Checkpoint]:
    """The checkpoints that are named as what is written: the configuration of one library is none of another's."""
    return [one for one in checkpoints if one.naming.family == naming.family]


def _check_same(
    here: Mapping[str, tuple[int, ...]], there: Mapping[str, tuple[int, ...]], label: str, names: Iterable[str]
) -> None:
    """Raises MergeError where a bank's weights are others in the models whose configuration is to lie next to them."""
    for name in names:
        if here.get(name) != there.get(name):
            found = [str(list(one[name])) if name in one else "absent" for one in (here, there)]
            raise MergeError(
                f"{name} is {found[0]} in the bank and {found[1]} in {label}: give the experts, exclude and crop that "
                "the bank was made with, or leave them out",
                weight=name,
            )


def is_file(output: Path) -> bool:
    """Whether an output of this name is one file, rather than a folder.

    Raises:
        MergeError: the name of another format, or what stands there is of the other kind.
    """
    if output.suffix == ".safetensors":
        return True
    if output.suffix in (*SUFFIXES, *PROGRAMS):
        how = "`lit-merge export` writes .pt, .pt2 and .onnx" if output.suffix in (".pt", ".pth", *PROGRAMS) else ""
        raise MergeError(
            f"{output}: expected a name that ends in .safetensors, or the name of a folder{how and f'; {how}'}"
        )
    if output.is_file():
        raise MergeError(f"{output} is a file, which a folder does not replace: choose another place")
    return False
