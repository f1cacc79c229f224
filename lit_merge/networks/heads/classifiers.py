"""ClassifierHeads: the classifiers that experts were fine-tuned with, from the experts' own files."""

import copy
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, cast

from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.func import functional_call

from lit_merge.checkpoints import Checkpoint
from lit_merge.checkpoints.json_text import entries_of
from lit_merge.data.class_names import id2label
from lit_merge.errors import MergeError
from lit_merge.networks.heads.base import Heads, wide
from lit_merge.networks.transformers_models import Given, split_outputs


@dataclass(frozen=True)
class Encoded:
    """Outputs of an encoder of transformers, and its inputs: each classifier pools them in its own way.

    Attributes:
        outputs: the encoder's, as `last_hidden_state` (B, S, d).
        ids: token ids.
        mask: which tokens are no padding.
    """

    outputs: Any
    ids: Int[Tensor, "B S"]
    mask: Bool[Tensor, "B S"]

    def split(self, sizes: list[int]) -> list["Encoded"]:
        parts = zip(split_outputs(self.outputs, sizes), self.ids.split(sizes), self.mask.split(sizes), strict=True)
        return [Encoded(*part) for part in parts]


class ClassifierHeads(Heads):
    """What follows the encoder in transformers' sequence classifiers: `classifier`, `pre_classifier`, `score`, ….

    Args:
        model: a sequence classifier of two classes whose encoder is taken out, replaced by `Given`.
        other: the same model of three classes: axes whose sizes differ are those of the classes.
        prefix: what `model` calls its encoder.
    """

    def __init__(self, model: nn.Module, other: nn.Module, prefix: str) -> None:
        super().__init__(())
        self.shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
        third = {name: tuple(value.shape) for name, value in other.state_dict().items()}
        self.class_axes = {
            name: axis
            for name, shape in self.shapes.items()
            for axis, (two, three) in enumerate(zip(shape, third[name], strict=True))
            if two != three
        }
        self.given: Given = getattr(model, prefix)
        # No registered module: what it computes with is handed in, and its own weights are none.
        object.__setattr__(self, "model", model.to("meta"))
        self.weights = nn.ParameterList()
        self.taken: list[int] = []

    def take(self, experts: Mapping[str, Checkpoint]) -> None:
        """Reads the head of every task from its expert's file.

        Raises:
            MergeError: a weight that is missing, of another width, or not finite; a head of one class, or of several
                labels at once; heads that do not know how many classes they have.
        """
        configurations = _configurations(experts)
        for task, about in configurations.items():
            _check_one_label(task, about, experts[task].label)
        found = {task: self._read(task, file) for task, file in experts.items()}
        self.tasks = self.mixed = tuple(found)
        self.taken = [self._count(task, weights, experts[task]) for task, weights in found.items()]
        # Parameters rather than buffers: DDP broadcasts buffers at every forward.
        self.weights = nn.ParameterList(
            nn.Parameter(weights[name].float(), requires_grad=False) for weights in found.values() for name in weights
        )
        named = {task: names for task, names in _names(configurations).items() if len(names) == self.count(task)}
        self.name_rows(named, "config.json")

    def count(self, task: str) -> int:
        return self.taken[self.tasks.index(task)]

    def one(self, features: Encoded, task: str) -> Float[Tensor, "B C"]:
        weights = self._weights_of(task)
        # All of one precision, as its outputs are.
        found: dict[str, Tensor] = dict(features.outputs.items())
        dtype = wide(next(iter(found.values())), *weights.values())[0].dtype
        weights = {name: value.to(dtype) for name, value in weights.items()}
        self.given.outputs = type(features.outputs)(**{name: value.to(dtype) for name, value in found.items()})
        try:
            kwargs = {"input_ids": features.ids, "attention_mask": features.mask.long()}
            logits: Tensor = functional_call(self.model, weights, (), kwargs).logits  # type: ignore[arg-type]
        finally:
            self.given.outputs = None
        return logits

    def alone(self, task: str) -> nn.Module:
        self.require(task)
        return _Classifier(cast(nn.Module, self.model), self._weights_of(task))

    def _weights_of(self, task: str) -> dict[str, Tensor]:
        start = self.tasks.index(task) * len(self.shapes)
        return dict(zip(self.shapes, self.weights[start : start + len(self.shapes)], strict=True))

    def require(self, task: str) -> None:
        if not self.tasks:
            raise MergeError(
                f"no head for task {task}: classifiers lie in the experts' files: give --model.experts too, or heads",
                task=task,
            )
        super().require(task)

    def _read(self, task: str, file: Checkpoint) -> dict[str, Tensor]:
        weights = {}
        for name, shape in self.shapes.items():
            expected = ["classes" if self.class_axes.get(name) == axis else size for axis, size in enumerate(shape)]
            if name not in file.shapes:
                raise MergeError(
                    f"{file.label} holds no {name}, the head of task {task}: take an expert as "
                    "AutoModelForSequenceClassification saves it, or give heads in a file of their own",
                    task=task,
                    weight=name,
                )
            found = file.shapes[name]
            fits = len(found) == len(shape) and all(
                one == size for one, size in zip(found, expected, strict=True) if size != "classes"
            )
            if not fits:
                raise MergeError(
                    f"{file.label}: the head {name} has shape {list(found)}, expected {' × '.join(map(str, expected))}",
                    task=task,
                    weight=name,
                )
            weights[name] = file.read(name)
            if not weights[name].isfinite().all():
                raise MergeError(f"{file.label}: the head {name} holds NaN or infinity", task=task, weight=name)
        return weights

    def _count(self, task: str, weights: Mapping[str, Tensor], file: Checkpoint) -> int:
        counts = {name: weights[name].shape[axis] for name, axis in self.class_axes.items()}
        if len(set(counts.values())) != 1:
            message = ", ".join(f"{name} {count}" for name, count in counts.items()) or "nothing"
            raise MergeError(f"{file.label}: the classes of the head of task {task} are unclear: {message}", task=task)
        classes = next(iter(counts.values()))
        if classes < 2:
            raise MergeError(
                f"{file.label}: the head of task {task} has one class, as of a regression: expected at least two",
                task=task,
            )
        return classes


