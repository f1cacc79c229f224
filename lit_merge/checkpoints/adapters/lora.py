"""PEFT LoRA folders as experts: the base checkpoint with the adapter in it, one weight at a time."""

import re
from collections import defaultdict
from collections.abc import Collection, Mapping
from pathlib import Path

import torch
from torch import Tensor

from lit_merge.checkpoints.adapters.completeness import refuse_incomplete, refuse_other_orientation, refuse_tied
from lit_merge.checkpoints.adapters.config import CONFIG_DIGEST, AdapterConfig
from lit_merge.checkpoints.adapters.low_rank_update import MAGNITUDE, LowRankUpdate, scale_of, wide
from lit_merge.checkpoints.checkpoint import Checkpoint
from lit_merge.checkpoints.folders import ADAPTER_CONFIG, weight_file
from lit_merge.checkpoints.single_file import open_one_file
from lit_merge.checkpoints.updates import Update
from lit_merge.errors import MergeError

PREFIX, BIAS = "base_model.model.", "lora_B.bias"
_PART = re.compile(
    r"(?P<module>.+)\.((?P<layer>lora_[AB]|lora_magnitude_vector)\.weight"
    r"|(?P<parameter>lora_embedding_[AB]|lora_magnitude_vector|lora_B\.bias))"
)
# Modules of peft's own, none of which is in a weight's name where peft saved it.
_OWN = re.compile(r"\.(lora_[^.]*|modules_to_save|original_module|token_adapter|trainable_tokens_[^.]*)(\.|$)")


