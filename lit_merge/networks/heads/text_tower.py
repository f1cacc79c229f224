"""The text tower of an open_clip model, which makes features of the names of classes."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from lit_merge.checkpoints import Checkpoint, canonical, is_image, open_checkpoint
from lit_merge.errors import MergeError


class TextTower(nn.Module):
    """The text tower of an open_clip model with its tokenizer, which open_clip ships.

    Args:
        options: the model's configuration.
        path: file with its weights; those of the image tower are left out.
        label: what messages call the configuration.

    Raises:
        MergeError: no text tower, one of another library, or weights that are not its own.
    """

    def __init__(self, options: Mapping[str, Any], path: Path, label: str) -> None:
        from open_clip.model import _build_text_tower
        from open_clip.tokenizer import SimpleTokenizer

        super().__init__()
        text: dict[str, Any] = options.get("text_cfg") or {}
        foreign = text.get("hf_model_name") or text.get("hf_tokenizer_name") or options.get("multimodal_cfg")
        if not text or foreign:
            raise MergeError(
                f"{label} has no text tower that open_clip builds by itself, so it makes no heads from class names: "
                "give a file of heads"
            )
        self.tokenizer = SimpleTokenizer(
            context_length=text.get("context_length", 77), **text.get("tokenizer_kwargs") or {}
        )
        try:
            self.text = _build_text_tower(options["embed_dim"], dict(text), options.get("quick_gelu", False))
        except (KeyError, TypeError) as error:
            raise MergeError(f"{label} is no open_clip configuration: {error!r}") from error
        if self.text.vocab_size < self.tokenizer.vocab_size:
            raise MergeError(f"{label}: vocab_size is {self.text.vocab_size}, CLIP's tokens are 49408")
        weights = read_text_weights(path)
        self.logit_scale = math.exp(weights["logit_scale"].item()) if "logit_scale" in weights else 100.0
        own = {name.removeprefix("text."): value for name, value in weights.items() if name.startswith("text.")}
        check_weights(own, self.text.state_dict(), path, label)
        self.text.load_state_dict(own)
        self.eval()

    def encode_text(self, tokens: Tensor, normalize: bool = False) -> Float[Tensor, "B d"]:
        """Features of tokens, under the name that open_clip's functions call."""
        features = self.text(tokens)
        return F.normalize(features, dim=-1) if normalize else features


def read_text_weights(path: Path) -> dict[str, Tensor]:
    """Weights of a model but for its image tower; those of the text tower are called `text.…`.

    Raises:
        MergeError: no such file, or no file of weights.
    """
    from open_clip.model import convert_to_custom_text_state_dict

    file = canonical(open_checkpoint(path))
    found = {name: file.read(name) for name in file.shapes if not _is_image(name, file)}
    return dict(convert_to_custom_text_state_dict(found))


def _is_image(name: str, file: Checkpoint) -> bool:
    # A file of a text tower alone is no whole CLIP, and keeps its names.
    return name.startswith("visual.") if file.naming.identity else is_image(name)


def check_weights(found: Mapping[str, Tensor], own: Mapping[str, Tensor], path: Path, label: str) -> None:
    """Raises MergeError where names or shapes are not those of the text tower."""
    for name in sorted(own.keys() ^ found.keys()):
        lacks = f"{path} has no weight {name}" if name in own else f"{label} has no weight {name}, which {path} has"
        raise MergeError(f"{lacks} of the text tower: take the weights of this configuration", weight=name)
    for name, value in own.items():
        if value.shape != found[name].shape:
            raise MergeError(
                f"{name} of the text tower has shape {list(value.shape)} in {label} and {list(found[name].shape)} in "
                f"{path}",
                weight=name,
            )
