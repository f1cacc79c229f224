"""What kind of models experts are, by names of weights and configurations next to them: nothing is built."""

from collections.abc import Mapping
from enum import Enum

from lit_merge.checkpoints import Checkpoint
from lit_merge.checkpoints.families import has_role
from lit_merge.checkpoints.families.open_clip import OPEN_CLIP
from lit_merge.checkpoints.families.plain import PLAIN_FAMILY
from lit_merge.checkpoints.json_text import entries_of
from lit_merge.errors import MergeError

TOWERS = {"trunk.": "timm", "attnpool.": "resnet"}
"""What names of weights begin with → whose tower it is."""


class ModelKind(Enum):
    """The kinds that have a first configuration of their own. The values are for messages."""

    CLIP = "CLIP image encoders"
    TEXT = "text classifiers"
    LANGUAGE = "language models"
    OTHER = "models of another kind"


def kind_of(experts: Mapping[str, Checkpoint]) -> ModelKind:
    """The kind of all experts.

    Args:
        experts: task → opened checkpoint.

    Raises:
        MergeError: experts of several kinds.
    """
    kinds = {task: _kind(checkpoint) for task, checkpoint in experts.items()}
    if len(set(kinds.values())) > 1:
        parts = [
            f"{kind.value} ({', '.join(task for task in kinds if kinds[task] is kind)})"
            for kind in dict.fromkeys(kinds.values())
        ]
        raise MergeError(f"the experts are of several kinds: {', '.join(parts)}: give a folder with one kind")
    return next(iter(kinds.values()))


def architectures(checkpoint: Checkpoint) -> list[str]:
    """The classes of transformers that `config.json` next to the weights names; none where there is no such file."""
    found = [name for path in checkpoint.files for name in _listed(entries_of(path.parent / "config.json"))]
    return list(dict.fromkeys(found))


def tower_of(checkpoint: Checkpoint) -> str | None:
    """What open_clip builds the image tower by that is no transformer of its own: `timm`, `resnet`, or None."""
    return next(
        (kind for start, kind in TOWERS.items() if any(name.startswith(start) for name in checkpoint.shapes)), None
    )


def library_of(checkpoint: Checkpoint) -> str:
    """Whose names a CLIP's weights have. open_clip's image tower has the canonical ones."""
    return OPEN_CLIP.title if checkpoint.naming.family == PLAIN_FAMILY.name else checkpoint.naming.rules.title


def _listed(about: Mapping[str, object]) -> list[str]:
    found = about.get("architectures")
    return [str(name) for name in found] if isinstance(found, list) else []


def _kind(checkpoint: Checkpoint) -> ModelKind:
    if checkpoint.naming.family != PLAIN_FAMILY.name or all(name in checkpoint.shapes for name in OPEN_CLIP.signature):
        return ModelKind.CLIP
    if tower_of(checkpoint):
        return ModelKind.CLIP
    classes = architectures(checkpoint)
    if any(name.endswith("ForSequenceClassification") for name in classes):
        return ModelKind.TEXT
    if any(name.endswith(("ForCausalLM", "LMHeadModel")) for name in classes):
        return ModelKind.LANGUAGE
    if any(has_role("output_layer", name) for name in checkpoint.shapes):
        return ModelKind.LANGUAGE
    if any("embeddings.word_embeddings." in name for name in checkpoint.shapes):
        return ModelKind.TEXT
    vocabulary = any(has_role("vocabulary", name) for name in checkpoint.shapes)
    return ModelKind.LANGUAGE if vocabulary else ModelKind.OTHER
