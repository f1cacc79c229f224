"""Whether a LoRA adapter has all that its configuration names."""

import re
from collections.abc import Collection

from lit_merge.checkpoints.adapter_config import AdapterConfig
from lit_merge.checkpoints.checkpoint import Checkpoint
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
