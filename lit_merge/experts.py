"""The experts of a merge and their base: checked against each other, then streamed one weight at a time."""

import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from jaxtyping import Shaped
from torch import Tensor

from lit_merge.checkpoints import Checkpoint, Source, canonical, holds_model, open_checkpoint
from lit_merge.decompositions import Decompositions
from lit_merge.errors import MergeError
from lit_merge.locations import resolve
from lit_merge.low_rank import LowRank
from lit_merge.optional_weights import optional_weights, without
from lit_merge.weight_names import ADAPTER_CONFIG, SUFFIXES

Decompose = Callable[[Tensor, int], LowRank]
"""(T, m, n) and a rank → the leading directions."""


@dataclass(frozen=True, eq=False)
class Weight:
    """One weight of all experts, in float32 (float64 stays)."""

    name: str
    experts: Shaped[Tensor, "T ..."]
    base: Shaped[Tensor, "..."] | None
    decompositions: Decompositions | None = None

    @property
    def agrees(self) -> bool:
        """Whether all experts, and the base where there is one, hold the same values: nothing to merge."""
        first = self.experts[0]
        return bool((self.experts == first).all()) and (self.base is None or torch.equal(self.base, first))

    @property
    def task_vectors(self) -> Shaped[Tensor, "T ..."]:
        """τ_t = θ_t − θ₀."""
        if self.base is None:
            raise MergeError(f"task vectors of {self.name} need the pretrained checkpoint: pass base=…")
        return self.experts - self.base

    @property
    def centred(self) -> Shaped[Tensor, "T ..."]:
        """θ_t − θ̄, the task vectors from the mean of the experts."""
        return self.experts - self.experts.mean(0)

    def svd(self, of: str) -> Decompose:
        """What decomposes this weight's matrices, looking first among the decompositions that are kept.

        Args:
            of: names what is decomposed, so that methods share it: `vectors` is every θ_t − θ₀, `centred` every
                θ_t − θ̄, `sum` the one matrix Σ_t (θ_t − θ₀).
        """
        if self.decompositions is None:
            return LowRank.from_dense
        return functools.partial(self.decompositions.get, f"{self.name} {of}")


Change = Callable[[Weight], Weight]


class Experts:
    """Opened checkpoints by task. Construction reads headers only.

    Weights of a CLIP go by canonical names (`Naming`), whatever library the files are of; `naming` is the first
    expert's. Weights of other models keep their names.

    Args:
        sources: task → path or state dict, in the order of the tasks.
        base: the pretrained checkpoint, where it is known.

    Raises:
        MergeError: no experts; a file that is missing or broken; names, shapes or dtypes that differ.
    """

    def __init__(self, sources: Mapping[str, Source], base: Source | None = None) -> None:
        if not sources:
            raise MergeError("no experts given, expected a mapping from task to checkpoint")
        opened = None if base is None else open_checkpoint(base, "base")
        self.checkpoints: dict[str, Checkpoint] = {}
        for task, source in sources.items():
            try:
                self.checkpoints[task] = canonical(open_checkpoint(source, f"expert {task}", opened))
            except MergeError as error:
                raise MergeError(f"expert {task}: {error}", task=task, weight=error.weight) from error
        self.base = None if opened is None else canonical(opened)
        optional = optional_weights(list(self.checkpoints.values()), self.base)
        self.checkpoints = {task: without(one, optional) for task, one in self.checkpoints.items()}
        self.base = None if self.base is None else without(self.base, optional)
        first, *others = self.checkpoints.items()
        for task, checkpoint in others:
            _check_same(first[1], checkpoint, task, dtypes=True)
        if self.base is not None:
            # The base may be stored in another precision: experts are often saved in half of it.
            _check_same(first[1], self.base, "base", dtypes=False)
        self.tasks = tuple(self.checkpoints)
        self.naming = first[1].naming
        self.shapes = first[1].shapes
        self.dtypes = first[1].dtypes
        self.nbytes = sum(checkpoint.nbytes for checkpoint in self.checkpoints.values())

    @property
    def identity(self) -> object:
        """What tells these files from others: paths, sizes and times; None where weights are in memory only."""
        opened = [self.checkpoints[task] for task in self.tasks] + ([] if self.base is None else [self.base])
        if not all(checkpoint.files for checkpoint in opened):
            return None
        stats = [(str(path.absolute()), path.stat()) for checkpoint in opened for path in checkpoint.files]
        return [(path, stat.st_size, stat.st_mtime_ns) for path, stat in stats]

    def stream(self, with_base: bool) -> Iterator[Weight]:
        """Every weight in turn; at any time only one weight of all experts is in memory.

        Raises:
            MergeError: NaN or infinity in a weight; a weight that is no floating-point number and differs.
        """
        for name in self.shapes:
            read = {task: _finite(checkpoint, name, task) for task, checkpoint in self.checkpoints.items()}
            experts = torch.stack(list(read.values()))
            base = _finite(self.base, name, "base") if with_base and self.base is not None else None
            if experts.is_floating_point():
                dtype = torch.promote_types(experts.dtype, torch.float32)
                yield Weight(name, experts.to(dtype), None if base is None else base.to(dtype))
            elif (experts == experts[0]).all():
                # Counters and indices: what the experts agree on holds, whatever the base had counted.
                yield Weight(name, experts, None)
            else:
                raise MergeError(
                    f"{name} is of dtype {experts.dtype} and differs between the experts: only floating-point "
                    "weights can be merged",
                    weight=name,
                )


