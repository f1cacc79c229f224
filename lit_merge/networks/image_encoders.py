"""The image towers of CLIP as networks: open_clip's and transformers'."""

import warnings
from abc import ABC
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn, tensor

from lit_merge.checkpoints import Checkpoint
from lit_merge.data.images.geometry import Geometry
from lit_merge.errors import MergeError, MergeWarning
from lit_merge.networks.clip_configurations import (
    LARGEST,
    activation_of,
    check_sizes,
    hugging_face_options,
    open_clip_options,
    vision_options,
)
from lit_merge.networks.heads.cosine import ReleasedHeads
from lit_merge.networks.heads.linear import load_heads
from lit_merge.networks.heads.zero_shot import ZeroShotHeads
from lit_merge.networks.network import Network, without_weights
from lit_merge.networks.preprocessing import geometry_of, of_colours
from lit_merge.networks.transformers_models import checkpoint_blocks, import_transformers


def _check_pixels(name: str, value: Any, label: str) -> None:
    """Raises MergeError where this is no size of images above 0, or no mean and no deviation of three colours."""
    numbers = [value] if isinstance(value, int | float) else value
    if name != "image_size" and value is None:
        return
    listed = isinstance(numbers, list | tuple) and len(numbers) == (1 if name == "image_size" else 3)
    wanted = "a number of pixels" if name == "image_size" else "three numbers"
    least = -LARGEST if name == "mean" else 0
    if not listed or not all(isinstance(one, int | float) and least < one <= LARGEST for one in numbers):
        raise MergeError(f"{label}: {name} is {str(value)[:80]}, expected {wanted}{'' if least else ' above 0'}")


class SquareImages(Network, ABC):
    """A network of square images, uint8, (B, H, W) or (B, 3, H, W).

    Attributes:
        mean, std: of pixels from 0 to 1, (3, 1, 1).
        geometry: how pictures become squares.
        activation: between the layers, in the words of transformers.
    """

    mean: Tensor
    std: Tensor
    geometry: Geometry
    activation: str

    def take(
        self,
        image_size: int | Sequence[int],
        preprocessing: Mapping[str, Any],
        heads: str | ZeroShotHeads | ReleasedHeads,
        config: str,
    ) -> None:
        """The end of building: size of images, how they are prepared (as CLIP's where nothing is said), and heads."""
        from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD

        size = image_size if isinstance(image_size, int) else [*image_size][:1]
        mean, std = (of_colours(preprocessing.get(name)) for name in ("mean", "std"))
        for name, value in (("image_size", size), ("mean", mean), ("std", std)):
            _check_pixels(name, value, config)
        self.geometry = geometry_of(preprocessing, config)
        self.heads = load_heads(heads) if isinstance(heads, str) else heads.build(config)
        self.image_size = int(image_size if isinstance(image_size, int) else image_size[0])
        self.register_buffer("mean", tensor(mean or OPENAI_DATASET_MEAN)[:, None, None], False)
        self.register_buffer("std", tensor(std or OPENAI_DATASET_STD)[:, None, None], False)
        self.freeze()

    def check_files(self, experts: Mapping[str, Checkpoint]) -> None:
        said = {task: one for task, file in experts.items() if (one := activation_of(file))}
        if others := [task for task, one in said.items() if one != self.activation]:
            theirs = said[others[0]]
            warnings.warn(
                f"the experts {', '.join(others)} were trained with {theirs}, and the network computes "
                f"{self.activation}, which lowers accuracies: take a configuration with {theirs}, as open_clip's "
                f"ViT-B-32{'-quickgelu' * (theirs == 'quick_gelu')} is",
                MergeWarning,
                stacklevel=2,
            )

    def example_inputs(self) -> dict[str, Tensor]:
        return {"images": torch.zeros(2, 3, self.image_size, self.image_size, dtype=torch.uint8)}

    def prepare(self, inputs: UInt8[Tensor, "B ..."]) -> Float[Tensor, "B 3 H W"]:
        """Normalised images of three channels.

        Raises:
            MergeError: images of another size, or that are no whole numbers.
        """
        if inputs.is_floating_point():
            kind = str(inputs.dtype).removeprefix("torch.")
            raise MergeError(f"images of {kind}: expected uint8, 0 to 255, which the network normalises itself")
        if inputs.shape[-2:] != (self.image_size, self.image_size):
            raise MergeError(
                f"images of {' × '.join(map(str, inputs.shape[-2:]))} for a network that takes squares of "
                f"{self.image_size}: leave --data.image_size out, or set it to {self.image_size}"
            )
        images = inputs if inputs.ndim == 4 else inputs[:, None].expand(-1, 3, -1, -1)
        return (images.to(self.mean.dtype) / 255 - self.mean) / self.std


