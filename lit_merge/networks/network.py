"""An encoder whose weights are handed to every forward, and the frozen heads on it."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import reduce
from typing import Any, TypeVar

import torch
from torch import Tensor, cat, nn
from torch.func import functional_call

from lit_merge.checkpoints import Checkpoint, Naming, StateDict, canonical, is_image, rename
from lit_merge.errors import MergeError
from lit_merge.networks.compiling import compiled
from lit_merge.networks.heads.base import Heads

T = TypeVar("T")
NO_NAMES: Mapping[str, Tensor] = {}


class Network(nn.Module, ABC):
    """A model whose `encoder` has the names and shapes of the experts' weights; its own values are not kept.

    Weights have canonical names here (see `Naming`); `freeze` finds out by which names the encoder takes them. Of a
    whole CLIP only the image tower is run. docs/add_a_network.md makes a network of your own.
    """

    encoder: nn.Module
    heads: Heads
    naming: Naming
    shapes: dict[str, tuple[int, ...]]
    learnable: frozenset[str]
    """Canonical names of the weights that are parameters; the rest are buffers, as running means."""
    tied: tuple[tuple[str, ...], ...]
    """The encoder's names of one and the same parameter, as of embeddings that an encoder and a decoder share."""

    @abstractmethod
    def prepare(self, inputs: Tensor) -> Tensor:
        """What the encoder takes, made of what the data holds."""

    def token_mask(self, inputs: Tensor) -> Tensor | None:
        """Which tokens are no padding, (B, S), for inputs of S tokens: statistics count those. None: all count."""
        return None

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """Inputs of several tasks as one batch."""
        return cat(list(parts))

    def encode(self, inputs: Tensor) -> Any:
        """Features (B, d) of inputs, with the weights that the encoder holds now; or anything that the heads take and
        that can be `split` into the inputs of each task."""
        return self.encoder(self.prepared(inputs))

    def example_inputs(self) -> dict[str, Tensor]:
        """Two inputs, by the names that an exported program takes them by.

        Raises:
            MergeError: a network that does not say.
        """
        raise MergeError(f"{type(self).__name__} does not say what an exported program takes: define example_inputs")

    def features_of(self, inputs: Mapping[str, Tensor]) -> Any:
        """`encode`, of the inputs of an exported program."""
        (only,) = inputs.values()
        return self.encode(only)

    def prepared(self, inputs: Tensor) -> Tensor:
        """What `prepare` makes of inputs, in the precision of the weights that the encoder holds now."""
        return self.prepare(inputs).to(next(self.encoder.parameters()).dtype)

    @property
    def device(self) -> torch.device:
        """The device of the heads, on which the encoder runs too."""
        return next(self.heads.parameters()).device

    def forward(self, weights: Mapping[str, Tensor], inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Logits (B, C) of every task, from one forward over the inputs of all tasks together."""
        return self.holding(weights, lambda: self.logits(inputs))

    def holding(self, weights: Mapping[str, Tensor], work: Callable[[], T]) -> T:
        """Runs `work` while the encoder has these weights. A backward that computes blocks again must be part of it."""
        again = {name for _, *others in self.tied for name in others}
        named = {f"encoder.{name}": value for name, value in self.of_encoder(weights).items() if name not in again}
        found: T = functional_call(_Holding(self.encoder, work), named, ())
        return found

    def of_encoder(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The weights that the encoder runs, by its own names; what is tied by all of them."""
        own = rename({name: value for name, value in weights.items() if self.runs(name)}, self.naming)
        for names in self.tied:
            there = next((own[name] for name in names if name in own), None)
            own |= {} if there is None else dict.fromkeys(names, there)
        return own

    def logits(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Logits (B, C) of every task, with the weights that the encoder holds now."""
        return {task: self.heads(features, task) for task, features in self.features(inputs).items()}

    def features(self, inputs: Mapping[str, Tensor]) -> dict[str, Any]:
        """What `encode` answers, by task, from one forward over the inputs of all tasks together."""
        features = self.encode(self.join(list(inputs.values())))
        parts = features.split([len(x) for x in inputs.values()])
        return dict(zip(inputs, parts, strict=True))

    def evaluate(self, weights: Mapping[str, Tensor], batch: Mapping[str, Any]) -> Tensor:
        """Logits (B, C) of a batch of one task, by the head that the batch names, or by the task's own."""
        head = batch.get("head", batch["task"])
        return self(weights, {head: batch["images"]})[head]

    def rows(self, batch: Mapping[str, Any], label_rows: Mapping[str, Tensor] = NO_NAMES) -> Tensor:
        """The right row of `evaluate`'s logits for every input, (B,): its label, counted from the task's first row.

        Args:
            batch: of one task, with labels.
            label_rows: task → the head's row of every label, (C,); labels are rows themselves by default.

        Raises:
            MergeError: a label that the task's head has no row for, which could only be missed.
        """
        task, labels = batch["task"], batch["labels"]
        if (highest := int(labels.max())) >= (classes := self.heads.classes(task)):
            raise MergeError(f"task {task} has a label {highest}, its head {classes} classes", task=task)
        if task in label_rows:
            labels = label_rows[task].to(labels.device)[labels]
        return labels + self.heads.first_row(batch.get("head", task), task)

    def strangers(self, names: Iterable[str]) -> list[str]:
        """Names of an expert's weights that are not the encoder's, as classifiers are: they are left out of the merge
        unless a configuration says what is. By default there are none, and every weight has to be the encoder's."""
        return []

    def take_heads(self, experts: Mapping[str, Checkpoint]) -> None:
        """Takes the heads in the experts' own files, if the network was given no others."""

    def check_files(self, experts: Mapping[str, Checkpoint]) -> None:
        """Warns where the experts' files say that they compute something else than the network does."""

    def checkpoint_gradients(self) -> None:
        """Has blocks keep their inputs only and compute the rest again in the backward: less memory, more time.

        Raises:
            MergeError: an encoder that cannot.
        """
        raise MergeError(f"{type(self).__name__} has no gradient checkpointing: leave gradient_checkpointing out")

    def compile_encoder(self) -> None:
        """torch.compile of the encoder's forward; its weights keep their names."""
        self.encoder.forward = compiled(self.encoder.forward)

    def check(self, weights: Mapping[str, tuple[int, ...]]) -> None:
        """Raises MergeError where canonical names or shapes of the experts' weights are not the encoder's."""
        weights = {name: shape for name, shape in weights.items() if self.runs(name)}
        # Files hold what is tied under one of its names.
        there = {name for names in self.tied if weights.keys() & names for name in names}
        own = {name: shape for name, shape in self.shapes.items() if name in weights or name not in there}
        for name in sorted(own.keys() ^ weights.keys()):
            where = "the experts have" if name in weights else "the network has"
            lacks = "the network lacks" if name in weights else "the experts lack"
            # What is not part of a CLIP has its own name in the files.
            name = name.removeprefix("other.")
            raise MergeError(
                f"{where} a weight {name}, which {lacks}: take the configuration that the experts were trained with",
                weight=name,
            )
        for name, shape in own.items():
            if shape != weights[name]:
                raise MergeError(
                    f"{name} has shape {list(shape)} in the network and {list(weights[name])} in the experts",
                    weight=name,
                )

    def freeze(self) -> None:
        """Called once built: nothing in a network is trained, and dropout stays off.

        The encoder's own weights go: they would be a whole model in memory, and a stale one. What is left of them are
        names and shapes, which cannot be moved or broadcast, so the encoder is no registered module any more.
        """
        self.requires_grad_(False)
        self.train(False)
        encoder = self._modules.pop("encoder")
        assert encoder is not None
        kept = encoder.state_dict(keep_vars=True)
        view = canonical(StateDict(kept, "the network"))
        self.naming, self.shapes = view.naming, view.shapes
        parameters = {name: value for name, value in kept.items() if isinstance(value, nn.Parameter)}
        empty = {name: torch.empty(shape, device="meta") for name, shape in view.shapes.items()}
        self.learnable = frozenset(n for n in empty if rename({n: empty[n]}, view.naming).keys() <= parameters.keys())
        called: dict[int, list[str]] = {}
        for name, one in parameters.items():
            called.setdefault(id(one), []).append(name)
        self.tied = tuple(tuple(names) for names in called.values() if len(names) > 1)
        # One for every parameter: what is tied stays so.
        made = {id(one): nn.Parameter(torch.empty_like(one, device="meta"), False) for one in encoder.parameters()}
        for module in encoder.modules():
            for name, value in module._parameters.items():
                if value is not None:
                    module._parameters[name] = made[id(value)]
            for name, buffer in module._buffers.items():
                if buffer is not None and any(buffer is one for one in kept.values()):
                    module._buffers[name] = torch.empty_like(buffer, device="meta")
        object.__setattr__(self, "encoder", encoder)

    def runs(self, weight: str) -> bool:
        """Whether the weight of this canonical name is the encoder's, and not the other tower's."""
        return weight in self.shapes or is_image(weight) or weight.startswith("other.")

    def learns(self, weight: str) -> bool:
        """Whether the weight that a bank calls so is a parameter of the encoder, rather than a running mean or the
        like, or no weight of it at all."""
        return weight in self.learnable

    def train(self, mode: bool = True) -> "Network":
        return super().train(False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Network":
        found = super()._apply(fn, recurse)
        if "encoder" not in self._modules:
            # What the encoder has besides weights, as masks of attention, moves with the network.
            for module in self.encoder.modules():
                for name, buffer in module._buffers.items():
                    if buffer is not None and not buffer.is_meta:
                        module._buffers[name] = fn(buffer)
        return found


def compute_dtype(dtypes: Iterable[torch.dtype]) -> torch.dtype:
    """The dtype in which a network runs weights of these dtypes: the widest of them, and at least float32.

    >>> compute_dtype([torch.int64, torch.bfloat16])
    torch.float32
    """
    return reduce(torch.promote_types, [dtype for dtype in dtypes if dtype.is_floating_point], torch.float32)


def without_weights(build: Callable[[], nn.Module]) -> nn.Module:
    """The model that `build` makes, without memory for weights. With it where the model has buffers that are not saved,
    as masks of attention: they have to be computed."""
    with torch.device("meta"):
        made = build()
    weights = made.state_dict()
    return made if all(name in weights for name, _ in made.named_buffers()) else build()


class _Holding(nn.Module):
    def __init__(self, encoder: nn.Module, work: Callable[[], Any]) -> None:
        super().__init__()
        self.encoder, self.work = encoder, work

    def forward(self) -> Any:
        return self.work()
