"""What the configuration of a LoRA adapter says; what is not understood is refused."""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lit_merge.checkpoints.input_file import InputFile
from lit_merge.checkpoints.json_text import parse_json
from lit_merge.checkpoints.manifest import digest_of
from lit_merge.errors import MergeError

ALL_LINEAR = "all-linear"
# In the header of the weights that lit_merge writes: what their configuration says of them.
CONFIG_DIGEST = "lit_merge_config"
# Of no matter to the merged weights.
_NO_MATTER = {
    *("peft_type", "peft_version", "auto_mapping", "base_model_name_or_path", "revision", "task_type"),
    *("inference_mode", "lora_dropout", "megatron_core", "qalora_group_size", "runtime_config"),
    *("eva_config", "corda_config", "lora_ga_config", "loftq_config"),  # of the start: see init_lora_weights
}
_ANY = _NO_MATTER | {"r", "lora_alpha"}
_SWITCHES = {"fan_in_fan_out", "use_rslora", "use_dora", "lora_bias"}
_NAMES = {"target_modules", "exclude_modules", "layers_pattern", "modules_to_save"}
# Starts that leave the base as it was.
_STARTS = (True, False, None, "gaussian", "eva", "orthogonal", "mica")
# Named by peft itself for these tasks, whether or not the model has all of them.
_HEADS = {"SEQ_CLS": ("classifier", "score"), "TOKEN_CLS": ("classifier", "score")}
_MERGE = "save the model after peft's merge_and_unload(), and give that"


def config_digest(entries: Mapping[str, Any]) -> str:
    """Of what a configuration says of the merged weights: what the base is called may change."""
    kept = {name: value for name, value in entries.items() if name not in _NO_MATTER}
    return digest_of(json.dumps(kept, sort_keys=True).encode())


class AdapterConfig(dict[str, Any]):
    """The entries of an `adapter_config.json`.

    Args:
        path: of the file.

    Raises:
        MergeError: missing, unreadable, no JSON, another kind of adapter, or an entry that is not known to leave
            W + scale · B A as it is.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.file = path, InputFile(path, "an adapter's configuration")
        self.file.start("an adapter's configuration")
        text = self.file.text("an adapter's configuration")
        try:
            content = parse_json(text)
        except (ValueError, RecursionError) as error:
            raise MergeError(f"{path} is no configuration of an adapter: {error}") from error
        kind = content.get("peft_type") if isinstance(content, dict) else None
        if kind != "LORA":
            raise MergeError(f"{path}: peft_type is {kind!r}; only LORA adapters can be merged")
        super().__init__(content)
        for name, value in self.items():
            self._check(name, value)

    def _check(self, name: str, value: Any) -> None:
        if name == "init_lora_weights":
            self._check_start(value)
        elif name == "bias":
            if value not in ("none", "all", "lora_only"):
                raise MergeError(f"{self.path}: bias is {value!r}, expected none, all or lora_only")
        elif name in _SWITCHES:
            if value not in (True, False, None):
                raise MergeError(f"{self.path}: {name} is {value!r}, expected true or false")
        elif name in _NAMES:
            names = value if isinstance(value, list) else [value or ""]
            if not all(isinstance(one, str) for one in names) or (name == "modules_to_save" and isinstance(value, str)):
                raise MergeError(f"{self.path}: {name} is {value!r}, expected a list of names")
        elif name in ("rank_pattern", "alpha_pattern"):
            if not isinstance(value, dict | None):
                raise MergeError(f"{self.path}: {name} is {value!r}, expected names and their numbers")
        elif name == "layers_to_transform":
            numbers = value if isinstance(value, list) else [value or 0]
            if not all(type(one) is int for one in numbers):
                raise MergeError(f"{self.path}: {name} is {value!r}, expected numbers of layers")
        elif name not in _ANY and value:
            raise MergeError(f"{self.path}: {name} is not supported: {_MERGE}")

    def _check_start(self, value: Any) -> None:
        start = value.lower() if isinstance(value, str) else value
        if not (isinstance(start, str | bool | None) and start in _STARTS):
            raise MergeError(
                f"{self.path}: init_lora_weights is {value!r}, with which peft changes the base's weights before "
                "training, or may: the adapter is not for the base as it is. Save it with peft's save_pretrained(…, "
                f"path_initial_model_for_weight_conversion=…), or {_MERGE}"
            )

    def check_digest(self, noted: str | None) -> None:
        """Raises MergeError where the weights were written with another configuration, as their header notes."""
        if noted not in (None, config_digest(self)):
            raise MergeError(
                f"{self.path} is not as it was written with the adapter's weights, which note its digest: copy it again"
            )

    def targets(self, module: str) -> bool | None:
        """Whether peft adapts a linear layer, convolution or embedding of this name; None where that cannot be known.

        Raises:
            MergeError: an expression that is none.
        """
        wanted = self.get("target_modules")
        if wanted is None or wanted == ALL_LINEAR:
            return None
        try:
            if self._excludes(module):
                return False
            if isinstance(wanted, str):
                return bool(re.fullmatch(wanted, module))
            return module in wanted or (_ends(module, wanted) and self._of_layers(module))
        except re.error as error:
            raise MergeError(f"{self.path}: the names of modules are no expressions: {error}") from error

    def _excludes(self, module: str) -> bool:
        excluded = self.get("exclude_modules") or []
        if isinstance(excluded, str):
            if re.fullmatch(excluded, module):
                return True
        elif module in excluded or _ends(module, excluded):
            return True
        return any(re.match(rf"(^|.*\.){name}($|\..*)", module) for name in self.get("modules_to_save") or ())

    def _of_layers(self, module: str) -> bool:
        layers, patterns = self.get("layers_to_transform"), self.get("layers_pattern") or []
        if layers is None or layers == []:
            return True
        # The first number in the name is the layer's; experts have numbers too.
        tried = [patterns] if isinstance(patterns, str) else patterns or [r"[^.]*"]
        head = r"(?:^|.*?\.)" if patterns else r".*?\."
        found = next(filter(None, (re.match(rf"{head}{one}\.(?P<layer>\d+)\.", module) for one in tried)), None)
        return found is not None and int(found["layer"]) in (layers if isinstance(layers, list) else [layers])

    def saved_module(self, weight: str) -> str | None:
        """The module of `modules_to_save` that this weight is of."""
        entries = tuple(self.get("modules_to_save") or ())
        return next((module for module in _ancestors(weight) if entries and module.endswith(entries)), None)

    def entries_of_no(self, modules: set[str]) -> list[str]:
        """Entries of `modules_to_save` that none of these modules is named by; peft's own only if there is no other."""
        entries: list[str] = self.get("modules_to_save") or []
        missing = [entry for entry in entries if not any(module.endswith(entry) for module in modules)]
        own = _HEADS.get(str(self.get("task_type")), ()) if len(missing) < len(entries) else ()
        return [entry for entry in missing if entry not in own]


def _ends(module: str, names: list[str]) -> bool:
    return any(module.endswith(f".{name}") for name in names)


def _ancestors(weight: str) -> Iterator[str]:
    parts = weight.split(".")
    return (".".join(parts[:i]) for i in range(1, len(parts)))
