"""PEFT LoRA folders as experts: the base checkpoint with the adapter in it, one weight at a time."""

import re
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from lit_merge.checkpoints.checkpoint import Checkpoint
from lit_merge.checkpoints.folders import weight_file
from lit_merge.checkpoints.low_rank_update import LowRankUpdate, read_config, scale_of, wide
from lit_merge.checkpoints.one_file import open_one_file
from lit_merge.checkpoints.updates import Update
from lit_merge.errors import MergeError
from lit_merge.weight_names import ADAPTER_CONFIG

PREFIX = "base_model.model."
# What peft puts around a module, in its name.
_WRAPPER = re.compile(r"\.(base_layer|modules_to_save(\.default)?)(?=\.)")
_PART = re.compile(r"(?P<module>.+)\.(?P<part>lora_(A|B|embedding_A|embedding_B|magnitude_vector))(\.weight)?")
_BIAS = re.compile(r"(?P<module>.+)\.lora_B\.bias")


class LoraFolder(Checkpoint):
    """θ = θ₀ + scale · B A, as peft's `merge_and_unload`, in the base's dtype; `update` answers scale · B A itself.

    `modules_to_save` and biases that were trained stand in the place of the base's, and beside its weights where it has
    none of that name. DoRA is read for linear layers.

    Args:
        folder: with `adapter_config.json` and `adapter_model.safetensors` (or `.bin`).
        base: the checkpoint that the adapter was trained on.

    Raises:
        MergeError: no base, another kind of adapter, or one whose names or shapes are not the base's.
    """

    def __init__(self, folder: Path, base: Checkpoint | None) -> None:
        self.label, self._config_file = str(folder), folder / ADAPTER_CONFIG
        self._config = read_config(self._config_file)
        self._adapter = open_one_file(weight_file(folder))
        if base is None:
            known = self._config.get("base_model_name_or_path")
            raise MergeError(
                f"{folder} is a LoRA adapter{f' of {known}' if known else ''}: give the model that it was trained on "
                "as the merge's base (--model.base; --base of convert)"
            )
        self._base = base
        self.files = (self._config_file, *self._adapter.files, *base.files) if base.files else ()
        self._replaced: dict[str, str] = {}
        self._updates: dict[str, LowRankUpdate] = {}
        self._biases: dict[str, tuple[str, float]] = {}
        self._sort()
        self._shapes_of_replaced()

    def _sort(self) -> None:
        """What every tensor of the adapter does to the base."""
        parts: dict[str, dict[str, str]] = defaultdict(dict)
        biases = {}
        for key in self._adapter.shapes:
            if not key.startswith(PREFIX):
                raise MergeError(f"{self._adapter.label}: {key} is no weight of peft's: expected {PREFIX}…", weight=key)
            name = _WRAPPER.sub("", key.removeprefix(PREFIX))
            if match := _PART.fullmatch(name):
                parts[match["module"]][match["part"]] = key
            elif match := _BIAS.fullmatch(name):
                biases[match["module"]] = key
            else:
                self._replaced[name] = key
        for module, found in parts.items():
            scale = self._update(module, found)
            if module in biases:
                self._biases[self._target(module, "bias")] = biases[module], scale

    def _update(self, module: str, parts: Mapping[str, str]) -> float:
        first = parts.get("lora_A", parts.get("lora_embedding_A"))
        if first is None or first.replace("_A", "_B") not in parts.values():
            raise MergeError(f"{self._adapter.label} has not both parts, A and B, for {module}", weight=module)
        scale = scale_of(module, self._adapter.shapes[first][0], self._config, self._config_file)
        update = LowRankUpdate(self._adapter, parts, scale, bool(self._config.get("fan_in_fan_out")))
        if f"{module}.in_proj_weight" in self._base.shapes:
            # peft adds the update of the output projection twice there, in training and merging alike.
            raise MergeError(
                f"{self.label}: {module} is an nn.MultiheadAttention, whose LoRA is peft's own affair: save the model "
                "after peft's merge_and_unload(), and give that",
                weight=f"{module}.in_proj_weight",
            )
        target = self._target(module, "weight")
        try:
            update.check(self._base.shapes[target])
        except ValueError as error:
            raise self._misfit(f"{target} is {list(self._base.shapes[target])} there, and {error}", target) from error
        self._updates[target] = update
        return scale

    def _target(self, module: str, part: str) -> str:
        name = f"{module}.{part}"
        if name not in self._base.shapes:
            raise self._misfit(f"that has no {name}", name)
        return name

    def _misfit(self, why: str, weight: str) -> MergeError:
        known = self._config.get("base_model_name_or_path")
        told = f"; give the model that it was trained on{f', {known},' if known else ''} as base (--model.base)"
        return MergeError(f"{self.label} is a LoRA of another base than {self._base.label}: {why}{told}", weight=weight)

    def _shapes_of_replaced(self) -> None:
        self.shapes, self.dtypes = dict(self._base.shapes), dict(self._base.dtypes)
        for name, key in self._replaced.items():
            shape = self._adapter.shapes[key]
            if self.shapes.setdefault(name, shape) != shape:
                raise self._misfit(f"{name} is {list(self.shapes[name])} there and {list(shape)} in the adapter", name)
            self.dtypes.setdefault(name, self._adapter.dtypes[key])
        self.nbytes = self._adapter.nbytes

    def read(self, name: str) -> Tensor:
        key = self._replaced.get(name)
        value = self._base.read(name) if key is None else self._adapter.read(key)
        if name in self._updates:
            value = self._updates[name].add(value)
        if name in self._biases:
            key, scale = self._biases[name]
            value = value.to(torch.promote_types(value.dtype, torch.float32)) + scale * self._adapter.read(key)
        return value.to(self.dtypes[name])

    def is_updated(self, name: str) -> bool:
        return name in self._updates or name in self._biases

    def update(self, name: str) -> Update | None:
        if name in self._replaced:
            return None
        shape = self.shapes[name]
        if name in self._biases:
            key, scale = self._biases[name]
            bias = self._adapter.read(key)
            return Update(scale * wide(bias)[:, None], torch.ones(1, 1), shape, bias.dtype)
        return self._updates[name].factors(shape) if name in self._updates else Update.none(shape, self.dtypes[name])
