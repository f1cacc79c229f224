"""Files that one verb writes and another believes: banks of every storage, what two banks differ in, prototypes,
adapters, runs; and what networks are built from."""

import csv
import io
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from campaigns import inputs, mutators
from campaigns.mutations import Mutations
from campaigns.mutators import Mutate
from campaigns.readers import Arrays, Kind, Read, _copy, _load, lora_scale

# Where digests and checksums are.
SIGNED = ("lit_merge_digest", "lit_merge_checksums", "checksums")
PAGE = Path(__file__).parents[2] / "docs" / "bank_format.md"


def _write_compressed(**options: Any) -> Any:
    def make(root: Path, folder: Path) -> None:
        from lit_merge import TaskBank
        from lit_merge.merge.compressed_bank import compress_bank

        _copy("base.safetensors")(root, folder)
        compress_bank(TaskBank.load(root / "bank"), folder / "bank", base=folder / "base.safetensors", **options)

    return make


def _experts(folder: Path) -> Arrays:
    from lit_merge import TaskBank

    bank = TaskBank.load(folder / "bank", folder / "base.safetensors")
    found = {task: bank.expert(task, naming="canonical") for task in inputs.CLASSES}
    return {f"{task} {name}": one.double().numpy() for task, held in found.items() for name, one in held.items()}


def _experts_by_the_page(folder: Path, name: str = "bank") -> Arrays:
    """By the reader in docs/bank_format.md, which needs nothing of the package."""
    from safetensors.torch import load_file

    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    exec(code, reader := dict[str, Any]())
    base = load_file(path) if (path := folder / "base.safetensors").exists() else None
    found = {task: reader["expert"](folder / name, task, base) for task in inputs.CLASSES}
    arrays = {f"{task} {key}": one.double().numpy() for task, held in found.items() for key, one in held.items()}
    if not all(np.isfinite(one).all() for one in arrays.values()):
        raise ValueError("not finite")
    return arrays


def _write_two_banks(root: Path, folder: Path) -> None:
    from lit_merge import CART, build_bank

    _copy("bank")(root, folder)
    build_bank(inputs.experts(root), method=CART(rank_ratio=0.25)).save(folder / "other")


def _differences(folder: Path) -> Arrays:
    from lit_merge import TaskBank
    from lit_merge.bank.differences import differences

    found = differences(TaskBank.load(folder / "bank"), TaskBank.load(folder / "other"))
    return {f"{task} {name}": np.array(one) for task, held in found.experts.items() for name, one in held.items()}


def _differences_by_hand(folder: Path) -> Arrays:
    one, other = (_experts_by_the_page(folder, name) for name in ("bank", "other"))
    apart = {name: np.linalg.norm(other[name] - one[name]) for name in one}
    return {name: found and found / np.linalg.norm(one[name]) for name, found in apart.items()}


def _write_prototypes(root: Path, folder: Path) -> None:
    import torch

    from lit_merge import TaskBank
    from lit_merge.adaptation.routing.discriminants import Discriminants
    from lit_merge.adaptation.routing.prototypes import Prototypes

    _copy("bank")(root, folder)
    bank = TaskBank.load(root / "bank")
    torch.manual_seed(0)
    name = next(name for name in bank.layers if "c_fc" in name and len(bank.shapes[name]) == 2)
    features = [torch.randn(20, bank.shapes[name][1]) + i for i in range(len(bank.tasks))]
    layers = {name: torch.stack([one.mean(0) for one in features])}
    made = Prototypes(bank.tasks, Discriminants.fit(features), layers, {name: True}, bank.fingerprint)
    made.save(folder / "p.safetensors")


def _prototypes(folder: Path) -> Arrays:
    from lit_merge import TaskBank
    from lit_merge.adaptation.routing.prototypes import Prototypes

    found = Prototypes.load(folder / "p.safetensors", TaskBank.load(folder / "bank"))
    layers = {f"layer/{name}": value for name, value in found.layers.items()}
    return {name: value.double().numpy() for name, value in (found.discriminants.tensors() | layers).items()}


def _write_lora(root: Path, folder: Path) -> None:
    from lit_merge import TaskBank
    from lit_merge.merge.export import export_bank

    export_bank(TaskBank.load(root / "bank"), folder / "lora", format="lora", task="beta", rest="base")


def _adapted(folder: Path) -> Arrays:
    from lit_merge.checkpoints.conversion import convert

    base = next((folder / "lora" / "base").glob("*.safetensors"))
    convert(str(folder / "lora" / "beta"), "converted.safetensors", base=str(base))
    return _load(Path("converted.safetensors"))


