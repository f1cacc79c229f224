"""Files of every kind that is read: what the package makes of one, and what an independent reader does.

Both answer arrays by name. What a reader refuses it raises.
"""

import csv
import io
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from campaigns import inputs, mutators, references
from campaigns.mutators import Mutate

Arrays = dict[str, Any]
Read = Callable[[Path], Arrays]
"""Of a folder that `make` has written."""


@dataclass(frozen=True)
class Kind:
    """A kind of file.

    Attributes:
        name: of the kind.
        make: writes one into a folder, from the inputs: `make(inputs, folder)`.
        files: which are changed, relative to that folder, and how.
        ours: what the package reads.
        theirs: what somebody else reads.
        close: by how much numbers may differ, relative to the largest.
    """

    name: str
    make: Callable[[Path, Path], object]
    files: dict[str, Mutate]
    ours: Read
    theirs: Read
    close: float = 0.0


def _load(path: Path) -> Arrays:
    from safetensors.torch import load

    # Not by the path, which may be no UTF-8.
    return {name: value.double().numpy() for name, value in load(path.read_bytes()).items()}


def _converted(source: Path, **options: Any) -> Arrays:
    from lit_merge.checkpoints.conversion import convert

    convert(str(source), "converted.safetensors", **options)
    return _load(Path("converted.safetensors"))


def _convertible(name: str) -> Read:
    return lambda folder: _converted(folder / name)


def _copy(name: str) -> Callable[[Path, Path], object]:
    def make(root: Path, folder: Path) -> None:
        source = root / name
        shutil.copytree(source, folder / source.name) if source.is_dir() else shutil.copy(source, folder)

    return make


def _average(folder: Path) -> Arrays:
    from lit_merge import WeightAveraging, build_bank

    experts = {task: str(folder / "experts" / f"{task}.safetensors") for task in inputs.CLASSES}
    merged = build_bank(experts, method=WeightAveraging()).merge()
    return {name: value.double().numpy() for name, value in merged.items()}


def _average_of_loaded(folder: Path) -> Arrays:
    first, *others = (_load(folder / "experts" / f"{task}.safetensors") for task in inputs.CLASSES)
    for other in others:
        if {name: one.shape for name, one in first.items()} != {name: one.shape for name, one in other.items()}:
            raise ValueError("experts of different shapes")
    mean = {name: np.mean([one[name] for one in (first, *others)], 0) for name in first}
    if not all(np.isfinite(one).all() for one in mean.values()):
        raise ValueError("not finite")
    return mean


def _by_torch(name: str) -> Read:
    def read(folder: Path) -> Arrays:
        import torch

        found = torch.load(folder / name, map_location="cpu", weights_only=True)
        arrays = {str(key): value.double().numpy() for key, value in found.items()}
        if not all(np.isfinite(one).all() for one in arrays.values()):
            raise ValueError("not finite")
        return arrays

    return read


def _bank(folder: Path) -> Arrays:
    from lit_merge import TaskBank

    return {name: value.double().numpy() for name, value in TaskBank.load(folder / "bank").merge().items()}


def _bank_by_hand(folder: Path) -> Arrays:
    """origin + Σ_t λ[t, l] · U diag(S) Vᵀ."""
    about, held = json.loads((folder / "bank" / "bank.json").read_text()), _load(folder / "bank" / "bank.safetensors")
    merged = {name: held[f"origin/{name}"] for name in about["dtypes"]}
    for i, name in enumerate(about["layers"]):
        if f"U/{name}" in held:
            deltas = np.einsum("tmr,tr,tnr->tmn", *(held[f"{part}/{name}"] for part in "USV"))
        else:
            deltas = held[f"delta/{name}"]
        merged[name] = merged[name] + np.tensordot(held["coefficients"][:, i], deltas, 1)
    return merged


