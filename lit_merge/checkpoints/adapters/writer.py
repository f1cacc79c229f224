"""LoRA adapters as PEFT writes them: `adapter_config.json` and `adapter_model.safetensors`."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from lit_merge.checkpoints.adapters.config import CONFIG_DIGEST, config_digest
from lit_merge.checkpoints.adapters.lora import PREFIX
from lit_merge.checkpoints.folders import ADAPTER_CONFIG, ADAPTERS
from lit_merge.checkpoints.safetensors_writer import MARK, write_safetensors

FORM = "lora"
"""What the header of an adapter's file says that it holds."""


@dataclass
class Adapter:
    """What one adapter adds to its base, W + B·A in every linear layer, or puts in the place of what the base has.

    Attributes:
        low_rank: module → B (out, r) and A (r, in).
        biases: module → what is added to its bias, (out,), of modules in `low_rank`.
        whole: module → names and values of all its weights.
        transposed: whether the linear layers store their weights as (in, out).
    """

    low_rank: dict[str, tuple[Float[Tensor, "o r"], Float[Tensor, "r i"]]] = field(default_factory=dict)
    biases: dict[str, Tensor] = field(default_factory=dict)
    whole: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    transposed: bool = False

    @property
    def ranks(self) -> dict[str, int]:
        return {module: len(a) for module, (_, a) in self.low_rank.items()}

    def config(self, base: str, task_type: str | None) -> dict[str, object]:
        """The entries of `adapter_config.json`. α is the rank everywhere, so that B·A is added as it is."""
        ranks = self.ranks
        rank = Counter(ranks.values()).most_common(1)[0][0]
        others = {module: r for module, r in sorted(ranks.items()) if r != rank}
        return {
            "peft_type": "LORA",
            "task_type": task_type,
            "base_model_name_or_path": base,
            "r": rank,
            "lora_alpha": rank,
            "rank_pattern": others,
            "alpha_pattern": others,
            "target_modules": sorted(ranks),
            "modules_to_save": sorted(self.whole) or None,
            "lora_bias": bool(self.biases),
            "bias": "none",
            "lora_dropout": 0.0,
            "fan_in_fan_out": self.transposed,
            "init_lora_weights": True,
            "inference_mode": True,
            "use_dora": False,
            "use_rslora": False,
        }

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Everything by the names that PEFT gives it."""
        for module, (b, a) in self.low_rank.items():
            yield f"{PREFIX}{module}.lora_A.weight", a
            yield f"{PREFIX}{module}.lora_B.weight", b
            if self.biases:
                # All layers have one or none has.
                yield f"{PREFIX}{module}.lora_B.bias", self.biases.get(module, torch.zeros_like(b[:, 0]))
        for weights in self.whole.values():
            yield from ((PREFIX + name, value) for name, value in weights.items())


def write_adapter(folder: Path, adapter: Adapter, base: str, task_type: str | None) -> None:
    """Writes both files into a folder that is part of an output.

    Args:
        folder: is made.
        adapter: with at least one low-rank layer, which PEFT asks for.
        base: name or path of the model that it is for.
        task_type: PEFT's, as `CAUSAL_LM`; None where the model is of none.
    """
    folder.mkdir(parents=True)
    tensors: Mapping[str, Tensor] = {name: value.contiguous() for name, value in adapter.tensors()}
    config = adapter.config(base, task_type)
    write_safetensors(folder / ADAPTERS[0], tensors, {"format": "pt", MARK: FORM, CONFIG_DIGEST: config_digest(config)})
    text = json.dumps(config, indent=2, sort_keys=True)
    (folder / ADAPTER_CONFIG).write_text(text + "\n", encoding="utf-8")
