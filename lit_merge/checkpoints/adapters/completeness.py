"""Whether a LoRA adapter has all that its configuration names, and its base no more than is known of it."""

import re
from collections.abc import Collection
from itertools import takewhile

import torch

from lit_merge.checkpoints.adapters.config import AdapterConfig
from lit_merge.checkpoints.checkpoint import Checkpoint
from lit_merge.checkpoints.companions.cropping import is_vocabulary
from lit_merge.checkpoints.companions.files import CONFIG, ties_head
from lit_merge.checkpoints.json_text import entries_of
from lit_merge.errors import MergeError


def refuse_incomplete(
    config: AdapterConfig, adapted: Collection[str], replaced: Collection[str], base: Checkpoint
) -> None:
    """Raises MergeError where the configuration names a module of the base for which the adapter has nothing.

    Args:
        config: of the adapter.
        adapted: modules that the adapter has LoRA for.
        replaced: weights that it has whole.
        base: what the adapter is for.
    """
    saved = {module for name in replaced if (module := config.saved_module(name)) is not None}
    if entries := config.entries_of_no(saved):
        raise _incomplete(config, entries[0], "modules_to_save")
    for name in base.shapes:
        if base.dtypes[name].is_floating_point and config.saved_module(name) is not None and name not in replaced:
            raise _incomplete(config, name, "modules_to_save")
    # A model with another head than the base's has nothing of the old one.
    towers = {name.split(".")[0] for name in adapted}
    other_head = any(name not in base.shapes for name in replaced)
    alike = {_without_numbers(module) for module in adapted}
    for name, shape in base.shapes.items():
        module = name.removesuffix(".weight")
        if module == name or len(shape) < 2 or module in adapted or (other_head and name.split(".")[0] not in towers):
            continue
        wanted = config.targets(module)
        if wanted or (wanted is None and _without_numbers(module) in alike):
            raise _incomplete(config, module, "target_modules", ", or name what it leaves out in exclude_modules there")


def _without_numbers(module: str) -> str:
    return re.sub(r"(^|\.)\d+(?=\.|$)", r"\1#", module)


def _incomplete(config: AdapterConfig, what: str, entry: str, otherwise: str = "") -> MergeError:
    return MergeError(
        f"{config.path.parent} has nothing for {what}, which {entry} of {config.path.name} names: the file of weights "
        f"is incomplete, copy it again{otherwise}",
        weight=what,
    )


def refuse_tied(config: AdapterConfig, updated: Collection[str], replaced: Collection[str], base: Checkpoint) -> None:
    """Raises MergeError where peft's merge changes other weights than those of the adapter's names, or fewer: of
    embeddings that are the output layer too.

    Args:
        config: of the adapter.
        updated: weights that LoRA adds to.
        replaced: weights that the adapter has whole.
        base: what the adapter is for.
    """
    saved = {name for name in replaced if config.saved_module(name) is not None}
    about = entries_of(base.files[0].parent / CONFIG) if base.files else {}
    says_untied = about.get("tie_word_embeddings") is False
    for name in {*updated, *replaced} - saved:
        if (other := _same(name, base)) is not None and not says_untied:
            raise _tied(config, name, other)
    head = ties_head(base.files[0].parent, {*base.shapes, *replaced}) if base.files else None
    if head in saved:
        raise _tied(config, head, "the output layer")


def _same(name: str, base: Checkpoint) -> str | None:
    """Another weight of the base that is this one."""
    group = next((group for group in base.tied if name in group), ())
    tied = [other for other in group if other != name and other in base.shapes]
    alike = (
        other
        for other, shape in base.shapes.items()
        if other != name and shape == base.shapes.get(name) and (is_vocabulary(other) or is_vocabulary(name))
        if base.dtypes[other] == base.dtypes[name] and torch.equal(base.read(other), base.read(name))
    )
    return next(iter(tied), None) or next(alike, None)


def _tied(config: AdapterConfig, name: str, other: str) -> MergeError:
    return MergeError(
        f"{config.path.parent} changes {name}, which is {other} of its base too: it is not known which of both is "
        "meant. Save the model after peft's merge_and_unload(), and give that",
        weight=name,
    )


def refuse_other_orientation(config: AdapterConfig, module: str, base: Checkpoint) -> None:
    """Raises MergeError where the nearest weights that tell it by their biases are not stored as `fan_in_fan_out` says
    of this square one: peft goes by the layers' classes, and keeps in the configuration what held for the last.
    """
    found: dict[int, set[bool]] = {}
    for name, shape in base.shapes.items():
        bias = base.shapes.get(f"{name.removesuffix('weight')}bias")
        if name.endswith(".weight") and len(shape) == 2 and shape[0] != shape[1] and bias in ((shape[0],), (shape[1],)):
            near = takewhile(lambda both: both[0] == both[1], zip(name.split("."), module.split("."), strict=False))
            found.setdefault(len(list(near)), set()).add(bias == (shape[1],))
    said = bool(config.get("fan_in_fan_out"))
    if found and found[max(found)] != {said}:
        raise MergeError(
            f"{config.path}: fan_in_fan_out is {said}, and weights next to {module} are stored otherwise: it is "
            "not known how this square one is. Save the model after peft's merge_and_unload(), and give that",
            weight=module,
        )
