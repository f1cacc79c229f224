"""The tasks of a bank, or its merge, as PEFT LoRA adapters of one base."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast, get_args

import torch
from torch import Tensor

from lit_merge.bank.learnt import DIRECTIONS, without
from lit_merge.bank.low_rank import check_energy, check_rank_ratio
from lit_merge.bank.task_bank import TaskBank
from lit_merge.checkpoints import Checkpoint, Naming, modernised, named_like, rename, replacing
from lit_merge.checkpoints.adapters.modules import Modules
from lit_merge.checkpoints.adapters.writer import FORM, write_adapter
from lit_merge.checkpoints.companions.files import CONFIG, COPIED, configurations_of, ties_head
from lit_merge.checkpoints.families import has_role
from lit_merge.checkpoints.folders import ADAPTER_CONFIG, ADAPTERS
from lit_merge.checkpoints.input_file import InputFile
from lit_merge.checkpoints.kinds import Kind
from lit_merge.checkpoints.locations import destination
from lit_merge.checkpoints.safetensors_file import read_header
from lit_merge.checkpoints.safetensors_writer import MARK
from lit_merge.console import LISTED, say
from lit_merge.errors import MergeError
from lit_merge.experts.experts import Experts
from lit_merge.merge.adapters.differences import Cut
from lit_merge.merge.adapters.parts import Held, Rest, View, hold
from lit_merge.merge.adapters.reference import Changes, changes_from
from lit_merge.merge.clip_folders import Library, configurations, write_configurations
from lit_merge.merge.layout import BLOCK, Layout
from lit_merge.networks.clip_configurations import open_clip_options

BASE, MERGED = "base", "merged"
NO_CHANGES: Changes = {}
# What PEFT calls a model of transformers, by the end of its class's name.
TASK_TYPES = {
    "ForCausalLM": "CAUSAL_LM",
    "LMHeadModel": "CAUSAL_LM",
    "ForSequenceClassification": "SEQ_CLS",
    "ForTokenClassification": "TOKEN_CLS",
    "ForQuestionAnswering": "QUESTION_ANS",
    "ForConditionalGeneration": "SEQ_2_SEQ_LM",
}


def _is_one(folder: Path) -> bool:
    headers = [read_header(InputFile(file))[0] for file in folder.glob(f"*/{ADAPTERS[0]}")]
    return bool(headers) and all(one.get("__metadata__", {}).get(MARK) == FORM for one in headers)


KIND = Kind("export --format lora", _is_one, rf"{BASE}/(model.*\.safetensors.*|{COPIED})|[^/]+/adapter_\w+\.\w+")


def export_adapters(
    bank: TaskBank,
    output: str | Path,
    naming: Naming,
    task: str | None = None,
    cut: Cut = Cut(),  # noqa: B008  frozen
    rest: Rest = "adapter",
    dtype: torch.dtype | None = None,
    overwrite: bool = False,
    experts: Experts | None = None,
    base: Checkpoint | None = None,
    base_name: str | None = None,
    config: str | None = None,
) -> list[str]:
    """Writes a folder with an adapter for each task, or for the merge, and their base unless it is the given one.

    Args:
        bank: with the coefficients to use.
        output: the folder.
        naming: by which files name the weights.
        task: one task; `merged` for the merge at the bank's coefficients; None for all tasks.
        cut: directions that are kept of every difference.
        rest: see `Rest`. In a folder of one adapter `base` changes nothing of the model: the base is that one's own.
        dtype: of what is written; None keeps the bank's for factors, and the experts' for whole weights.
        overwrite: replace what stands there.
        experts: that the bank was made of, where they are at hand: their heads come along.
        base: the model that adapters are to be for.
        base_name: what adapters call it; its folder by default.
        config: of a CLIP, as networks take it, for the base's configuration.

    Returns:
        Names of the files that were copied next to the base's weights.

    Raises:
        MergeError: no such task, or one whose name is no folder's; a share outside (0, 1]; nothing that differs in a
            linear layer; a base of another model.
    """
    check_rank_ratio(cut.rank_ratio)
    check_energy(cut.energy)
    views = [replace(view, tied=_tied(bank, experts, base)) for view in _views(bank, task, naming, experts)]
    layout = Layout.of_bank(bank, naming, experts, base, None, dtype)
    modules = Modules({modernised(name): shape for name, shape in _file_shapes(bank, naming).items()})
    merged = len(views) == 1 and views[0].name == MERGED and task not in bank.tasks
    learnt = without(bank.learnt, [DIRECTIONS]) if merged else {}
    ground = replace(bank, deltas={}, coefficients=bank.coefficients[:, :0], learnt=learnt, naming=naming)
    given = experts.base if experts is not None else base and named_like(base, bank.shapes)
    changes = None if given is None else changes_from(given, ground, modules)
    if given is not None and changes is None:
        say(f"the bank's origin is not the given base, nor near it at a low rank: {BASE}/ has it, for these adapters")
    first = None
    if len(views) == 1 and changes is not None:
        first = hold(views[0], modules, changes, cut, rest, dtype)
        if first.left:
            # The base of one adapter can hold what that adapter cannot.
            first = changes = None
    own = changes is None
    name = str(destination(output) / BASE) if own else base_name or str(_place_of(given))
    with replacing(output, overwrite, KIND) as folder:
        folder.mkdir()
        moved: dict[str, float] = {}
        for view in views:
            held = first or hold(view, modules, changes or NO_CHANGES, cut, rest, dtype)
            if not held.adapter.low_rank:
                raise MergeError(
                    f"{view.name} differs from its base in no linear layer at a rank that makes it smaller: cut it "
                    "(--rank_ratio 0.1), or take --format task",
                    task=view.name,
                )
            write_adapter(folder / view.name, held.adapter, name, _task_type(experts, base))
            moved = held.left if len(views) == 1 else moved
            _say(view.name, held, folder / view.name, moved=len(views) == 1)
        if not own:
            return []
        with layout.writing(folder / BASE, form=FORM) as writer:
            for weight in bank.origin:
                source = views[0].bank if weight in moved else ground
                writer.put(weight, source.weight(weight, dtype))
        if config is not None and not writer.copied and naming.family in get_args(Library):
            library, whole = cast(Library, naming.family), any(name.startswith("text.") for name in bank.origin)
            made = configurations(library, open_clip_options(config), whole, config)
            write_configurations(folder / BASE, made)
            return [f"{BASE}/{file}" for file in made]
    return [f"{BASE}/{file}" for file in writer.copied]


def _views(bank: TaskBank, task: str | None, naming: Naming, experts: Experts | None) -> list[View]:
    if task == MERGED and task not in bank.tasks:
        return [View(MERGED, bank, naming)]
    tasks: Sequence[str] = bank.tasks if task is None else [task]
    for one in tasks:
        if one in (BASE, ".", "..") or Path(one).name != one:
            raise MergeError(f"task {one!r} cannot be the name of an adapter's folder: rename it in the bank", task=one)
    return [View(one, bank.only(one), naming, _heads_of(one, bank, experts)) for one in tasks]


def _heads_of(task: str, bank: TaskBank, experts: Experts | None) -> dict[str, Tensor]:
    """What is excluded from the merge and in no block, as a classifier, of a task's expert."""
    if experts is None or not experts.naming.identity:
        return {}
    file = experts.whole[task]
    names = [name for name in file.shapes if name not in bank.origin and name in set(experts.excluded)]
    heads = [name for name in names if not BLOCK.search(name) and "." in name and not has_role("vocabulary", name)]
    return {name: file.read(name) for name in heads}


