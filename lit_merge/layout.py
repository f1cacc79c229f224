"""How merged weights are laid out as files: one safetensors file, or a folder that loads as the experts' did."""

import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lit_merge.checkpoints import Checkpoint, Naming, check_output, rename, replacing, write_stream
from lit_merge.checkpoints.companions import Companions, companions_of, copy_companions
from lit_merge.errors import MergeError
from lit_merge.experts import Experts
from lit_merge.progress import say
from lit_merge.task_bank import TaskBank
from lit_merge.weight_names import SUFFIXES

# What transformers writes into one file at most.
SHARD = 5 * 10**9
# Names of weights that a line holds.
TOLD = 8


@dataclass(frozen=True)
class Layout:
    """The weights of a merge as files hold them.

    Attributes:
        shapes, dtypes: by canonical name.
        naming: by which files name them.
        kept: weights that are written as this checkpoint has them, beside the merged ones.
        lost: weights of the experts that are neither merged nor kept.
        companions: whose configuration and tokenizer are copied beside the weights.
        changes: entries of that configuration that are no longer true.
    """

    shapes: dict[str, tuple[int, ...]]
    dtypes: dict[str, torch.dtype]
    naming: Naming
    kept: Checkpoint | None = None
    lost: tuple[str, ...] = ()
    companions: Companions | None = None
    changes: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, experts: Experts, naming: Naming | None = None, task: str | None = None) -> "Layout":
        """Of a merge of these experts: a folder gets what lies beside the first of them whose vocabulary is that of the
        result, or beside their base. Of one task's weights, that task's expert is asked first."""
        kept, cropped = experts.left_to_base(), experts.cropped
        first, *others = sorted(experts.whole, key=lambda one: one != task)
        base = [] if experts.whole_base is None else [experts.whole_base]
        beside = [experts.whole[first], *base, *(experts.whole[one] for one in others)]
        # Configuration and tokenizer must be of what is written: of a vocabulary that is cut, or that the base keeps.
        written = dict(experts.shapes) | ({} if kept is None else kept.shapes)
        beside.sort(key=lambda one: any(written.get(name, shape) != shape for name, shape in one.shapes.items()))
        naming = experts.naming if naming is None else naming
        return cls(
            dict(experts.shapes),
            dict(experts.dtypes),
            naming,
            kept,
            tuple(name for name in experts.excluded if name not in written),
            companions_of(_of_library(naming, beside), written),
            {"vocab_size": min(cropped.values())} if cropped else {},
        )

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
        """Of a bank: of these experts, or of this pretrained model, where they are at hand.

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
        shapes = {name: tuple(value.shape) for name, value in bank.origin.items()}
        dtypes = {name: dtype if dtype and kind.is_floating_point else kind for name, kind in bank.dtypes.items()}
        if experts is not None:
            _check_same(shapes, experts.shapes, "the experts", shapes.keys() | experts.shapes.keys())
            layout = replace(cls.of(experts, naming, task), shapes=shapes, dtypes=dtypes)
        else:
            if base is not None:
                _check_same(shapes, base.shapes, base.label, shapes)
            companions = companions_of(_of_library(naming, [] if base is None else [base]), shapes)
            layout = cls(shapes, dtypes, naming, companions=companions)
        if dtype is None:
            return layout
        told = str(dtype).removeprefix("torch.")
        return replace(layout, changes={**layout.changes, "dtype": told, "torch_dtype": told})

    @property
    def nbytes(self) -> int:
        """Of all merged weights."""
        return sum(math.prod(shape) * self.dtypes[name].itemsize for name, shape in self.shapes.items())

    def write(
        self,
        output: str | os.PathLike[str],
        weights: Iterable[tuple[str, Tensor]],
        max_shard_bytes: int | None = None,
        overwrite: bool = False,
        form: str = "merged",
    ) -> list[str]:
        """Writes merged weights as they come, whole or not at all; one at a time is in memory.

        Args:
            output: a `.safetensors` file, or else a folder: of shards with an index, or one file where that is enough,
                with configuration and tokenizer where there are some.
            weights: canonical name and value.
            max_shard_bytes: of one file in a folder; 5 GB, as transformers does, by default.
            overwrite: replace what stands there.
            form: what the files' headers say that the weights are.

        Returns:
            Names of the files that were copied beside the weights.

        Raises:
            MergeError: a path that exists or cannot be written, or the name of another format; a naming that has not
                these weights.
        """
        if is_file(check_output(output, overwrite)):
            self._stream(output, weights, None, overwrite, form)
            return []
        if self.lost:
            more = ", …" if len(self.lost) > TOLD else ""
            say(f"not written, for want of a base: {', '.join(self.lost[:TOLD])}{more}")
        with replacing(output, overwrite) as beside:
            self._stream(beside, weights, max_shard_bytes or SHARD, False, form)
            if self.companions is None:
                return []
            return copy_companions(self.companions, beside, self.changes)

    def _stream(
        self,
        path: str | os.PathLike[str],
        weights: Iterable[tuple[str, Tensor]],
        limit: int | None,
        overwrite: bool,
        form: str,
    ) -> None:
        meta = {name: torch.empty(shape, dtype=self.dtypes[name], device="meta") for name, shape in self.shapes.items()}
        files = {name: (tuple(value.shape), value.dtype) for name, value in rename(meta, self.naming).items()}
        kept = self.kept if limit is not None else None
        if kept is not None:
            files |= {name: (shape, kept.dtypes[name]) for name, shape in kept.shapes.items() if name not in files}
        shapes = {name: shape for name, (shape, _) in files.items()}
        dtypes = {name: dtype for name, (_, dtype) in files.items()}
        about = {"format": "pt", "lit_merge": form}
        write_stream(path, self._named(weights, kept), shapes, dtypes, limit, about, overwrite)

    def _named(self, weights: Iterable[tuple[str, Tensor]], kept: Checkpoint | None) -> Iterable[tuple[str, Tensor]]:
        written: set[str] = set()
        for weight, value in weights:
            parts = rename({weight: value}, self.naming)
            written |= parts.keys()
            yield from parts.items()
        if kept is not None:
            yield from ((name, kept.read(name)) for name in kept.shapes if name not in written)


def _of_library(naming: Naming, checkpoints: Iterable[Checkpoint]) -> list[Checkpoint]:
    """Those that are named as what is written: the configuration of one library is none of another's."""
    return [one for one in checkpoints if one.naming.family == naming.family]


def _check_same(
    here: Mapping[str, tuple[int, ...]], there: Mapping[str, tuple[int, ...]], label: str, names: Iterable[str]
) -> None:
    """Raises MergeError where a bank's weights are others in the models whose configuration is to lie beside them."""
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
    if output.suffix in SUFFIXES:
        raise MergeError(f"{output}: expected a name that ends in .safetensors, or the name of a folder")
    if output.is_file():
        raise MergeError(f"{output} is a file, which a folder does not replace: choose another place")
    return False
