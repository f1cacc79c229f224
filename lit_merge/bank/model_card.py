"""README.md of a bank: what it is, for people and for the Hugging Face hub."""

from collections.abc import Mapping
from typing import Any

HUB = "hf://"


def model_card(about: Mapping[str, Any]) -> str:
    """The card of a bank with this description: front matter of the hub (YAML), and how the bank is used."""
    tasks: list[str] = list(about["tasks"])
    method = about["method"].get("class_path") or "unknown"
    options = about["method"].get("init_args") or {}
    base = str(about.get("base", {}).get("location", ""))
    front = ["library_name: lit_merge", "tags:", "- model-merging", "- task-bank", "- merge"]
    if base.startswith(HUB):
        front += [f"base_model: {base.removeprefix(HUB).partition('@')[0]}", "base_model_relation: merge"]
    rows = [
        ("method", f"{method}({', '.join(f'{key}={value}' for key, value in options.items())})"),
        ("tasks", str(len(tasks))),
        ("weights", f"{len(about['dtypes'])}, {len(about['layers'])} of them differ between tasks"),
        ("ranks", _span([int(rank) for rank in about["ranks"].values()])),
        ("stored in", _types(about)),
        ("bytes of the tensors", f"{about['nbytes']:,}"),
        ("format version", str(about["format_version"])),
    ]
    if base:
        rows.append(("origin", f"a difference from {base if ':' in base else base.rpartition('/')[2]}, which it needs"))
    if learnt := about.get("learnt"):
        rows.append(("learnt by adaptation", f"coefficients, and {len(learnt)} tensors"))
    lines = [
        "---",
        *front,
        "---",
        "",
        f"# Task bank of {len(tasks)} tasks",
        "",
        "Several fine-tuned models in one: weights = origin + Σ λ·Δ over the tasks, with a delta Δ of low rank for "
        "every task and weight. Made by lit_merge.",
        "",
        "| | |",
        "|---|---|",
        *(f"| {name} | {_cell(value)} |" for name, value in rows),
        "",
        f"Tasks: {', '.join(_cell(task) for task in tasks)}.",
        "",
        "```python",
        "from lit_merge import TaskBank",
        "",
        'bank = TaskBank.load("this folder")',
        "merged = bank.merge()  # {name: tensor}: one model for all tasks",
        f"expert = bank.expert({tasks[0] if tasks else ''!r})  # one task's weights; only its share is read",
        f"bank.switch_(module, {tasks[0] if tasks else ''!r})  # a live module, in place; None for the merge",
        "```",
        "",
    ]
    return "\n".join(lines)


def _span(ranks: list[int]) -> str:
    return f"{min(ranks)} to {max(ranks)}" if ranks else "dense"


def _types(about: Mapping[str, Any]) -> str:
    """What a compressed bank says of its storage types."""
    if "packed" not in about:
        return "floating point"
    kinds = {kind for one in about["packed"].values() for kind in one} - {"shape", "origin"}
    return ", ".join(sorted(kinds | {one["origin"] for one in about["packed"].values()}))


def _cell(text: str) -> str:
    """Text that is no markup, in one line."""
    shown = "".join(f"\\{char}" if char in "\\|`*_<>[]#" else char for char in " ".join(text.split()))
    return shown.encode("utf-8", "backslashreplace").decode()