def _write_moments(root: Path, folder: Path) -> None:
    import torch

    from lit_merge import save_moments
    from lit_merge.experts.experts import Experts

    opened = Experts(inputs.experts(root), str(root / "base.safetensors"))
    names = [name for name, shape in opened.shapes.items() if "resblocks" in name and len(shape) == 2]
    torch.manual_seed(0)
    found = {}
    for task in inputs.CLASSES:
        flows = {name: torch.randn(3 * opened.shapes[name][1], opened.shapes[name][1]) for name in names}
        found[task] = {name: (x.T @ x).double() for name, x in flows.items()}
    save_moments(folder / "moments", found, opened)
    _copy("experts")(root, folder)
    _copy("base.safetensors")(root, folder)


def _regmean(folder: Path) -> Arrays:
    from lit_merge import RegMean, build_bank

    experts = {task: str(folder / "experts" / f"{task}.safetensors") for task in inputs.CLASSES}
    bank = build_bank(experts, str(folder / "base.safetensors"), method=RegMean(moments=str(folder / "moments")))
    return {name: value.double().numpy() for name, value in bank.merge().items() if "resblocks" in name}


def _regmean_by_hand(folder: Path) -> Arrays:
    base = {name: one for name, one in _load(folder / "base.safetensors").items() if "resblocks" in name}
    own = [_load(folder / "experts" / f"{task}.safetensors") for task in inputs.CLASSES]
    moments = [_load(folder / "moments" / f"{task}.safetensors") for task in inputs.CLASSES]
    tau = {name: np.stack([one[name] for one in own]) - base[name] for name in base}
    both = {name: np.stack([one[name] for one in moments]) for name in base if base[name].ndim == 2}
    return {name: base[name] + delta for name, delta in references.regmean(tau, base, both).items()}


MODULE = "transformer.resblocks.0.mlp.c_fc"


def _write_adapter(root: Path, folder: Path) -> None:
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(0)
    (folder / "adapter").mkdir()
    parts = {"lora_A": torch.randn(4, 32), "lora_B": torch.randn(64, 4)}
    named = {f"base_model.model.{MODULE}.{part}.weight": value for part, value in parts.items()}
    save_file(named, folder / "adapter" / "adapter_model.safetensors")
    about = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["c_fc"], "bias": "none"}
    about |= {"use_rslora": False, "use_dora": False, "fan_in_fan_out": False, "rank_pattern": {}, "alpha_pattern": {}}
    (folder / "adapter" / "adapter_config.json").write_text(json.dumps(about))
    _copy("base.safetensors")(root, folder)


def _adapted(folder: Path) -> Arrays:
    return _converted(folder / "adapter", base=str(folder / "base.safetensors"))


def _adapted_by_hand(folder: Path) -> Arrays:
    """W + scale · B A; of configurations whose other fields say nothing else."""
    weights, parts = _load(folder / "base.safetensors"), _load(folder / "adapter" / "adapter_model.safetensors")
    about = json.loads((folder / "adapter" / "adapter_config.json").read_text())
    usual = {"peft_type": "LORA", "target_modules": ["c_fc"], "bias": "none", "use_dora": False}
    usual |= {"fan_in_fan_out": False, "rank_pattern": {}, "alpha_pattern": {}}
    if any(about.get(name, value) != value for name, value in usual.items()) or type(about["r"]) is not int:
        raise ValueError("a configuration that this reader does not know")
    a, b = (parts.pop(f"base_model.model.{MODULE}.{part}.weight") for part in ("lora_A", "lora_B"))
    if parts or len(a) != about["r"]:
        raise ValueError("other parts, or another rank")
    weights[f"{MODULE}.weight"] = (
        weights[f"{MODULE}.weight"] + lora_scale(about, about["r"], about["lora_alpha"]) * b @ a
    )
    return weights


def lora_scale(about: dict[str, Any], rank: int, alpha: float) -> float:
    """α / r, or α / √r with `use_rslora`."""
    return alpha / (rank**0.5 if about.get("use_rslora") else rank)


def _write_shards(root: Path, folder: Path) -> None:
    from lit_merge.checkpoints.conversion import convert

    convert(str(root / "base.safetensors"), str(folder / "shards"), max_shard_bytes=20_000)


def _by_index(folder: Path) -> Arrays:
    places = json.loads((folder / "shards" / "model.safetensors.index.json").read_text())["weight_map"]
    return {name: _load(folder / "shards" / file)[name] for name, file in places.items()}


