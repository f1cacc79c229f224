"""Vocabularies that differ by tokens which were added: a view of the rows that all checkpoints have."""

import re
from collections.abc import Mapping

from torch import Tensor

from lit_merge.checkpoints.checkpoint import Checkpoint
from lit_merge.checkpoints.selection import Selection
from lit_merge.checkpoints.updates import Update

# Matrices and biases with a row for every token, in the names of BERT, GPT-2, Llama and their kin.
_VOCABULARY = re.compile(r"(token_embeddings?|word_embeddings|embed_tokens|wte|lm_head|embed_out|embed_in)\b")


def is_vocabulary(name: str) -> bool:
    """Whether a weight of this name has a row for every token."""
    return bool(_VOCABULARY.search(name))


class Cropped(Selection):
    """A checkpoint of some of whose weights only the first rows are read.

    Args:
        source: the whole.
        rows: weight → number of rows.
    """

    def __init__(self, source: Checkpoint, rows: Mapping[str, int]) -> None:
        super().__init__(source, {name: name for name in source.shapes})
        self.rows = {name: count for name, count in rows.items() if name in self.shapes}
        self.shapes |= {name: (count, *self.shapes[name][1:]) for name, count in self.rows.items()}

    def read(self, name: str) -> Tensor:
        value = super().read(name)
        return value[: self.rows[name]].contiguous() if name in self.rows else value

    def update(self, name: str) -> Update | None:
        update = super().update(name)
        return update if update is None or name not in self.rows else update.first_rows(self.rows[name])
