"""Models of transformers, built from a local configuration and without weights, which networks are given later."""

import copy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lit_merge.checkpoints.locations import resolve
from lit_merge.errors import MergeError, first_line


def read_configuration(folder: str) -> Any:
    """The configuration of a model in a folder (or its config.json itself).

    Raises:
        MergeError: transformers is missing; no such folder or no such configuration.
    """
    transformers = import_transformers()
    path = resolve(folder)
    path = path.parent if path.name == "config.json" else path
    if not (path / "config.json").is_file():
        there = "no such folder" if not path.is_dir() else "no config.json in it"
        raise MergeError(f"{path}: {there}: expected the folder of a transformers model")
    try:
        return transformers.AutoConfig.from_pretrained(str(path), local_files_only=True, trust_remote_code=False)
    except Exception as error:  # transformers fails in as many ways as configurations are broken
        raise MergeError(f"{path / 'config.json'} cannot be read: {first_line(error)}") from error


def build_classifier(config: Any, classes: int, path: str | Path) -> nn.Module:
    """The architecture's sequence classifier, in evaluation mode. Its buffers are real, its weights are never filled.

    Raises:
        MergeError: an architecture without a sequence classifier.
    """
    transformers = import_transformers()
    from transformers.initialization import no_init_weights

    config = copy.deepcopy(config)
    config.num_labels = classes
    # Experts may be stored in half precision; the forward is in that of the weights handed in.
    config.dtype = torch.float32
    # Blocks that are computed again would find what they have put there.
    config.use_cache = False
    try:
        with no_init_weights():
            model: nn.Module = transformers.AutoModelForSequenceClassification.from_config(
                config, trust_remote_code=False
            )
            # What an encoder and a decoder share is one weight, under one name in files.
            model.tie_weights()  # type: ignore[operator]
    except Exception as error:
        raise MergeError(
            f"{path}: transformers builds no text classifier of model type {config.model_type!r}: {first_line(error)}"
        ) from error
    if getattr(model, getattr(model, "base_model_prefix", ""), None) is None:
        raise MergeError(f"{path}: {type(model).__name__} keeps its encoder under no name that transformers tells")
    return model.eval()


def checkpoint_blocks(encoder: Any) -> bool:
    """Makes every block of a model keep its inputs only, and compute the rest again in the backward.

    Returns:
        Whether the model has blocks that can.
    """
    from transformers.modeling_layers import GradientCheckpointingLayer

    blocks = [module for module in encoder.modules() if isinstance(module, GradientCheckpointingLayer)]
    if blocks:
        # By its newer name first: warnings come with the older one.
        names = ("activation_checkpointing_enable", "gradient_checkpointing_enable")
        getattr(encoder, next(name for name in names if hasattr(encoder, name)))({"use_reentrant": False})
    for block in blocks:
        # The block alone, which looks whether it is in training; what is inside stays as it is. Some drop values out
        # themselves, rather than by a module inside.
        block.training = True
        for name, value in vars(block).items():
            if "drop" in name and isinstance(value, float):
                setattr(block, name, 0.0)
    return bool(blocks)


class Given(nn.Module):
    """Stands for an encoder whose outputs are known already."""

    outputs: Any = None

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.outputs


def split_outputs(outputs: Any, sizes: list[int]) -> list[Any]:
    """Outputs of a model for parts of its batch; what is no tensor is left out."""
    parts = {name: value.split(sizes) for name, value in outputs.items() if isinstance(value, Tensor)}
    return [type(outputs)(**{name: value[i] for name, value in parts.items()}) for i in range(len(sizes))]


def import_transformers() -> Any:
    """transformers, which says nothing but errors from now on.

    Raises:
        MergeError: it is not installed.
    """
    try:
        import transformers
    except ModuleNotFoundError as error:
        raise MergeError("Hugging Face models need transformers: pip install 'lit_merge[hf]'") from error
    transformers.logging.set_verbosity_error()
    return transformers