def _adapted_by_hand(folder: Path) -> Arrays:
    """W + scale · B·A."""
    about = json.loads((folder / "lora" / "beta" / "adapter_config.json").read_text())
    weights = _load(next((folder / "lora" / "base").glob("*.safetensors")))
    parts = _load(folder / "lora" / "beta" / "adapter_model.safetensors")
    ranks, alphas = about.pop("rank_pattern"), about.pop("alpha_pattern")
    usual = {"peft_type": "LORA", "bias": "none", "use_dora": False}
    usual |= {"fan_in_fan_out": False, "modules_to_save": None, "lora_bias": False}
    if type(about["lora_alpha"]) is bool or any(about.get(key) != value for key, value in usual.items()):
        raise ValueError("a configuration that this reader does not know")
    modules = {name.removesuffix(".lora_A.weight") for name in parts if name.endswith(".lora_A.weight")}
    for module in modules:
        a, b = (parts.pop(f"{module}.lora_{part}.weight") for part in "AB")
        name = f"{module.removeprefix('base_model.model.')}.weight"
        rank, alpha = (
            pattern.get(name.removesuffix(".weight"), about[otherwise])
            for pattern, otherwise in ((ranks, "r"), (alphas, "lora_alpha"))
        )
        if len(a) != rank:
            raise ValueError("another rank")
        weights[name] = weights[name] + lora_scale(about, rank, alpha) * b @ a
    if parts or {name.removeprefix("base_model.model.") for name in modules} != set(about["target_modules"]):
        raise ValueError("other parts")
    return weights


def _heads(folder: Path) -> Arrays:
    from lit_merge.networks.heads.linear import load_heads

    made = load_heads(str(folder / "heads.safetensors"))
    *rows, scale = made.values()
    found = {task: row.double().numpy() for task, row in zip(made.tasks, rows, strict=True)}
    return found | {"scale": scale.double().numpy()}


def _heads_by_hand(folder: Path) -> Arrays:
    from safetensors import safe_open

    with safe_open(folder / "heads.safetensors", "pt") as file:
        scale = float((file.metadata() or {}).get("logit_scale", "100"))
        rows = {name: file.get_tensor(name).float().double().numpy() for name in file.keys()}  # noqa: SIM118
    if not 0 < scale < float("inf") or any(one.ndim != 2 or not np.isfinite(one).all() for one in rows.values()):
        raise ValueError("no heads")
    return rows | {"scale": np.float32(scale)}


def _network(folder: Path) -> Arrays:
    from lit_merge import OpenClipImageEncoder

    made = OpenClipImageEncoder(str(folder / "network.json"), str(folder / "heads.safetensors"))
    found: Arrays = {name: np.array(shape) for name, shape in made.shapes.items()}
    return found | {"mean": made.mean.numpy(), "std": made.std.numpy(), "size": np.array(made.image_size)}


def _network_by_open_clip(folder: Path) -> Arrays:
    from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
    from open_clip.model import _build_vision_tower

    about = json.loads((folder / "network.json").read_text())
    tower = _build_vision_tower(about["embed_dim"], about["vision_cfg"], about.get("quick_gelu", False))
    found: Arrays = {name: np.array(value.shape) for name, value in tower.state_dict().items()}
    pixels = about.get("preprocess_cfg", {})
    for name, usual in (("mean", OPENAI_DATASET_MEAN), ("std", OPENAI_DATASET_STD)):
        found[name] = np.array(pixels.get(name) or usual, np.float32).reshape(3, 1, 1)
    return found | {"size": np.array(about["vision_cfg"].get("image_size", 224))}


def _run(folder: Path) -> Arrays:
    from lit_merge.report.run_folder import RunFolder

    run = RunFolder(folder / "run")
    report, (layers, looks) = run.report, run.coefficients
    assert report is not None
    found: Arrays = {"layers": np.array(layers), "samples": np.array([one["task"] for one in run.samples])}
    for look in looks:
        found |= {f"λ {look.step} {task}": np.array(values) for task, values in look.values.items()}
    found |= {f"guard {one['step']} {one['task']}": np.array([one["entropy"], one["churn"]]) for one in run.guard}
    for state, of_state in report.scores.items():
        found |= {f"{state} {task}": np.array([one.accuracy, one.images]) for task, one in of_state.items()}
    return found


