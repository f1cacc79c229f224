"""Which file holds the weights of a model's folder, on disk or on the Hugging Face hub."""

from collections.abc import Collection

# In the order in which transformers looks for them; then open_clip's.
WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.bin",
)
ADAPTER_CONFIG = "adapter_config.json"
ADAPTERS = ("adapter_model.safetensors", "adapter_model.bin")
SUFFIXES = (".safetensors", ".pt", ".pth", ".ckpt", ".bin")
"""Of files of weights."""


def expected_weights(names: Collection[str]) -> tuple[str, ...]:
    """What the weights of a folder with these files may be called, the first that is there counts."""
    return ADAPTERS if ADAPTER_CONFIG in names else WEIGHTS


def choose_weights(names: Collection[str]) -> str | None:
    """The file of weights, or the index of them, among those of a folder; None where it holds no model."""
    return next((name for name in expected_weights(names) if name in names), None)