def _file_shapes(bank: TaskBank, naming: Naming) -> dict[str, tuple[int, ...]]:
    empty = {name: torch.empty(shape, device="meta") for name, shape in bank.shapes.items()}
    return {name: tuple(value.shape) for name, value in rename(empty, naming).items()}


def _place_of(base: Checkpoint | None) -> Path | str:
    """The folder of a model, or its file."""
    files = () if base is None else base.files
    return "" if not files else files[0].parent if (files[0].parent / CONFIG).is_file() else files[0]


def _models(experts: Experts | None, base: Checkpoint | None) -> list[Checkpoint]:
    return [*([] if experts is None else experts.whole.values()), *([] if base is None else [base])]


def _tied(bank: TaskBank, experts: Experts | None, base: Checkpoint | None) -> str | None:
    """The embeddings that are the output layer too, by the configuration of the first model that has one."""
    folders = [file.parent for model in _models(experts, base) for file in model.files[:1]]
    folder = next((folder for folder in folders if (folder / CONFIG).is_file()), None)
    return None if folder is None else ties_head(folder, bank.shapes)


def _task_type(experts: Experts | None, base: Checkpoint | None) -> str | None:
    about: Mapping[str, object] = next(iter(configurations_of(_models(experts, base))), {})
    kinds = about.get("architectures")
    kind = str(kinds[0]) if isinstance(kinds, list) and kinds else ""
    return next((said for end, said in TASK_TYPES.items() if kind.endswith(end)), None)


def _say(name: str, held: Held, folder: Path, moved: bool) -> None:
    """One line of what an adapter holds, and one of what it does not."""
    ranks, size = held.adapter.ranks.values(), sum(file.stat().st_size for file in folder.iterdir())
    span = " to ".join(str(rank) for rank in sorted({min(ranks), max(ranks)}))
    parts = [f"{len(ranks)} linear layers at rank {span}"]
    parts += [f"{len(held.adapter.biases)} biases"] if held.adapter.biases else []
    parts += [f"{len(held.adapter.whole)} modules whole"] if held.adapter.whole else []
    say(f"{name}: {', '.join(parts)}; {size / 1e6:.1f} MB in {folder.name}/{ADAPTERS[0]} and {ADAPTER_CONFIG}")
    if not held.left:
        return
    shown = sorted(held.left.items(), key=lambda one: -one[1])
    listed = ", ".join(f"{weight} ({share:.1%})" for weight, share in shown[:LISTED])
    more = f", … ({len(shown)} in all)" if len(shown) > LISTED else ""
    if moved:
        say(f"{name}: {BASE}/ holds what the adapter cannot: {listed}{more}")
    else:
        say(
            f"{name}: not in the adapter, and left as {BASE}/ has it: {listed}{more}, with the share that it differs "
            "by. With --task, the base is that task's own; an open_clip bank holds more by --naming hugging_face"
        )