def _run_by_hand(folder: Path) -> Arrays:
    run = folder / "run"
    lines = [json.loads(line) for line in (run / "samples.jsonl").read_text().split("\n") if line]
    header, *rows = _rows(run / "coefficients" / "coefficients_log.csv")
    found: Arrays = {"layers": np.array(header[2:]), "samples": np.array([str(one["task"]) for one in lines])}
    found |= {f"λ {int(step)} {task}": np.array([float(one) for one in values]) for step, task, *values in rows}
    header, *rows = _rows(run / "guard.csv")
    for row in rows:
        one = dict(zip(header, row, strict=True))
        values = [float(one[name]) for name in ("entropy", "churn")]
        found[f"guard {int(one['step'])} {one['task']}"] = np.array(values)
    for task, row in json.loads((run / "metrics.json").read_text())["tasks"].items():
        for state in ("static", "adapted", "expert"):
            found[f"{state} {task}"] = np.array([float(row[f"{state}_accuracy"]), float(row["images"])])
    return found


def _rows(path: Path) -> list[list[str]]:
    header, *rows = csv.reader(io.StringIO(path.read_bytes().decode(), newline=""))
    if any(len(row) != len(header) for row in rows) or header[:2] != ["step", "task"]:
        raise ValueError("lines of different lengths, or another header")
    return [header, *rows]


def unsigned(make: Callable[[Path, Path], object]) -> Callable[[Path, Path], object]:
    """As earlier versions wrote the files: what is changed in them is not seen by a digest, but by what it is."""

    def unsign(root: Path, folder: Path) -> None:
        make(root, folder)
        for path in folder.rglob("bank.json"):
            about = json.loads(path.read_text())
            path.write_text(json.dumps({key: one for key, one in about.items() if key not in SIGNED}))
        for path in folder.rglob("*.safetensors"):
            content = path.read_bytes()
            length = int.from_bytes(content[:8], "little")
            header = json.loads(content[8 : 8 + length])
            texts = header.pop("__metadata__", {})
            header["__metadata__"] = {key: one for key, one in texts.items() if key not in SIGNED}
            text = json.dumps(header).encode()
            path.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + length :])

    return unsign


class OwnFiles(Mutations):
    """As `Mutations`, of files that one verb writes and another believes."""

    name, light = "own-files", False
    share = 2.0

    @staticmethod
    def all_kinds() -> list[Kind]:
        return own_kinds()


def own_kinds() -> list[Kind]:
    """All of them, and those with digests without them too."""
    bank: dict[str, Mutate] = {"bank/bank.json": mutators.mutate_json}
    bank |= {"bank/bank.safetensors": mutators.mutate_safetensors}
    with_base = bank | {"base.safetensors": mutators.mutate_safetensors}
    lora: dict[str, Mutate] = {"lora/beta/adapter_config.json": mutators.mutate_json}
    lora |= {"lora/beta/adapter_model.safetensors": mutators.mutate_safetensors}
    run: dict[str, Mutate] = {"run/metrics.json": mutators.mutate_json}
    run |= {f"run/{name}": mutators.mutate_lines for name in ("guard.csv", "samples.jsonl")}
    run |= {"run/coefficients/coefficients_log.csv": mutators.mutate_lines}
    heads: dict[str, Mutate] = {"heads.safetensors": mutators.mutate_safetensors}
    page: Read = _experts_by_the_page

    def network(root: Path, folder: Path) -> None:
        _copy("network.json")(root, folder)
        _copy("heads.safetensors")(root, folder)

    signed = [
        Kind("bank in int8", _write_compressed(dtype="int8"), bank, _experts, page, 1e-4),
        Kind("bank of a budget", _write_compressed(budget="1.2x"), bank, _experts, page, 1e-4),
        Kind("bank by reference", _write_compressed(origin="base", dtype="int4"), with_base, _experts, page, 1e-4),
        Kind("prototypes", _write_prototypes, {"p.safetensors": mutators.mutate_safetensors}, _prototypes,
             lambda folder: _load(folder / "p.safetensors")),
        Kind("lora", _write_lora, lora, _adapted, _adapted_by_hand, 1e-5),
    ]  # fmt: skip
    others = [
        Kind("two banks", _write_two_banks, bank, _differences, _differences_by_hand, 1e-3),
        Kind("heads", _copy("heads.safetensors"), heads, _heads, _heads_by_hand),
        Kind("network", network, {"network.json": mutators.mutate_json}, _network, _network_by_open_clip),
        Kind("run", _copy("run"), run, _run, _run_by_hand),
    ]
    return [*signed, *(replace(one, name=f"{one.name}, unsigned", make=unsigned(one.make)) for one in signed), *others]
