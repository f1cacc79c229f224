"""How the images of a CLIP are prepared, in open_clip's terms: `{mean, std, resize_mode, interpolation}`."""

import warnings
from collections import Counter
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, get_args, get_type_hints

from lit_merge.checkpoints.json_text import entries_of, read_object
from lit_merge.data.images.geometry import Geometry
from lit_merge.errors import MergeError, MergeWarning

PROCESSORS = ("processor_config.json", "preprocessor_config.json")
TERMS = ("mean", "std", "resize_mode", "interpolation")
# Pillow's numbers.
INTERPOLATIONS = {2: "bilinear", 3: "bicubic"}


def of_colours(value: Any) -> Any:
    """A number for every colour, of one for all."""
    return [value] * 3 if isinstance(value, int | float) else value


def geometry_of(preprocessing: Mapping[str, Any], label: str) -> Geometry:
    """How pictures become squares; as CLIP's where nothing is said.

    Raises:
        MergeError: a way that open_clip does not know; `label` says whose.
    """
    found = {name: value for name in TERMS[2:] if (value := preprocessing.get(name)) is not None}
    for name, value in found.items():
        known = get_args(get_type_hints(Geometry)[name])
        if value not in known:
            raise MergeError(f"{label}: {name} is {str(value)[:80]}, expected one of {', '.join(known)}")
    return Geometry(**found)


def of_weights(model: str, tag: str = "") -> dict[str, Any]:
    """How a named model of open_clip takes images: as the pretrained weights of this tag do; without a tag, as most of
    its weights do, and a warning names the others.

    Raises:
        MergeError: no such weights.
    """
    from open_clip import get_pretrained_cfg, list_pretrained_tags_by_model

    said = {one: _terms(get_pretrained_cfg(model, one)) for one in list_pretrained_tags_by_model(model)}
    if tag:
        if tag not in said:
            near = get_close_matches(tag, said, n=1, cutoff=0)
            one = f"the nearest is {near[0]}" if near else "it has none"
            raise MergeError(f"{model}:{tag}: open_clip knows no such weights of {model}; {one}")
        return said[tag]
    # The whole of a way, for dictionaries cannot be counted.
    counted = Counter(repr(way) for way in said.values())
    if not counted:
        return {}
    usual = next(way for way in said.values() if repr(way) == counted.most_common(1)[0][0])
    if others := [one for one, way in said.items() if way != usual]:
        warnings.warn(
            f"{model}: images are prepared as for most of its weights, but {', '.join(others)} take them in another "
            f"way: where the experts come from these, write {model}:{others[0]}",
            MergeWarning,
            stacklevel=2,
        )
    return usual


def _terms(said: Mapping[str, Any]) -> dict[str, Any]:
    return {name: said[name] for name in TERMS if said.get(name) is not None}


def says_preprocessing(config: Path) -> bool:
    """Whether a configuration, or a file next to Hugging Face's, says how images are prepared."""
    beside = config.name == "config.json" and any((config.parent / name).exists() for name in PROCESSORS)
    return beside or "preprocess_cfg" in entries_of(config)


def of_folder(folder: Path) -> dict[str, Any]:
    """What `processor_config.json` or `preprocessor_config.json` in a folder of Hugging Face's says; empty without one.

    A warning names what is asked for and not done: images that are not resized, or to another side than they are then
    cropped to.

    Raises:
        MergeError: no JSON, or a factor for pixels that is no number above 0.
    """
    found: Any = None
    if (path := folder / PROCESSORS[0]).exists():
        found = read_object(path, "configuration").get("image_processor")
    if not isinstance(found, dict):
        path = folder / PROCESSORS[1]
        found = read_object(path, "configuration") if path.exists() else {}
    return _translated(found, path) if found else {}


def _translated(said: dict[str, Any], path: Path) -> dict[str, Any]:
    """Options of transformers' CLIPImageProcessor; what a file leaves out is as there."""
    found: dict[str, Any] = {}
    # Ours are of pixels from 0 to 1.
    factor = said.get("rescale_factor", 1 / 255) if said.get("do_rescale", True) else 1
    if not isinstance(factor, int | float) or not factor > 0:
        raise MergeError(f"{path}: rescale_factor is {str(factor)[:80]}, expected a number above 0")
    for name, theirs, none in (("mean", "image_mean", 0.0), ("std", "image_std", 1.0)):
        value = said.get(theirs) if said.get("do_normalize", True) else [none] * 3
        if value is not None:
            found[name] = _divided(value, 255 * factor)
    size = said.get("size", 224)
    crop = said.get("crop_size", size) if said.get("do_center_crop", True) else None
    if squash := isinstance(size, dict) and "height" in size:
        found["resize_mode"] = "squash"
    found["interpolation"] = INTERPOLATIONS.get(said.get("resample", 3), "bicubic")
    cropped = _side(size) if crop is None and squash else _side(crop)
    odd = {
        "do_resize": not said.get("do_resize", True),
        "resample": said.get("resample", 3) not in INTERPOLATIONS,
        "size and crop_size": _side(size) is None or _side(size) != cropped,
    }
    if any(odd.values()):
        names = ", ".join(name for name, one in odd.items() if one)
        warnings.warn(
            f"{path}: {names}: not as in the file: images are resized to the side that the network takes, "
            f"{found['interpolation']}",
            MergeWarning,
            stacklevel=2,
        )
    return found


def _divided(value: Any, largest: float) -> Any:
    """Numbers of pixels from 0 to `largest`, for those from 0 to 1; what is no number is refused later."""
    if abs(largest - 1) < 1e-6:
        return value
    numbers = value if isinstance(value, list) else [value]
    return [one / largest if isinstance(one, int | float) else one for one in numbers]


def _side(size: Any) -> int | None:
    """Of a square, or of an image's shorter side; None for another shape."""
    if isinstance(size, dict):
        sides = {size[name] for name in ("shortest_edge", "height", "width") if name in size}
        return sides.pop() if len(sides) == 1 else None
    return size if isinstance(size, int) else None
