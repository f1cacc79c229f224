"""Small real inputs of every verb: a vision transformer of 35 weights, three experts of it, their images, a bank."""

import json
from pathlib import Path
from typing import Any

import yaml

NETWORK = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 16, "layers": 1, "width": 32, "head_width": 16, "patch_size": 8, "mlp_ratio": 2.0},
    "preprocess_cfg": {"mean": [0.5, 0.5, 0.5], "std": [0.3, 0.3, 0.3]},
}
CLASSES = {"alpha": 3, "beta": 4, "gamma": 5}
CART = {"class_path": "CART", "init_args": {"rank_ratio": 0.5, "scaling": 1.0}}


def write_inputs(root: Path) -> None:
    """All of them, by a fixed seed. In a fork: torch's threads must not be started in the process that forks."""
    import torch
    from open_clip.model import _build_vision_tower
    from PIL import Image
    from safetensors.torch import save_file

    torch.manual_seed(0)
    (root / "experts").mkdir(parents=True)
    (root / "network.json").write_text(json.dumps(NETWORK))
    tower = _build_vision_tower(NETWORK["embed_dim"], NETWORK["vision_cfg"], False)
    base = {name: value.clone() for name, value in tower.state_dict().items()}
    save_file(base, root / "base.safetensors")
    heads, images, labels = {}, {}, {}
    for task, classes in CLASSES.items():
        expert = {name: w + 0.4 * w.std().nan_to_num(0.1) * torch.randn_like(w) for name, w in base.items()}
        save_file(expert, root / "experts" / f"{task}.safetensors")
        heads[task] = torch.nn.functional.normalize(torch.randn(classes, 16))
        for split, size in {"adaptation": 9, "validation": 5, "test": 6}.items():
            images[f"{task}/{split}"] = torch.randint(0, 256, (size, 16, 16), dtype=torch.uint8)
            if split != "adaptation":
                labels[f"{task}/{split}"] = torch.randint(0, classes, (size,), dtype=torch.uint8)
        (root / "pictures" / task).mkdir(parents=True)
        for i, picture in enumerate(images[f"{task}/adaptation"]):
            Image.fromarray(picture.numpy()).save(root / "pictures" / task / f"{i}.png")
    save_file(heads, root / "heads.safetensors", {"logit_scale": "16.0"})
    save_file(images, root / "images.safetensors")
    save_file(labels, root / "labels.safetensors")
    torch.save(expert, root / "last.pt")
    torch.save(expert, root / "legacy.pt", _use_new_zipfile_serialization=False)
    about = {"name": "alpha", "classes": ["a", "b", "c"], "domain": "noise"}
    (root / "zoo.json").write_text(json.dumps({"tasks": [about]}))
    config = configuration(root)
    (root / "fit.yaml").write_text(yaml.safe_dump(config))
    config["trainer"]["callbacks"][-1]["init_args"]["overwrite"] = True
    (root / "fit-over.yaml").write_text(yaml.safe_dump(config))
    del config["trainer"]["callbacks"]  # they are of fits
    (root / "config.yaml").write_text(yaml.safe_dump(config))
    _write_bank(root)
    _write_run(root / "run")


def _write_bank(root: Path) -> None:
    from lit_merge import CART, build_bank

    build_bank(experts(root), method=CART(rank_ratio=0.5, scaling=1.5)).save(root / "bank")


def _write_run(folder: Path) -> None:
    """What `report` reads of a run, without digests, as earlier versions wrote it."""
    from lit_merge.report.report import Report
    from lit_merge.report.scores import TaskScore

    (folder / "coefficients").mkdir(parents=True)
    states = {"static": 0.5, "adapted": 0.75, "expert": 0.875}
    scores = {state: {task: TaskScore(value, 1 - value, 6) for task in CLASSES} for state, value in states.items()}
    (folder / "metrics.json").write_text(Report("CART of 3", "inductive", scores, {"bank": 9}).to_json())
    rows = [f"{step},{task},{0.25 * step},-1.5" for step in (0, 10) for task in CLASSES]
    (folder / "coefficients" / "coefficients_log.csv").write_text("\n".join(["step,task,a.weight,b.weight", *rows]))
    looks = [f"{step},{task},1.5,0.9,,0.125" for step in (0, 10) for task in CLASSES]
    (folder / "guard.csv").write_text("\n".join(["step,task,entropy,balance,agreement,churn", *looks]))
    place = {"index": 3, "file": None, "text": "words", "label": "a", "predictions": {"static": [["a", 0.5]]}}
    (folder / "samples.jsonl").write_text("\n".join(json.dumps({"task": task} | place) for task in CLASSES))


def experts(root: Path) -> dict[str, str]:
    return {task: str(root / "experts" / f"{task}.safetensors") for task in CLASSES}


def configuration(root: Path) -> dict[str, Any]:
    """What serves every verb."""
    network = {"config": str(root / "network.json"), "heads": str(root / "heads.safetensors")}
    callbacks = [
        {"class_path": "CoefficientLog", "init_args": {"figures": False}},
        {"class_path": "ResumePoint", "init_args": {"every_steps": 1}},
        {"class_path": "CompressionExport", "init_args": {"path": "small", "rank_ratio": 0.25}},
    ]
    return {
        "seed_everything": 0,
        "trainer": {"enable_progress_bar": False, "accelerator": "cpu", "callbacks": callbacks, "log_every_n_steps": 1},
        "model": {
            "experts": experts(root),
            "base": str(root / "base.safetensors"),
            "network": {"class_path": "OpenClipImageEncoder", "init_args": network},
            "method": CART,
            "stages": [{"granularity": "tied", "steps": 1, "lr": 0.05}, {"granularity": "layer", "steps": 2}],
        },
        "data": {"class_path": "Suite", "init_args": {"path": str(root), "batch_size": 4}},
    }
