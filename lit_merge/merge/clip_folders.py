"""CLIPs as the folders of open_clip and of Hugging Face: weights and configuration, ready to be loaded there."""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from lit_merge.bank.task_bank import TaskBank
from lit_merge.checkpoints import Checkpoint, named, rename, replacing, write_stream
from lit_merge.checkpoints.kinds import Kind
from lit_merge.checkpoints.safetensors_file import SafetensorsFile
from lit_merge.checkpoints.safetensors_writer import MARK
from lit_merge.errors import MergeError
from lit_merge.networks.clip_configurations import as_hugging_face, open_clip_options
from lit_merge.networks.preprocessing import INTERPOLATIONS, geometry_of, of_colours

Library = Literal["open_clip", "hugging_face"]
WEIGHTS: dict[Library, str] = {"open_clip": "open_clip_model.safetensors", "hugging_face": "model.safetensors"}
CONFIGS: dict[Library, str] = {"open_clip": "open_clip_config.json", "hugging_face": "config.json"}
PREPROCESSING = "preprocessor_config.json"
# OpenAI's, which both libraries take where a configuration says nothing.
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def export_clip(
    bank: TaskBank,
    output: str | Path,
    library: Library,
    config: str | None = None,
    models: Iterable[Checkpoint] = (),
    dtype: torch.dtype | None = None,
    overwrite: bool = False,
) -> list[str]:
    """Writes a folder that `open_clip.create_model("local-dir:…")` or `from_pretrained` loads.

    Args:
        bank: with the coefficients of the merge, or of one task alone.
        output: the folder.
        library: whose.
        config: of the model, as networks take it; None looks next to the models.
        models: the base and the experts, in this order. What the bank does not merge of a whole CLIP, as the text
            tower, comes from the first that has it.
        dtype: of floating-point weights; None keeps the experts'.
        overwrite: replace what stands there.

    Returns:
        Names of the files next to the weights.

    Raises:
        MergeError: weights that are no CLIP's; no configuration; no text tower for open_clip, which needs one.
    """
    models = list(models)
    others = _others(bank, models)
    names = [*bank.shapes, *(name for name, _ in others)]
    try:
        naming = named(library, names)
    except MergeError as error:
        raise MergeError(
            f"format={library} is a CLIP's folder, and these weights ({', '.join(sorted(names)[:3])}, …) are not a "
            "CLIP's: --format merged, or task, writes a folder with the configuration next to experts or base"
        ) from error
    config = config or _beside(models)
    options = open_clip_options(config)
    whole = any(name.startswith("text.") for name in names)
    if library == "open_clip" and not whole:
        raise MergeError(
            "open_clip loads whole CLIPs, and these weights are an image tower: give a base with the text tower "
            "(--model.base), or take --format merged or hugging_face"
        )
    empty = {name: torch.empty(shape, dtype=bank.dtypes[name], device="meta") for name, shape in bank.shapes.items()}
    empty |= {name: torch.empty(file.shapes[name], dtype=file.dtypes[name], device="meta") for name, file in others}
    files = {name: _in(value, dtype) for name, value in rename(empty, naming).items()}

    def values() -> Iterator[tuple[str, Tensor]]:
        for name in bank.origin:
            yield from rename({name: bank.weight(name, dtype)}, naming).items()
        for name, file in others:
            yield from rename({name: _in(file.read(name), dtype)}, naming).items()

    with replacing(output, overwrite, _kind(library)) as folder:
        folder.mkdir()
        shapes = {name: tuple(value.shape) for name, value in files.items()}
        dtypes = {name: value.dtype for name, value in files.items()}
        about = {"format": "pt", MARK: library}
        write_stream(folder / WEIGHTS[library], values(), shapes, dtypes, metadata=about)
        written = configurations(library, options, whole, config)
        write_configurations(folder, written)
    return list(written)


def _others(bank: TaskBank, models: Iterable[Checkpoint]) -> list[tuple[str, Checkpoint]]:
    """Weights of a whole CLIP that the bank does not have, and where they are."""
    found: dict[str, Checkpoint] = {}
    for model in models:
        if any(name.startswith("text.") for name in model.shapes):
            for name in model.shapes:
                if name not in bank.shapes and not name.startswith("other."):
                    found.setdefault(name, model)
    return list(found.items())


def _in(value: Tensor, dtype: torch.dtype | None) -> Tensor:
    return value.to(dtype) if dtype is not None and value.is_floating_point() else value


def _beside(models: Iterable[Checkpoint]) -> str:
    for folder in dict.fromkeys(file.parent for model in models for file in model.files):
        for name in CONFIGS.values():
            if (folder / name).is_file():
                return str(folder / name)
    raise MergeError(
        "it is not known how large the model's parts are: name its configuration by --model.network (its class and "
        "config, as ViT-B-32), or give models that have one next to their weights"
    )


def write_configurations(folder: Path, files: Mapping[str, Any]) -> None:
    """Writes what `configurations` answers."""
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def configurations(library: Library, options: Mapping[str, Any], whole: bool, label: str) -> dict[str, Any]:
    """File → content, of a CLIP with these options of open_clip's.

    Args:
        library: whose files.
        options: see `open_clip_options`.
        whole: with the text tower; else of the image tower.
        label: where the options come from, for messages.

    Raises:
        MergeError: towers, or a geometry of images, that Hugging Face's CLIP does not have.
    """
    about = dict(options)
    pixels = about.pop("preprocess_cfg", {})
    said = {"mean": MEAN, "std": STD} | {name: value for name, value in pixels.items() if value is not None}
    mean, std = (list(of_colours(said[name])) for name in ("mean", "std"))
    geometry = geometry_of(pixels, label)
    if library == "open_clip":
        pixels = {"mean": mean, "std": std} | asdict(geometry)
        return {CONFIGS[library]: {"model_cfg": about, "preprocess_cfg": pixels}}
    if geometry.resize_mode == "longest":
        raise MergeError(f"{label}: Hugging Face's CLIP has no resize_mode longest: take --format open_clip")
    made = as_hugging_face(about, whole, label)
    size = made.get("image_size") or made["vision_config"]["image_size"]
    preprocessing = {
        "image_processor_type": "CLIPImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": size} if geometry.resize_mode == "shortest" else {"height": size, "width": size},
        "do_center_crop": geometry.resize_mode == "shortest",
        "crop_size": {"height": size, "width": size},
        "do_rescale": True,
        "do_normalize": True,
        "do_convert_rgb": True,
        "resample": next(n for n, name in INTERPOLATIONS.items() if name == geometry.interpolation),
        "image_mean": mean,
        "image_std": std,
    }
    return {CONFIGS[library]: made, PREPROCESSING: preprocessing}


def _kind(library: Library) -> Kind:
    def is_one(folder: Path) -> bool:
        return SafetensorsFile(folder / WEIGHTS[library]).metadata.get(MARK) == library

    names = "|".join(name.replace(".", r"\.") for name in (WEIGHTS[library], CONFIGS[library], PREPROCESSING))
    return Kind(f"export --format {library}", is_one, names)
