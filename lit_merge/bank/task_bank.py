"""The task bank: what every merging method produces and everything else works on."""

import copy
import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lit_merge.bank.checksums import WIDTH, is_summed, parts
from lit_merge.bank.files import DIGITS, AnyFile, open_bank_folder, sizes_of, write_bank_folder
from lit_merge.bank.learnt import CORRECTION, DIRECTIONS, of_weight, without
from lit_merge.bank.learnt import cut as cut_learnt
from lit_merge.bank.low_rank import Delta, LowRank, check_precision, chosen_first, combine, ranks_at, tensors_of
from lit_merge.bank.named_tensors import cut_deltas, digest, kinds_of, named_tensors, of_row, origin_and_deltas, part_of
from lit_merge.bank.on_demand import OnDemand, asked_again, mapping_like, without_values
from lit_merge.bank.switching import Slots
from lit_merge.checkpoints import PLAIN, Naming, named, rename
from lit_merge.checkpoints.tensor_values import check_held
from lit_merge.console import html_table, listed
from lit_merge.errors import MergeError, check_finite

Coefficient = float | Float[Tensor, "..."]


@dataclass(frozen=True, eq=False, repr=False)
class TaskBank:
    """W_l = origin_l + Σ_t coefficients[t, l] · Δ[t, l], and what adaptation may have learnt in addition: coefficients
    of single directions, U·diag(λ[t, l]·S)·Vᵀ, and a correction of the origin, one for all tasks.

    Attributes:
        tasks: names of the T tasks.
        origin: name → tensor, for every weight of the model.
        deltas: name → `LowRank` or dense (T, …) for the L weights that differ between tasks; leading size 1 where
            one delta is shared by all tasks (Iso-C).
        coefficients: (T or 1, L), float32 (float64 for float64 experts); what `merge` uses unless it is given others.
        dtypes: name → dtype of the experts' weights, in which `merge` answers.
        method: the method's class and hyper-parameters, for people and for files.
        naming: how the experts' files name their weights, which `merge` and `expert` answer in. Inside, the weights of
            a CLIP go by canonical names (`Naming`), those of other models by their own.
        learnt: the coefficients of directions and the correction, by the names in `bank/learnt.py`; empty by default.
        recipe: what the bank was made of, for people: files with their digests, options of a compression.
    """

    tasks: tuple[str, ...]
    origin: Mapping[str, Tensor]
    deltas: Mapping[str, Delta]
    coefficients: Float[Tensor, "rows L"]
    dtypes: dict[str, torch.dtype]
    method: dict[str, object]
    naming: Naming = PLAIN
    learnt: Mapping[str, Tensor] = field(default_factory=dict)
    recipe: Mapping[str, object] = field(default_factory=dict)

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the L weights that have deltas: the columns of `coefficients`."""
        return tuple(self.deltas)

    @functools.cached_property
    def column_of(self) -> Mapping[str, int]:
        """Name of a weight that has a delta → its column of `coefficients`."""
        return {name: i for i, name in enumerate(self.deltas)}

    @property
    def shared(self) -> bool:
        """Whether one delta serves all tasks."""
        return self.coefficients.shape[0] != len(self.tasks)

    def __repr__(self) -> str:
        return f"TaskBank: {self.summary}"

    def _repr_html_(self) -> str:
        """For notebooks: a row for every task."""
        spread = [
            (one.mean().item(), one.min().item(), one.max().item()) if one.numel() else (float("nan"),) * 3
            for one in self.coefficients.detach().float()
        ]
        names = ["all tasks together"] if self.shared else self.tasks
        rows = [(name, *(f"{value:.3g}" for value in values)) for name, values in zip(names, spread, strict=True)]
        return html_table(self.summary, ("task", "mean λ", "lowest", "highest"), rows)

    @property
    def summary(self) -> str:
        """Method, sizes and tasks, in a line."""
        ranks = list(self.ranks.values())
        low_rank = f", {len(ranks)} of rank {min(ranks)} to {max(ranks)}" if ranks else ""
        weights = f"{len(self.origin)} weights, {len(self.deltas)} with deltas{low_rank}"
        size = f"{self.nbytes / 1e6:,.1f} MB"
        return f"{self.method_line}, {len(self.tasks)} tasks ({listed(self.tasks)}), {weights}, {size}"

    @property
    def method_line(self) -> str:
        """The method's class and options, for people."""
        options = self.method.get("init_args")
        inside = ", ".join(f"{key}={value}" for key, value in options.items()) if isinstance(options, dict) else ""
        return f"{self.method.get('class_path')}({inside})"

    @functools.cached_property
    def nbytes(self) -> int:
        """Bytes of origin, deltas, coefficients, and of what else was learnt."""
        origin, deltas, learnt = (without_values(part) for part in (self.origin, self.deltas, self.learnt))
        return sum(v.nbytes for v in (*origin.values(), *deltas.values(), self.coefficients, *learnt.values()))

    @functools.cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of every weight."""
        return {name: tuple(value.shape) for name, value in without_values(self.origin).items()}

    @property
    def directions(self) -> dict[str, Float[Tensor, "rows r"]]:
        """Weight → λ of every direction, where directions have coefficients of their own."""
        kept = without(self.learnt, CORRECTION)
        return {key.partition("/")[2]: value for key, value in kept.items()}

    @property
    def correction(self) -> dict[str, Tensor]:
        """The shared correction of the origin, by the names in `bank/learnt.py`."""
        return without(self.learnt, [DIRECTIONS])

    @property
    def ranks(self) -> dict[str, int]:
        """Rank of every low-rank delta."""
        deltas = without_values(self.deltas)
        return {name: delta.rank for name, delta in deltas.items() if isinstance(delta, LowRank)}

    def merge(
        self,
        coefficients: Coefficient | None = None,
        dtype: torch.dtype | None = None,
        logits: Mapping[str, Tensor] | None = None,
        naming: str | None = None,
        learnt: Mapping[str, Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """The merged weights, differentiable in `coefficients`, `logits` and `learnt`, where the coefficients lie.

        Args:
            coefficients: a number, or a tensor that broadcasts to (T, L), for every direction of a weight alike; None
                takes the bank's own, and those of directions.
            dtype: of the floating-point results; None takes the experts'.
            logits: name → (T or 1, at least r) for low-rank deltas of which only the directions with a logit above 0
                are used (AdaRank).
            naming: `open_clip`, `openai`, `hugging_face`, or `canonical`, the names inside a bank, by which networks
                take weights; None takes the names in the experts' files.
            learnt: in place of the bank's own, by the names in `bank/learnt.py`.

        Raises:
            MergeError: coefficients of another shape; a dtype of whole numbers; no such naming, or one that does not
                have these weights; a merged weight that its dtype cannot hold (where no gradient is asked for).
        """
        check_precision(dtype)
        if learnt is None:
            learnt = self.learnt if coefficients is None else self.correction
        names = self.naming_of(naming)
        values = self._coefficients(self.coefficients if coefficients is None else coefficients)
        columns = {name: values[:, i] for i, name in enumerate(self.deltas)}
        logits = logits or {}
        merged = {
            name: self._weight(name, columns.get(name), dtype, logits.get(name), of_weight(learnt, name))
            for name in self.origin
        }
        if not any(value.requires_grad for value in merged.values()):
            for name, value in merged.items():
                check_held(name, value)
        # Those without deltas too lie where the coefficients lie.
        return rename({name: value.to(values.device, non_blocking=True) for name, value in merged.items()}, names)

    def naming_of(self, naming: str | None) -> Naming:
        """The naming of this name for these weights; None for that of the experts.

        Raises:
            MergeError: no such naming, or weights that are not a CLIP's.
        """
        return self.naming if naming is None else named(naming, self.origin)

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """The merged weights by the names inside the bank, one after the other, at the bank's coefficients."""
        columns = dict(zip(self.deltas, self.coefficients.unbind(1), strict=True))
        for name in self.origin:
            yield name, self._weight(name, columns.get(name), None, None, of_weight(self.learnt, name))

    def weight(self, name: str, dtype: torch.dtype | None = None) -> Tensor:
        """One merged weight, of a name inside the bank, at the bank's coefficients."""
        column = self.coefficients[:, self.column_of[name]] if name in self.deltas else None
        return self._weight(name, column, dtype, None, of_weight(self.learnt, name))

    def expert(self, task: str, dtype: torch.dtype | None = None, naming: str | None = None) -> dict[str, Tensor]:
        """origin + Δ of this task alone, with coefficient 1 (task indexing): the expert, whatever adaptation has
        learnt; see `merge` for `naming`.

        Raises:
            MergeError: no such task; one delta is shared by all tasks; a naming that `merge` refuses.
        """
        return self.only(task).merge(dtype=dtype, naming=naming)

    def switch_(self, module: nn.Module, task: str | None, strict: bool = True) -> nn.Module:
        """Writes a task's weights into a module, in place: `expert(task)`, whatever weights the module has now. One
        weight at a time is in memory besides; it is computed where the module lies.

        Args:
            module: of the experts' architecture, with the names of their files or canonical ones. Heads are no part of
                a bank: give the encoder, or take `strict=False`.
            task: one of the bank's tasks; None for the merge at the bank's own coefficients.
            strict: refuse a module with parameters that the bank lacks; otherwise they stay as they are.

        Returns:
            The module.

        Raises:
            MergeError: no such task; a module of another architecture, which stays as it is; a damaged file, which may
                leave the module between two states until it is switched again.
        """
        source, slots = self if task is None else self.only(task), Slots(module, self.shapes, self.naming, strict)
        source = replace(source, coefficients=source.coefficients.to(slots.device))
        with torch.no_grad():
            for first, *others in slots.tied:
                value = source.weight(first)
                for name in others:
                    if not torch.equal(value, source.weight(name)):
                        raise MergeError(
                            f"{first} and {name} are one weight in {type(module).__name__}, and two in the bank, which "
                            "differ: switch a module in which they are not tied",
                            weight=name,
                        )
            slots.write(source.weights())
        return module

    @contextmanager
    def switched(
        self, module: nn.Module, task: str | None, after: str | None = None, strict: bool = True
    ) -> Iterator[nn.Module]:
        """Inside, the module has a task's weights; afterwards those of `after`, None for the merge. See `switch_`."""
        self.switch_(module, task, strict)
        try:
            yield module
        finally:
            self.switch_(module, after, strict)

    def module(self, task: str | None, module: nn.Module, strict: bool = True) -> nn.Module:
        """A copy of a module with a task's weights, or the merge's for None: a network like any other. See
        `switch_`."""
        return self.switch_(copy.deepcopy(module), task, strict)

    def only(self, task: str) -> "TaskBank":
        """The bank of this task alone, with coefficient 1 and nothing that adaptation learnt: of a bank in a file, no
        other task's deltas are read. Its merge is `expert(task)`.

        Raises:
            MergeError: no such task, or one delta is shared by all tasks.
        """
        if task not in self.tasks:
            raise MergeError(f"no task {task!r} in this bank, which has {', '.join(self.tasks)}", task=task)
        if self.shared:
            name = self.method.get("class_path")
            raise MergeError(f"{name} has one delta for all tasks, and none for {task} alone", task=task)
        deltas, ones = of_row(self.deltas, self.tasks.index(task)), torch.ones_like(self.coefficients[:1])
        return replace(self, tasks=(task,), deltas=deltas, coefficients=ones, learnt={})

    def truncate(self, rank_ratio: float = 1.0, energy: float = 1.0) -> "TaskBank":
        """This bank with fewer directions; factors are views. Where directions have coefficients of their own, those
        stay that contribute most to the merge, |λ|·s.

        Args:
            rank_ratio: at most ⌊rank_ratio·min(m, n)⌋ directions of every matrix.
            energy: as many directions of every matrix as keep this share of the squared singular values that the bank
                has of it (of their contributions), over all tasks: few where the spectrum is steep, many where it is
                flat.

        Raises:
            MergeError: a share outside (0, 1].
        """
        if rank_ratio == energy == 1:
            return self  # whose values may all be in a file
        bank, weighed = self, self.deltas
        if self.directions:
            bank = self._by_contribution()
            weighed = dict(bank.deltas)
            for name, values in bank.directions.items():
                weighed[name] = replace(bank.low_rank(name), S=bank.low_rank(name).S * values.abs())
        return bank.cut(ranks_at(weighed, rank_ratio, energy))

    def low_rank(self, name: str) -> LowRank:
        """The delta of a weight that has directions."""
        delta = self.deltas[name]
        assert isinstance(delta, LowRank)
        return delta

    def _by_contribution(self) -> "TaskBank":
        """This bank with the directions of every matrix sorted by |λ|·s."""
        deltas, learnt = dict(self.deltas), dict(self.learnt)
        for name, values in self.directions.items():
            order = (self.low_rank(name).S * values.abs()).argsort(dim=-1, descending=True, stable=True)
            deltas[name], learnt[f"{DIRECTIONS}/{name}"] = self.low_rank(name).take(order), values.gather(-1, order)
        return replace(self, deltas=deltas, learnt=learnt)

    def cut(self, ranks: Mapping[str, int]) -> "TaskBank":
        """This bank with at most so many directions of the matrices that are named; factors are views."""
        return replace(self, deltas=cut_deltas(self.deltas, ranks), learnt=cut_learnt(self.learnt, ranks))

    def select(self, kept: Mapping[str, Tensor]) -> "TaskBank":
        """This bank with only the directions that (T or 1, r) booleans choose, for every name given."""
        deltas, learnt = dict(self.deltas), dict(self.learnt)
        for name, chosen in kept.items():
            if isinstance(delta := deltas[name], LowRank):
                deltas[name] = delta.select(chosen)
                if (key := f"{DIRECTIONS}/{name}") in learnt:
                    learnt[key] = learnt[key].gather(-1, chosen_first(chosen))
        return replace(self, deltas=deltas, learnt=learnt)

    def to(self, dtype: torch.dtype) -> "TaskBank":
        """This bank stored in another precision; singular values and coefficients stay as they are.

        Raises:
            MergeError: a dtype of whole numbers.
        """
        check_precision(dtype)
        origin = {name: v.to(dtype) if v.is_floating_point() else v for name, v in self.origin.items()}
        deltas = {name: delta.to(dtype) for name, delta in self.deltas.items()}
        learnt = dict(self.learnt) | {key: value.to(dtype) for key, value in self.correction.items()}
        return replace(self, origin=origin, deltas=deltas, learnt=learnt)

    @functools.cached_property
    def fingerprint(self) -> str:
        """A digest of everything but what adaptation changes: two banks with equal ones are the same bank."""
        tensors = self.tensors()
        return digest((self.tasks, self.layers), tensors, tensors.__getitem__)[0]

    def tensors(self) -> Mapping[str, Tensor]:
        """All tensors under the names that files use: `origin/…`, `U/…`, `S/…`, `V/…`, `delta/…`, `coefficients`."""
        return named_tensors(self.origin, self.deltas, self.coefficients, self.learnt)

    def with_tensors(self, tensors: Mapping[str, Tensor]) -> "TaskBank":
        """This bank around other tensors of the names of `tensors()`: moved, or read from a file."""
        origin, deltas = origin_and_deltas(tensors, self.origin, self.deltas)
        learnt = mapping_like(tuple(self.learnt), lambda tensors, key: tensors[key], tensors)
        return replace(self, origin=origin, deltas=deltas, coefficients=tensors["coefficients"], learnt=learnt)

    def reading(
        self, read: Callable[[str], Tensor], read_row: Callable[[str, int], Tensor] | None = None
    ) -> "TaskBank":
        """This bank with the values that `read` answers to names of `tensors()`, whenever they are asked for, and
        `read_row` to a name and the position of a task, where one task's part can be read alone."""
        tensors = self.tensors()
        bank = self.with_tensors(OnDemand(tensors, read, tensors.__getitem__, row=read_row))
        return replace(bank, coefficients=self.coefficients)

    def in_memory(self) -> "TaskBank":
        """This bank with all its values in memory: one that is switched often is read once."""
        return self.with_tensors(dict(self.tensors()))

    def save(self, path: str | Path, overwrite: bool = False, read: Callable[[str], Tensor] | None = None) -> None:
        """Writes a folder of `bank.safetensors` and `bank.json`, whole or not at all.

        Args:
            path: of the folder.
            overwrite: replace what stands there.
            read: answers the value of a name of `tensors()`. With it the bank's own tensors may be on the device
                `meta`, and one value at a time is in memory.

        Raises:
            MergeError: the folder exists and `overwrite` is off, or cannot be written.
        """
        tensors = self.tensors()
        about = self.about(*digest((self.tasks, self.layers), tensors, read or tensors.__getitem__))
        write_bank_folder(path, about, tensors, read or tensors.__getitem__, overwrite)

    @property
    def saved_bytes(self) -> int:
        """Of the files that `save` writes, to the byte."""
        tensors = without_values(self.tensors())
        sums = {name: "0" * WIDTH * parts(name, value) for name, value in tensors.items() if is_summed(name)}
        shapes = {name: tuple(value.shape) for name, value in tensors.items()}
        dtypes = {name: value.dtype for name, value in tensors.items()}
        return sum(sizes_of(self.about("0" * DIGITS, sums), shapes, dtypes))

    def about(self, fingerprint: str, sums: Mapping[str, str]) -> dict[str, Any]:
        """What `bank.json` says of this bank, whose tensors have these digests; see docs/bank_format.md."""
        about = {
            "method": self.method,
            "tasks": self.tasks,
            "layers": self.layers,
            "ranks": self.ranks,
            "dtypes": {name: str(dtype).removeprefix("torch.") for name, dtype in self.dtypes.items()},
            "nbytes": self.nbytes,
            "fingerprint": fingerprint,
            "checksums": dict(sums),
            "naming": asdict(self.naming),
        }
        about |= {"learnt": list(self.learnt)} if self.learnt else {}
        return about | ({"recipe": dict(self.recipe)} if self.recipe else {})

    @classmethod
    def load(cls, path: str | Path, base: str | Path | None = None) -> "TaskBank":
        """Opens a folder that `save` wrote. Tensors stay on disk: each is read whenever it is asked for, and leaves
        memory when nobody holds it any more, also during the backward of `merge`. One that holds NaN or infinity raises
        MergeError when it is asked for, and so does a file that was written into meanwhile. A folder that another one
        takes the name of is read as it was.

        Args:
            path: of the folder.
            base: where the base is, of a bank that is stored as a difference from one; None for where it was when the
                bank was written, or next to the bank.

        Raises:
            MergeError: no bank there, a newer format, or a file that is damaged; a base that is missing, or another.
        """
        frame, file = cls.open(path, base)
        return frame.reading(file.read, file.read_row)

    @classmethod
    def open(cls, path: str | Path, base: str | Path | None = None) -> tuple["TaskBank", AnyFile]:
        """Opens a folder that `save` wrote, without values: all tensors but the coefficients are on the device
        `meta`. The file reads them, by their names in `tensors()`."""
        about, file = open_bank_folder(path, base)
        origin, deltas = origin_and_deltas(file.empty(), about["dtypes"], about["layers"])
        tasks, coefficients = tuple(about["tasks"]), file.read("coefficients")
        learnt = {key: file.empty()[key] for key in about["learnt"]}
        parts = (about["dtypes"], about["method"], about["naming"], learnt, about["recipe"])
        return cls(tasks, origin, deltas, coefficients, *parts), file

    def _coefficients(self, values: Coefficient) -> Float[Tensor, "rows L"]:
        check_finite({"coefficients": values})
        tensor = torch.as_tensor(values, dtype=None if isinstance(values, Tensor) else self.coefficients.dtype)
        try:
            return tensor.expand(self.coefficients.shape)
        except RuntimeError as error:
            raise MergeError(
                f"coefficients of shape {list(tensor.shape)} do not fit {list(self.coefficients.shape)} "
                "(tasks × weights with deltas)"
            ) from error

    def _weight(
        self,
        name: str,
        coefficients: Tensor | None,
        dtype: torch.dtype | None,
        logits: Tensor | None,
        learnt: Mapping[str, Tensor],
    ) -> Tensor:
        delta = self.deltas.get(name)
        dtype = dtype or self.dtypes[name]
        sum_up = functools.partial(combine, self.origin[name], delta, coefficients, dtype, logits, learnt)
        if delta is None or not isinstance(self.deltas, OnDemand):
            return sum_up()
        keys = [f"{kind}/{name}" for kind in kinds_of(delta)]
        with asked_again(lambda i: part_of(self.deltas, keys[i]), tensors_of(delta)):
            return sum_up()