def _check_same(first: Checkpoint, other: Checkpoint, task: str, dtypes: bool) -> None:
    for name in sorted(first.shapes.keys() ^ other.shapes.keys()):
        has, lacks = (first, other) if name in first.shapes else (other, first)
        lacking = lacks.name_of(name)
        where = "" if has.name_of(name) == lacking else f" as {has.name_of(name)}"
        raise MergeError(
            f"{lacks.label} has no weight {lacking}, which {has.label} has{where}: all must be fine-tuned from one "
            "checkpoint",
            task=task,
            weight=lacking,
        )
    for name, shape in first.shapes.items():
        called, there = first.name_of(name), other.name_of(name)
        where = other.label if there == called else f"{other.label} ({there})"
        if shape != other.shapes[name]:
            raise MergeError(
                f"{called} has shape {list(shape)} in {first.label} and {list(other.shapes[name])} in {where}",
                task=task,
                weight=there,
            )
        if dtypes and first.dtypes[name] != other.dtypes[name]:
            raise MergeError(
                f"{called} is {first.dtypes[name]} in {first.label} and {other.dtypes[name]} in {where}: "
                "save all experts in one dtype",
                task=task,
                weight=there,
            )


def _finite(checkpoint: Checkpoint, name: str, task: str) -> Tensor:
    value = checkpoint.read(name)
    if value.is_floating_point():
        bad = value.numel() - int(value.isfinite().sum())
        if bad:
            raise MergeError(
                f"{checkpoint.label}: {checkpoint.name_of(name)} holds NaN or infinity in {bad:,} of "
                f"{value.numel():,} places",
                task=task,
                weight=checkpoint.name_of(name),
            )
    return value


def expert_files(experts: dict[str, str] | str) -> dict[str, str]:
    """task → file or folder. A folder's tasks are the names of the models in it, sorted: of its files of weights, and
    of its folders of Hugging Face, open_clip or PEFT.

    Raises:
        MergeError: no such folder, none with models, one that is a model itself, or two models of one name.
    """
    if not isinstance(experts, str):
        return experts
    folder = resolve(experts)
    if not folder.is_dir():
        raise MergeError(f"{experts}: no such folder of experts")
    try:
        entries = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as error:
        raise MergeError(f"{folder} cannot be read: {error.strerror}") from error
    if any(path.name.endswith(".index.json") or path.name == ADAPTER_CONFIG for path in entries):
        raise MergeError(f"{experts} is the folder of one model, expected one with a model for every task")
    found: dict[str, str] = {}
    for path in entries:
        if holds_model(path) if path.is_dir() else path.suffix in SUFFIXES:
            task = path.name if path.is_dir() else path.stem
            if task in found:
                raise MergeError(f"{experts} holds task {task} twice: {found[task]} and {path}; keep one", task=task)
            found[task] = str(path)
    if not found:
        raise MergeError(
            f"{experts} holds no model, expected one for every task: a file ({', '.join(SUFFIXES)}) or a model's folder"
        )
    return found


class WeightStream:
    """The weights of all experts, as often as they are iterated over, one in memory at a time.

    Args:
        experts: opened checkpoints.
        with_base: whether weights carry the pretrained checkpoint's values.
        change: what a transform makes of every weight.
        decompositions: kept for weights as they come out of this stream.
    """

    def __init__(
        self,
        experts: Experts,
        with_base: bool,
        change: Change | None = None,
        decompositions: Decompositions | None = None,
    ) -> None:
        self.experts, self.with_base = experts, with_base
        self.change, self.decompositions = change, decompositions

    def __len__(self) -> int:
        return len(self.experts.shapes)

    def __iter__(self) -> Iterator[Weight]:
        for weight in self.experts.stream(self.with_base):
            kept = replace(weight, decompositions=self.decompositions)
            yield self.change(kept) if self.change is not None and weight.experts.is_floating_point() else kept
