"""Configurations of CLIP models: open_clip's by name or file, Hugging Face's by file, and theirs as open_clip's."""

from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from lit_merge.checkpoints import Checkpoint
from lit_merge.checkpoints.checkpoint import ACTIVATION
from lit_merge.checkpoints.json_text import entries_of, read_object
from lit_merge.checkpoints.locations import resolve
from lit_merge.errors import MergeError
from lit_merge.networks.preprocessing import of_folder, of_weights

# Of transformers' configurations: what a file does not say.
DEFAULTS = {
    "vision": {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
    | {"image_size": 224, "patch_size": 32, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5, "num_channels": 3},
    "text": {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 12, "num_attention_heads": 8}
    | {"max_position_embeddings": 77, "vocab_size": 49408, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5},
}


# Of a model's sizes, and of its blocks: none comes near them, and the memory for them would not be there.
LARGEST, MOST_BLOCKS = 1 << 24, 1000


def check_sizes(options: Mapping[str, Any], label: str) -> None:
    """Raises MergeError where a number in a configuration is none that a model can have."""
    for name, value in options.items():
        if isinstance(value, dict):
            check_sizes(value, label)
        most = MOST_BLOCKS if name in ("layers", "num_hidden_layers") else LARGEST
        for one in value if isinstance(value, list) else [value]:
            if isinstance(one, int | float) and not abs(one) <= most:
                raise MergeError(f"{label}: {name} is {str(value)[:80]}, expected at most {most:,}")


def open_clip_options(config: str) -> dict[str, Any]:
    """open_clip's options `{embed_dim, vision_cfg, text_cfg, quick_gelu, preprocess_cfg}` of a model.

    Args:
        config: name of an open_clip model, or NAME:TAG of its pretrained weights; or a file, open_clip's or Hugging
            Face's, or a folder with one.

    Raises:
        MergeError: no such model or weights, no JSON, or a configuration that open_clip cannot build.
    """
    path = resolve(config)
    if path.is_dir():
        path = path / "config.json"
    if path.suffix == ".json" or path.exists():
        found = read_object(path, "configuration of a CLIP")
        if is_hugging_face(found):
            return _translated(found, of_folder(path.parent), str(path))
        # open_clip's hub files nest the model's part.
        model = found.get("model_cfg", found)
        if not isinstance(model, dict):
            raise MergeError(f"{path} is no configuration of a CLIP: its model_cfg is {str(model)[:80]}")
        return model | {k: v for k, v in found.items() if k == "preprocess_cfg"}
    from open_clip import get_model_config, get_pretrained_cfg, list_models

    name, _, tag = config.partition(":")
    known = get_model_config(name)
    if known is None:
        near = get_close_matches(name, list_models(), n=1, cutoff=0)
        raise MergeError(f"no open_clip model {name!r}; the nearest is {near[0]}; or give the path of a .json file")
    prepared = {"preprocess_cfg": of_weights(name, tag)}
    # OpenAI's weights are of another activation than the model of the plain name.
    quick = bool(tag) and get_pretrained_cfg(name, tag).get("quick_gelu", False)
    return known | prepared | ({"quick_gelu": True} if quick else {})


def hugging_face_options(config: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Hugging Face's options of a model, and how its folder says that images are prepared, see `of_folder`.

    Raises:
        MergeError: no such file or folder, nor such a model in Hugging Face's cache; no JSON.
    """
    path = resolve(config)
    if path.is_dir():
        path = path / "config.json"
    elif path.suffix != ".json":
        path = _cached(config)
    return read_object(path, "configuration of a CLIP"), of_folder(path.parent)


def vision_options(options: dict[str, Any], label: str) -> dict[str, Any]:
    """Options of the image tower, every one that weights or a forward depend on among them.

    Raises:
        MergeError: not a configuration of CLIP; `label` says which.
    """
    if not is_hugging_face(options):
        raise MergeError(
            f"{label} is a configuration of {options.get('model_type', 'another kind')}: expected Hugging Face's of a "
            "CLIP, with model_type clip or clip_vision_model"
        )
    vision = DEFAULTS["vision"] | _part(options, "vision_config", label) if "vision_config" in options else options
    # The whole model has one width for both towers.
    width = options.get("projection_dim", vision.get("projection_dim", 512))
    return DEFAULTS["vision"] | vision | {"projection_dim": width}


def activation_of(file: Checkpoint) -> str | None:
    """The activation of the image tower that a file is of, where it is a whole module or next to Hugging Face's
    configuration of a CLIP."""
    beside = [about for path in file.files if is_hugging_face(about := entries_of(path.parent / "config.json"))]
    if ACTIVATION in file.metadata or not beside:
        return file.metadata.get(ACTIVATION)
    return str(vision_options(beside[0], file.label)["hidden_act"])


def is_hugging_face(options: dict[str, Any]) -> bool:
    """Whether these are options of Hugging Face's CLIP, and not of open_clip's."""
    return options.get("model_type") in ("clip", "clip_vision_model")


def _cached(name: str) -> Path:
    """The config.json of a model in Hugging Face's cache. Nothing is downloaded."""
    try:
        from huggingface_hub import try_to_load_from_cache
        from huggingface_hub.errors import HFValidationError
    except ModuleNotFoundError as error:
        raise MergeError(f"{name}: no such file or folder") from error
    try:
        found = try_to_load_from_cache(name, "config.json")
    except HFValidationError:
        found = None
    if not isinstance(found, str):
        raise MergeError(
            f"{name}: no such file or folder, nor a model in Hugging Face's cache: give a folder with config.json, or "
            f"run `hf download {name} config.json preprocessor_config.json` first"
        )
    return Path(found)


def _translated(options: dict[str, Any], preprocessing: dict[str, Any], label: str) -> dict[str, Any]:
    """Hugging Face's options of a CLIP as open_clip's, to which those of `preprocessing` belong already.

    Raises:
        MergeError: not a configuration of CLIP, or one that open_clip cannot build.
    """
    vision = vision_options(options, label)
    text = DEFAULTS["text"] | _part(options, "text_config", label) if "text_config" in options else None
    activations = {str(part["hidden_act"]) for part in (vision, text) if part}
    if len(activations) > 1 or not activations <= {"gelu", "quick_gelu"}:
        raise MergeError(f"{label}: open_clip has no CLIP with hidden_act {' and '.join(sorted(activations))}")
    found = {
        "embed_dim": vision["projection_dim"],
        "quick_gelu": activations == {"quick_gelu"},
        "vision_cfg": _tower(vision)
        | {"image_size": vision["image_size"], "patch_size": vision["patch_size"]}
        | {"head_width": vision["hidden_size"] // vision["num_attention_heads"]},
        "preprocess_cfg": preprocessing,
    }
    if text:
        sizes = {"context_length": text["max_position_embeddings"], "vocab_size": text["vocab_size"]}
        found["text_cfg"] = _tower(text) | sizes | {"heads": text["num_attention_heads"]}
    return found


# Entries of open_clip's towers that Hugging Face's CLIP has too, or that change no weight and no output.
_KNOWN = {"layers", "width", "image_size", "patch_size", "head_width", "mlp_ratio", "heads", "context_length"} | {
    *("vocab_size", "norm_kwargs", "patch_dropout", "pool_type")
}


def as_hugging_face(options: dict[str, Any], whole: bool, label: str) -> dict[str, Any]:
    """Hugging Face's configuration of a CLIP with open_clip's options.

    Args:
        options: see `open_clip_options`.
        whole: with the text tower; else of the image tower with its projection.
        label: says in messages which configuration it is.

    Raises:
        MergeError: towers of another kind than CLIP's transformers, of which Hugging Face's CLIP has no other.
    """
    act = {"hidden_act": "quick_gelu" if options.get("quick_gelu") else "gelu"}
    image, text = options["vision_cfg"], options.get("text_cfg", {})
    for part in (image, text if whole else {}):
        odd = sorted(name for name in part if name not in _KNOWN and part[name])
        if odd or part.get("pool_type", "tok") not in ("tok", "argmax"):
            what = ", ".join(odd) or f"pool_type {part['pool_type']}"
            raise MergeError(f"{label}: Hugging Face's CLIP has no {what}: take --format open_clip")
    size = {"projection_dim": options["embed_dim"]}
    vision = _hugging_face_tower(image, 768) | act | size
    vision |= {"image_size": image.get("image_size", 224), "patch_size": image.get("patch_size", 16)}
    vision |= {"num_attention_heads": vision["hidden_size"] // image.get("head_width", 64)}
    if not whole:
        return {"model_type": "clip_vision_model", "architectures": ["CLIPVisionModelWithProjection"]} | vision
    words = _hugging_face_tower(text, 512) | act | size | {"num_attention_heads": text.get("heads", 8)}
    words |= {"max_position_embeddings": text.get("context_length", 77), "vocab_size": text.get("vocab_size", 49408)}
    # Where the end of a text is its highest token, as in open_clip's.
    words |= {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2}
    parts = {"vision_config": vision, "text_config": words}
    return {"model_type": "clip", "architectures": ["CLIPModel"], "logit_scale_init_value": 2.6592} | size | parts


def _hugging_face_tower(part: dict[str, Any], width: int) -> dict[str, Any]:
    width = part.get("width", width)
    return {
        "hidden_size": width,
        "intermediate_size": int(width * part.get("mlp_ratio", 4.0)),
        "num_hidden_layers": part.get("layers", 12),
        "layer_norm_eps": (part.get("norm_kwargs") or {}).get("eps", 1e-5),
    }


def _tower(part: dict[str, Any]) -> dict[str, Any]:
    ratio = part["intermediate_size"] / part["hidden_size"]
    norm = {"norm_kwargs": {"eps": part["layer_norm_eps"]}}
    return {"width": part["hidden_size"], "layers": part["num_hidden_layers"], "mlp_ratio": ratio} | (
        norm if part["layer_norm_eps"] != 1e-5 else {}
    )


def _part(options: dict[str, Any], name: str, label: str) -> dict[str, Any]:
    part = options[name]
    if not isinstance(part, dict):
        raise MergeError(f"{label}: {name} is {part!r}, expected an object of options")
    return part