class _Classifier(nn.Module):
    """What follows the encoder, with weights of its own.

    Args:
        model: that is copied; its encoder is `Given`.
        weights: by its names.
    """

    def __init__(self, model: nn.Module, weights: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.model = copy.deepcopy(model)
        for name, value in weights.items():
            module, _, last = name.rpartition(".")
            # Of another number of classes than the model was built for.
            setattr(self.model.get_submodule(module), last, nn.Parameter(value, requires_grad=False))
        (self.given,) = (one for one in self.model.modules() if isinstance(one, Given))

    def forward(self, features: Encoded) -> Float[Tensor, "B C"]:
        self.given.outputs = features.outputs
        found: Tensor = self.model(input_ids=features.ids, attention_mask=features.mask.long()).logits
        self.given.outputs = None
        return found


def _configurations(experts: Mapping[str, Checkpoint]) -> dict[str, dict[str, Any]]:
    """Task → config.json in the folder of an expert, if no other expert is in that folder."""
    folders = {task: {path.parent for path in file.files} for task, file in experts.items()}
    used = Counter(folder for places in folders.values() for folder in places)
    alone = {task: places.pop() for task, places in folders.items() if len(places) == 1}
    return {task: entries_of(place / "config.json") for task, place in alone.items() if used[place] == 1}


def _check_one_label(task: str, about: Mapping[str, Any], label: str) -> None:
    if about.get("problem_type") == "multi_label_classification":
        raise MergeError(
            f"{label}: task {task} is of several labels at once (problem_type in its config.json): expected an expert "
            "that predicts one class of an input",
            task=task,
        )


def _names(configurations: Mapping[str, Mapping[str, Any]]) -> dict[str, list[str]]:
    """Task → the names of classes; without a name for every row classes go by their numbers."""
    found = {}
    for task, about in configurations.items():
        with suppress(ValueError, KeyError, AttributeError, TypeError):
            found[task] = id2label(about)
    return found


def take_apart(model: nn.Module) -> tuple[nn.Module, nn.Module, str]:
    """A sequence classifier whose encoder is `Given`, the encoder, and its name there."""
    prefix: str = model.base_model_prefix  # type: ignore[assignment]
    encoder = getattr(model, prefix)
    setattr(model, prefix, Given())
    return model, encoder, prefix
