"""Files to practise with, as you would bring your own: three fine-tuned open_clip models, heads, and folders of images.

    python examples/practice_files.py practice

makes the folder `practice`: `pretrained` as open_clip saves a model, `experts/TASK.pt` as its training does,
`heads.safetensors`, `images/TASK` without labels and `labelled/TASK/CLASS`. All is taken from the experts and images
that lit_merge brings (`zoo:8`); the text tower is drawn at random, and is the same in all models.
"""

import argparse
import json
from pathlib import Path

import open_clip
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from lit_merge import Suite
from lit_merge.checkpoints.locations import resolve

TASKS = ("mnist", "latin", "greek")
TEXT = {"context_length": 8, "vocab_size": 512, "width": 32, "heads": 2, "layers": 1}


def make(folder: Path, images: int = 400) -> None:
    """Writes the files; `images` are as many as each task gets of either kind, at most."""
    zoo = resolve("zoo:8")
    options = json.loads((zoo / "network.json").read_text())
    preprocess = options.pop("preprocess_cfg")
    model = open_clip.CLIP(**options, text_cfg=TEXT)
    write_model(model, load_file(zoo / "base.safetensors"), folder / "pretrained", options, preprocess)
    for task in TASKS:
        weights = whole(model, load_file(zoo / "experts" / f"{task}.safetensors"))
        (folder / "experts").mkdir(exist_ok=True)
        torch.save({"epoch": 10, "name": task, "state_dict": weights}, folder / "experts" / f"{task}.pt")
    with safe_open(zoo / "heads.safetensors", "pt") as file:
        heads = {task: file.get_tensor(task) for task in TASKS}
        scale = file.metadata()["logit_scale"]
    suite = Suite("zoo:8", tasks=list(TASKS))
    names = {task: suite.class_names(task) for task in TASKS}
    save_file(heads, folder / "heads.safetensors", {"logit_scale": scale, "class_names": json.dumps(names)})
    pixels, labels = load_file(zoo / "images.safetensors"), load_file(zoo / "labels.safetensors")
    for task in TASKS:
        write_images(pixels[f"{task}/adaptation"][:images], folder / "images" / task)
        for name in names[task]:  # also of which there are no images
            (folder / "labelled" / task / name).mkdir(parents=True)
        called = [names[task][label] for label in labels[f"{task}/test"][:images].tolist()]
        write_images(pixels[f"{task}/test"][:images], folder / "labelled" / task, called)


def whole(model: open_clip.CLIP, tower: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights of a whole model with this image tower."""
    return model.state_dict() | {f"visual.{name}": value.float() for name, value in tower.items()}


def write_model(
    model: open_clip.CLIP, tower: dict[str, Tensor], folder: Path, options: dict[str, object], preprocess: object
) -> None:
    """A folder that `open_clip.create_model("local-dir:…")` loads."""
    folder.mkdir(parents=True)
    save_file(whole(model, tower), folder / "open_clip_model.safetensors")
    about = {"model_cfg": {**options, "text_cfg": TEXT}, "preprocess_cfg": preprocess}
    (folder / "open_clip_config.json").write_text(json.dumps(about, indent=2))


def write_images(pixels: Tensor, folder: Path, classes: list[str] | None = None) -> None:
    """PNG files; in a folder for every class where classes are known."""
    for i, image in enumerate(pixels):
        place = folder if classes is None else folder / classes[i]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.numpy()).save(place / f"{i:03d}.png")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="a new folder")
    make(parser.parse_args().folder)