class LoraFolder(Checkpoint):
    """θ = θ₀ + scale · B A, as peft's `merge_and_unload`, in the base's dtype; `update` answers scale · B A itself.

    `modules_to_save` and biases that were trained stand in the place of the base's, or are added where it has
    none of that name. DoRA is read for linear layers.

    Args:
        folder: with `adapter_config.json` and `adapter_model.safetensors` (or `.bin`).
        base: the checkpoint that the adapter was trained on.

    Raises:
        MergeError: no base, another kind of adapter, or one whose names or shapes are not the base's.
    """

    def __init__(self, folder: Path, base: Checkpoint | None) -> None:
        self.label, self._config_file = str(folder), folder / ADAPTER_CONFIG
        self._config = AdapterConfig(self._config_file)
        self._adapter = open_one_file(weight_file(folder))
        self._config.check_digest(self._adapter.metadata.get(CONFIG_DIGEST))
        if base is None:
            known = self._config.get("base_model_name_or_path")
            raise MergeError(
                f"{folder} is a LoRA adapter{f' of {known}' if known else ''}: give the model that it was trained on "
                "as the merge's base (--model.base; --base of convert)"
            )
        self._base = base
        self.inputs = (self._config.file, *self._adapter.inputs, *base.inputs) if base.inputs else ()
        self._replaced: dict[str, str] = {}
        self._updates: dict[str, LowRankUpdate] = {}
        self._biases: dict[str, tuple[str, float]] = {}
        modules = self._sort()
        for module, parts in modules.items():
            self._update(module, parts)
        self._shapes_of_replaced()
        refuse_incomplete(self._config, modules, self._replaced, base)
        refuse_tied(self._config, self._updates, self._replaced, base)

    def _sort(self) -> dict[str, dict[str, str]]:
        """Modules → the names of what the adapter has for them; `_replaced` of all else."""
        modules: dict[str, dict[str, str]] = defaultdict(dict)
        others = []
        for key in self._adapter.shapes:
            name = key.removeprefix(PREFIX)
            if name == key:
                raise MergeError(f"{self._adapter.label}: {key} is no weight of peft's: expected {PREFIX}…", weight=key)
            match = _PART.fullmatch(name)
            if match is None:
                others.append(name)
            elif modules[match["module"]].setdefault(part := match["layer"] or match["parameter"], key) != key:
                raise self._unknown(key, f"{match['module']} has two of {part}")
        # The longest first: of two names of one weight the plain one is what peft reads.
        for name in sorted(others, key=len, reverse=True):
            self._replaced[self._place(name, modules)] = PREFIX + name
        return modules

    def _place(self, name: str, modules: Collection[str]) -> str:
        """Which weight a tensor, that is none of LoRA's, takes the place of, or is new."""
        key = PREFIX + name
        if match := _OWN.search(f".{name}"):
            copy = name.replace(".modules_to_save.", ".").replace(".original_module.", ".")
            if copy.endswith(".bias") and self._config.get("bias") == "all" and PREFIX + copy in self._adapter.shapes:
                # With all biases peft writes those of whole modules more than once, and reads them by this name.
                return copy
            raise self._unknown(key, f"a name with {match[1]} in this place is not what peft's save_pretrained() gives")
        if (saved := self._config.saved_module(name)) is not None:
            if name in self._base.shapes or not any(one.startswith(f"{saved}.") for one in self._base.shapes):
                return name
            raise self._unknown(key, f"the base's {saved} has no such weight")
        module, wrapped, part = name.rpartition(".base_layer.")
        module, target = (module, f"{module}.{part}") if wrapped else (name.rpartition(".")[0], name)
        if bool(wrapped) != (module in modules):
            raise self._unknown(key, f"{module} has {'no' if wrapped else 'a'} LoRA, so that peft passes it over")
        if target not in self._base.shapes:
            raise self._unknown(key, "the base has no such weight and modules_to_save does not name it")
        return target

    def _unknown(self, key: str, why: str) -> MergeError:
        return MergeError(
            f"{self._adapter.label}: it is not known what {key} does to the model: {why}. Save the model after peft's "
            "merge_and_unload(), and give that",
            weight=key,
        )

    def _update(self, module: str, parts: Mapping[str, str]) -> None:
        fused = f"{module.removesuffix('.base_layer.out_proj')}.in_proj_weight"
        if fused in self._base.shapes:
            # peft adds the update of the output projection twice there, in training and merging alike.
            raise MergeError(
                f"{self.label}: {fused.removesuffix('.in_proj_weight')} is an nn.MultiheadAttention, whose LoRA is "
                "peft's own affair: save the model after peft's merge_and_unload(), and give that",
                weight=fused,
            )
        self._check_parts(module, parts)
        first = "lora_embedding_A" if "lora_embedding_A" in parts else "lora_A"
        scale = scale_of(module, self._adapter.shapes[parts[first]][0], self._config, self._config_file)
        low_rank = {part: key for part, key in parts.items() if part != BIAS}
        update = LowRankUpdate(self._adapter, low_rank, scale, bool(self._config.get("fan_in_fan_out")))
        target = self._target(module, "weight")
        shape = self._base.shapes[target]
        try:
            update.check(shape)
        except ValueError as error:
            raise self._misfit(f"{target} is {list(shape)} there, and {error}", target) from error
        if len(shape) == 2 and shape[0] == shape[1] and first == "lora_A":
            refuse_other_orientation(self._config, module, self._base)
        self._updates[target] = update
        if BIAS in parts:
            bias, shape = self._target(module, "bias"), self._adapter.shapes[parts[BIAS]]
            if self._base.shapes[bias] != shape:
                raise self._misfit(f"{bias} is {list(self._base.shapes[bias])} there and {list(shape)} here", bias)
            self._biases[bias] = parts[BIAS], scale

    def _check_parts(self, module: str, parts: Mapping[str, str]) -> None:
        """Checks that a module has the parts which the configuration says, in floating point, and no others."""
        pair = {part for part in parts if part not in (BIAS, MAGNITUDE)}
        if pair not in ({"lora_A", "lora_B"}, {"lora_embedding_A", "lora_embedding_B"}):
            raise MergeError(f"{self._adapter.label} lacks one of the parts A and B for {module}", weight=module)
        for part, name in ((BIAS, "lora_bias"), (MAGNITUDE, "use_dora")):
            if (part in parts) != bool(self._config.get(name)):
                there = "has" if part in parts else "has no"
                raise MergeError(
                    f"{self._adapter.label} {there} {part} for {module}, but {name} is {self._config.get(name)!r} in "
                    f"{self._config_file}: copy both files again",
                    weight=module,
                )
        if self._config.targets(module) is False:
            raise self._unknown(next(iter(parts.values())), f"{self._config_file} does not target {module}")
        for key in parts.values():
            if not self._adapter.dtypes[key].is_floating_point:
                raise self._unknown(key, f"it is of {self._adapter.dtypes[key]}, and LoRA's parts have a point")
        for key in (parts[part] for part in pair):
            if len(shape := self._adapter.shapes[key]) < 2 or 0 in shape:
                # What is left of weights that were spread over processes and not gathered.
                raise self._unknown(key, f"it is {list(shape)}, and A and B are matrices")

    def _target(self, module: str, part: str) -> str:
        name = f"{module}.{part}"
        if name not in self._base.shapes:
            raise self._misfit(f"that has no {name}", name)
        if not self._base.dtypes[name].is_floating_point:
            raise MergeError(
                f"{self.label} adds to {name}, which is {self._base.dtypes[name]} in {self._base.label}: give the base "
                "before it was quantised, in float32, bfloat16 or float16 (--model.base)",
                weight=name,
            )
        return name

    def _misfit(self, why: str, weight: str) -> MergeError:
        known = self._config.get("base_model_name_or_path")
        message = f"; give the model that it was trained on{f', {known},' if known else ''} as base (--model.base)"
        if known and Path(str(known)).name == Path(self._base.label).name:
            message = f"; it names {known} as its base: another model lies there by now, or one of both is damaged"
        return MergeError(
            f"{self.label} is a LoRA of another base than {self._base.label}: {why}{message}", weight=weight
        )

    def _shapes_of_replaced(self) -> None:
        self.shapes, self.dtypes = dict(self._base.shapes), dict(self._base.dtypes)
        for name, key in self._replaced.items():
            shape = self._adapter.shapes[key]
            if self.shapes.setdefault(name, shape) != shape:
                raise self._misfit(f"{name} is {list(self.shapes[name])} there and {list(shape)} in the adapter", name)
            dtype, there = self._adapter.dtypes[key], self.dtypes.setdefault(name, self._adapter.dtypes[key])
            if dtype.is_floating_point != there.is_floating_point:
                raise self._unknown(key, f"it is {dtype}, and {name} of {self._base.label} is {there}")
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