class OpenClipImageEncoder(SquareImages):
    """The image tower of an open_clip model with frozen heads on it. Images are uint8, (B, H, W) or (B, 3, H, W).

    Images are prepared as the configuration says; those of a named model as its pretrained weights were trained.

    Args:
        config: name of an open_clip model (`ViT-B-32`, or with the weights that the experts come from
            `ViT-L-14:laion2b_s32b_b82k`), or path of its JSON configuration, or of Hugging Face's.
        heads: path of a file {task: (classes, width)}, or {task.weight, task.bias} for linear ones, or of a folder of
            `head_{task}.pt`; or how to make heads from the names of the classes, or which released files they are.

    Raises:
        MergeError: an unknown name, a file that is missing or no such configuration, heads that cannot be read or made.
    """

    def __init__(self, config: str, heads: str | ZeroShotHeads | ReleasedHeads) -> None:
        super().__init__()
        options = open_clip_options(config)
        from open_clip.model import _build_vision_tower

        check_sizes(options, config)
        try:
            build = (options["embed_dim"], options["vision_cfg"], options.get("quick_gelu", False))
            self.encoder = without_weights(lambda: _build_vision_tower(*build))
            preprocessing = {**options.get("preprocess_cfg", {})}
            self.activation = "quick_gelu" if options.get("quick_gelu") else "gelu"
            size = options["vision_cfg"].get("image_size", 224)
        except Exception as error:  # open_clip fails in as many ways as configurations are broken
            raise MergeError(f"{config} is no open_clip configuration: {error!r}") from error
        self.take(size, preprocessing, heads, config)

    def encode(self, inputs: UInt8[Tensor, "B ..."]) -> Float[Tensor, "B d"]:
        # Towers of CoCa answer the tokens, too.
        found: Any = super().encode(inputs)
        return found[0] if isinstance(found, tuple) else found

    def checkpoint_gradients(self) -> None:
        cast(Any, self.encoder).set_grad_checkpointing(True)


class HuggingFaceImageEncoder(SquareImages):
    """transformers' CLIPVisionModelWithProjection with frozen heads on it. Images are uint8, (B, H, W) or (B, 3, H, W).

    Images are prepared as `processor_config.json` or `preprocessor_config.json` in the folder of the configuration
    says, or as CLIP's where there is no such file.

    Args:
        config: a folder with `config.json`, that file itself, or the name of a model (`openai/clip-vit-base-patch32`)
            that Hugging Face's cache has.
        heads: path of a safetensors file {task: (classes, width)}, or how to make heads from the names of the classes.

    Raises:
        MergeError: transformers is not installed; no such configuration, or not CLIP's; heads that cannot be read or
            made.
    """

    def __init__(self, config: str, heads: str | ZeroShotHeads | ReleasedHeads) -> None:
        super().__init__()
        options, preprocessing = hugging_face_options(config)
        vision = vision_options(options, config)
        check_sizes(vision, config)
        self.encoder, self.activation = _vision_model(vision, config), str(vision["hidden_act"])
        self.take(vision["image_size"], preprocessing, heads, config)

    def encode(self, inputs: UInt8[Tensor, "B ..."]) -> Float[Tensor, "B d"]:
        found: Tensor = self.encoder(pixel_values=self.prepared(inputs)).image_embeds
        return found

    def checkpoint_gradients(self) -> None:
        checkpoint_blocks(self.encoder)


def _vision_model(vision: dict[str, Any], label: str) -> nn.Module:
    """The model, without memory for weights."""
    transformers = import_transformers()
    try:
        with torch.device("meta"):
            made: nn.Module = transformers.CLIPVisionModelWithProjection(transformers.CLIPVisionConfig(**vision))
    except Exception as error:  # transformers fails in as many ways as configurations are broken
        raise MergeError(f"{label} is no configuration of a CLIP: {error}") from error
    # Counted rather than learnt: no file has them.
    embeddings: Any = made.get_submodule("vision_model.embeddings")
    embeddings.position_ids = torch.arange(embeddings.num_positions)[None]
    return made