def _write_table(name: str) -> Callable[[Path, Path], object]:
    def make(root: Path, folder: Path) -> None:
        rows = [("a first text", 0), ("a second, longer text", 1), ('one with "quotes"', 0), ("ä ö ü", 2)]
        text = io.StringIO()
        if name.endswith("csv"):
            csv.writer(text).writerows([("text", "label"), *rows])
        else:
            text.writelines(json.dumps({"text": words, "label": label}) + "\n" for words, label in rows)
        (folder / name).write_text(text.getvalue())

    return make


def _table(name: str) -> Read:
    def read(folder: Path) -> Arrays:
        from lit_merge.data.texts.tables import read_table

        return {
            key: np.array([str(one) for one in values])
            for key, values in read_table(str(folder / name), ["text", "label"]).columns.items()
        }

    return read


def _table_by_hand(name: str) -> Read:
    def read(folder: Path) -> Arrays:
        text = (folder / name).read_bytes().decode("utf-8-sig")
        if name.endswith("csv"):
            header, *rows = (row for row in csv.reader(io.StringIO(text, newline=""), strict=True) if row)
            if any(len(row) != len(header) for row in rows) or not rows:
                raise ValueError("rows of different lengths, or none")
            objects = [dict(zip(header, row, strict=True)) for row in rows]
        else:
            objects = [json.loads(line) for line in text.split("\n") if line.strip()]
        return {key: np.array([str(one[key]) for one in objects]) for key in ("text", "label")}

    return read


def _write_picture(root: Path, folder: Path) -> None:
    (folder / "pictures").mkdir()
    shutil.copy(root / "pictures" / "alpha" / "0.png", folder / "pictures" / "0.png")


def _picture(folder: Path) -> Arrays:
    from lit_merge.data.images.files import ImageFiles

    return {"pixels": ImageFiles([folder / "pictures" / "0.png"], 16).read([0]).numpy()}


def _picture_by_pil(folder: Path) -> Arrays:
    """As PIL decodes it: written anew as a PNG, which the package then reads."""
    from PIL import Image

    with Image.open(folder / "pictures" / "0.png") as image:
        image.load()
        image.convert("RGB").save(folder / "again.png")
    os.replace(folder / "again.png", folder / "pictures" / "0.png")
    return _picture(folder)


def kinds() -> list[Kind]:
    """All whose reading is a function; `state.py` and `settings.py` have those that take a command."""
    header = {"alpha.safetensors": mutators.mutate_safetensors}
    experts = {f"experts/{name}": how for name, how in header.items()}
    moments = {f"moments/{name}": how for name, how in header.items()}
    bank: dict[str, Mutate] = {"bank/bank.json": mutators.mutate_json}
    bank |= {"bank/bank.safetensors": mutators.mutate_safetensors}
    adapter: dict[str, Mutate] = {"adapter/adapter_config.json": mutators.mutate_json}
    adapter |= {"adapter/adapter_model.safetensors": mutators.mutate_safetensors}
    index: dict[str, Mutate] = {"shards/model.safetensors.index.json": mutators.mutate_json}
    index |= {"shards/model-00002-of-00005.safetensors": mutators.mutate_safetensors}
    found = [
        Kind("safetensors", _copy("experts"), experts, _average, _average_of_loaded, 1e-2),
        Kind("bank", _copy("bank"), bank, _bank, _bank_by_hand, 1e-4),
        Kind("moments", _write_moments, moments, _regmean, _regmean_by_hand, 2e-2),
        Kind("adapter", _write_adapter, adapter, _adapted, _adapted_by_hand, 1e-5),
        Kind("shards", _write_shards, index, _convertible("shards"), _by_index),
        Kind("picture", _write_picture, {"pictures/0.png": mutators.mutate_image}, _picture, _picture_by_pil),
    ]
    for name in ("last.pt", "legacy.pt"):
        found.append(Kind(name, _copy(name), {name: mutators.mutate_torch}, _convertible(name), _by_torch(name)))
    for name in ("table.csv", "table.jsonl"):
        lines = {name: mutators.mutate_lines}
        found.append(Kind(name, _write_table(name), lines, _table(name), _table_by_hand(name)))
    return found
