"""Sizes of image towers by their shapes, against open_clip's own models."""

import open_clip
import pytest
import torch

from lit_merge.networks.clip_shapes import has_sizes, open_clip_names, tower_sizes


def tower(name: str) -> tuple[dict[str, tuple[int, ...]], dict[str, object]]:
    from open_clip.model import _build_vision_tower

    options = open_clip.get_model_config(name)
    assert options is not None
    with torch.device("meta"):
        made = _build_vision_tower(options["embed_dim"], options["vision_cfg"], False)
    return {key: tuple(value.shape) for key, value in made.state_dict().items()}, options


@pytest.mark.parametrize("name", ["ViT-B-32", "ViT-B-16", "ViT-L-14", "ViT-L-14-336", "ViT-bigG-14"])
def test_names_of_open_clip(name: str) -> None:
    shapes, options = tower(name)
    sizes = tower_sizes(shapes)
    assert sizes is not None
    assert sizes.image_size == options["vision_cfg"]["image_size"]  # type: ignore[index]
    assert (sizes.width, sizes.layers) == (options["vision_cfg"]["width"], options["vision_cfg"]["layers"])  # type: ignore[index]
    assert has_sizes(options, sizes)
    found = open_clip_names(sizes)
    assert found[0] == name
    others = {"ViT-B-32", "ViT-B-16", "ViT-L-14", "ViT-L-14-336", "ViT-bigG-14"} - {name}
    assert not others & set(found)
    assert (f"{name}-quickgelu" in found) == (f"{name}-quickgelu" in open_clip.list_models())


def test_other_models_have_none() -> None:
    shapes, _ = tower("RN50")
    assert tower_sizes(shapes) is None
    assert tower_sizes({"weight": (3, 3)}) is None
