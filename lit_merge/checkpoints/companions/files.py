"""The files next to a model's weights without which it does not load: configuration, tokenizer, chat template."""

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lit_merge.checkpoints.checkpoint import Checkpoint
from lit_merge.checkpoints.companions.cropping import is_vocabulary, rows_of
from lit_merge.checkpoints.companions.vocabularies import prints, token_count, tokenizer_of
from lit_merge.checkpoints.families import has_role
from lit_merge.checkpoints.folders import ADAPTER_CONFIG
from lit_merge.checkpoints.json_text import entries_of, read_object
from lit_merge.console import say

CONFIG = "config.json"
SUFFIXES = (".json", ".txt", ".model", ".jinja", ".tiktoken", ".py")
# What a tokenizer is made of, its chat template included.
_TOKENIZER = re.compile(
    r"(tokenizer|vocab|merges|added_tokens|special_tokens_map|spiece|sentencepiece|chat_template).*|.*\.(jinja|model|tiktoken)"
)
# What of it is copied, by names that no other file has.
COPIED = rf"({_TOKENIZER.pattern})|[\w-]*config[\w-]*\.json|(configuration|modeling|tokenization|\w*processing)_\w+\.py"
# Of a training, not of the model.
LEFT_OUT = ("trainer_state.json", "all_results.json", "train_results.json", "eval_results.json", ADAPTER_CONFIG)


@dataclass(frozen=True)
class Companions:
    """The folders with the files that belong next to weights.

    Attributes:
        folder: of a model: its configuration, and all else.
        tokenizer: of a LoRA adapter that has a tokenizer of its own, which takes the place of the model's.
    """

    folder: Path
    tokenizer: Path | None = None

    def files(self) -> Iterator[tuple[Path, Path]]:
        """Every file with its path in a model's folder."""
        for folder in filter(None, (self.tokenizer, self.folder)):
            for file in sorted(folder.rglob("*.jinja")) + sorted(folder.iterdir()):
                if file.suffix not in SUFFIXES or file.name in LEFT_OUT or file.name.endswith(".index.json"):
                    continue
                if self.tokenizer is None or (folder == self.tokenizer) == bool(_TOKENIZER.match(file.name)):
                    yield file, file.relative_to(folder)


def companions_of(
    checkpoints: Iterable[Checkpoint], shapes: Mapping[str, tuple[int, ...]] | None = None
) -> Companions | None:
    """The folders of the first of these checkpoints that has a configuration next to its weights, or next to its base's
    if it is a LoRA adapter. An adapter's own tokenizer is taken where it has no more tokens than there are rows.

    Args:
        checkpoints: in the order in which they are asked.
        shapes: of the weights that are written; None leaves adapters' tokenizers out.

    Raises:
        MergeError: a file of an adapter's tokenizer that is no JSON.
    """
    for checkpoint in checkpoints:
        folders = {file.parent for file in checkpoint.files}
        adapters = {folder for folder in folders if (folder / ADAPTER_CONFIG).exists()}
        (folder,) = folders - adapters if len(folders - adapters) == 1 else (None,)
        if folder is not None and (folder / CONFIG).is_file():
            own = None if shapes is None else next(iter(adapters), None)
            return Companions(folder, own if own is not None and _fits(own, shapes or {}, folder) else None)
    return None


def configurations_of(checkpoints: Iterable[Checkpoint]) -> list[dict[str, Any]]:
    """What config.json next to each of these checkpoints says, of those that have one.

    Raises:
        MergeError: one that is no JSON.
    """
    folders = dict.fromkeys(file.parent for checkpoint in checkpoints for file in checkpoint.files)
    return [read_object(folder / CONFIG, "configuration") for folder in folders if (folder / CONFIG).is_file()]


def _fits(adapter: Path, shapes: Mapping[str, tuple[int, ...]], folder: Path) -> bool:
    """Whether an adapter's folder has a tokenizer, of no token that the weights have no row for."""
    rows = min((rows_of(name, shape) for name, shape in shapes.items() if is_vocabulary(name)), default=None)
    count = token_count(adapter)
    if count == 0 or rows is None or count <= rows:
        return count > 0
    say(f"{adapter}: its tokenizer has {count} tokens for {rows} rows of the vocabulary: that of {folder} is taken")
    return False


def with_most_tokens(
    found: Companions, checkpoints: Iterable[Checkpoint], shapes: Mapping[str, tuple[int, ...]]
) -> Companions:
    """The folders, with the tokenizer that numbers most rows of the vocabulary. In all checkpoints numbers mean the
    same tokens, and a smaller tokenizer would lose a token whose row is there. Unchanged where none has more tokens.

    Raises:
        MergeError: a file of a tokenizer that is no JSON.
    """
    folders = list(dict.fromkeys(filter(None, map(tokenizer_of, checkpoints))))
    rows = max((rows_of(name, shape) for name, shape in shapes.items() if is_vocabulary(name)), default=0)
    if not rows or len({tuple(sorted(prints(folder).items())) for folder in folders}) < 2:
        return found
    counts = {folder: token_count(folder) for folder in folders}
    fitting = {folder: count for folder, count in counts.items() if count <= rows}
    most = max(fitting, key=fitting.__getitem__, default=None)
    if most is None or fitting[most] <= counts.get(found.tokenizer or found.folder, 0):
        return found
    return replace(found, tokenizer=None if most == found.folder else most)


def ties_head(folder: Path, names: Collection[str]) -> str | None:
    """The matrix of embeddings that is a language model's output layer too, by the configuration in its folder; None
    where the weights have an output layer of their own, or there is none."""
    about = entries_of(folder / CONFIG)
    kinds = str(about.get("architectures"))
    # transformers leaves out of the file what is so by default.
    tied = bool(about.get("tie_word_embeddings", True)) and ("LMHead" in kinds or "CausalLM" in kinds)
    if not tied or any(has_role("output_layer", name) for name in names):
        return None
    return next((name for name in names if is_vocabulary(name)), None)
