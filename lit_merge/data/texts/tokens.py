"""Texts as token ids: tokenised once, kept flat."""

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int32
from torch import Tensor

from lit_merge.checkpoints.json_text import read_object
from lit_merge.checkpoints.locations import resolve
from lit_merge.console import track
from lit_merge.data.streams import ImageSource
from lit_merge.errors import MergeError

# As networks of texts take them: see HuggingFaceTextEncoder.
PADDING, SEGMENT = -1, 1 << 24
# Texts that are tokenised in one go.
BATCH = 1000
# Tokenizers that know no limit say a number like 1e30.
UNLIMITED = 1 << 20
FILES = ("tokenizer.json", "vocab.txt", "vocab.json", "*.model", "tokenizer_config.json")

Text = tuple[str, ...]
"""A text, or a pair of them."""


class TokenisedTexts(ImageSource):
    """Token ids of texts, one after the other in memory.

    Args:
        ids: of all texts.
        ends: where each text ends in `ids`.
        table: what `names` calls the table that the texts are from.
        rows: the row of each text in that table, from 0.
        cut: how many texts were longer than the tokenizer allowed.
        decode: makes a text of ids.
    """

    def __init__(
        self,
        ids: Int32[np.ndarray, " M"],
        ends: Sequence[int],
        table: str,
        rows: Sequence[int],
        cut: int = 0,
        decode: Callable[[list[int]], str] | None = None,
    ) -> None:
        self.ids = torch.from_numpy(ids)
        self.ends = [0, *ends]
        self.table, self.rows, self.cut, self.decode = table, list(rows), cut, decode

    def __len__(self) -> int:
        return len(self.ends) - 1

    def read(self, indices: Sequence[int]) -> Int32[Tensor, "B S"]:
        """Padded with -1 to the longest of these."""
        parts = [self.ids[self.ends[i] : self.ends[i + 1]] for i in indices]
        return torch.nn.utils.rnn.pad_sequence(parts, batch_first=True, padding_value=PADDING)

    def names(self, indices: Sequence[int]) -> list[str]:
        """Table and row of each text."""
        return [f"{self.table}:{self.rows[i]}" for i in indices]

    def text(self, index: int) -> str | None:
        ids = self.ids[self.ends[index] : self.ends[index + 1]] % SEGMENT
        return None if self.decode is None else self.decode(ids.tolist())


class Tokens:
    """The tokenizer of a model of transformers.

    Args:
        folder: with its files.
        max_length: the most tokens of a text; by default as many as the tokenizer allows, and as the config.json
            next to it has positions for.

    Raises:
        MergeError: transformers is missing; no such folder, or no tokenizer in it; a length below 3.
    """

    def __init__(self, folder: str, max_length: int | None = None) -> None:
        self.folder = resolve(folder)
        if max_length is not None and max_length < 3:
            raise MergeError(f"max_length={max_length}: expected at least 3, for a word between two special tokens")
        self.tokenizer = _load(self.folder)
        most = min(self.tokenizer.model_max_length, _positions(self.folder, self.tokenizer))
        known = None if most > UNLIMITED else int(most)
        self.max_length = max_length if known is None else min(known, max_length or known)

    def tokenise(self, texts: Sequence[Text], table: str, rows: Sequence[int], label: str) -> TokenisedTexts:
        """Ids of all texts, cut to the longest that is allowed.

        Args:
            texts: all single, or all pairs.
            table, rows: where they are from; see `TokenisedTexts`.
            label: what the progress bar says.
        """
        flat, ends, cut, end = [], [], 0, 0
        starts = range(0, len(texts), BATCH)
        for start in track(starts, label, len(starts)):
            some = texts[start : start + BATCH]
            for ids in self._ids(some, self.max_length):
                end += len(ids)
                flat.append(np.asarray(ids, np.int32))
                ends.append(end)
            cut += self._cut(some, flat[-len(some) :])
        return TokenisedTexts(np.concatenate(flat), ends, table, rows, cut, self._decode)

    def _decode(self, ids: list[int]) -> str:
        return str(self.tokenizer.decode(ids, skip_special_tokens=True))

    def _ids(self, texts: Sequence[Text], max_length: int | None) -> Iterator[np.ndarray]:
        typed = "token_type_ids" in self.tokenizer.model_input_names
        found = self.tokenizer(
            *(list(column) for column in zip(*texts, strict=True)),
            truncation=max_length is not None,
            max_length=max_length,
            return_attention_mask=False,
            return_token_type_ids=typed,
            verbose=False,
        )
        segments = found["token_type_ids"] if typed else [[0] * len(ids) for ids in found["input_ids"]]
        for ids, types in zip(found["input_ids"], segments, strict=True):
            yield np.asarray(ids) + SEGMENT * (np.asarray(types) > 0)

    def _cut(self, texts: Sequence[Text], ids: Sequence[np.ndarray]) -> int:
        """How many of these were longer than what became of them."""
        full = [text for text, one in zip(texts, ids, strict=True) if len(one) == self.max_length]
        return sum(len(one) > (self.max_length or 0) for one in self._ids(full, None)) if full else 0


def _load(folder: Path) -> Any:
    try:
        from transformers import AutoTokenizer, logging
    except ModuleNotFoundError as error:
        raise MergeError("tokenizers of Hugging Face need transformers: pip install 'lit_merge[hf]'") from error
    if not folder.is_dir():
        raise MergeError(f"{folder}: no such folder of a tokenizer")
    if not any(path for pattern in FILES for path in folder.glob(pattern)):
        raise MergeError(f"{folder} holds no tokenizer (tokenizer.json or vocab.txt): give the data's tokenizer")
    logging.set_verbosity_error()
    try:
        return AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except Exception as error:  # transformers fails in as many ways as tokenizers are broken
        message = re.sub(r"\s+", " ", str(error)).strip() or type(error).__name__
        raise MergeError(f"{folder}: its tokenizer cannot be read: {message[:200]}") from error


def _positions(folder: Path, tokenizer: Any) -> int | float:
    """Positions of the model whose configuration lies next to the tokenizer; infinity where none does."""
    path = folder / "config.json"
    about = read_object(path, "configuration") if path.is_file() else {}
    found = about.get("max_position_embeddings")
    if not isinstance(found, int) or found < 1:
        return float("inf")
    # RoBERTa and its like count from behind the padding token, and add as many to a round number.
    padding = about.get("pad_token_id", tokenizer.pad_token_id)
    behind = (padding if isinstance(padding, int) else 0) + 1
    return found - behind if found % 8 and (found - behind) % 8 == 0 else found
