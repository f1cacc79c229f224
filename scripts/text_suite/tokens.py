"""Texts as token ids."""

from pathlib import Path

import torch
from jaxtyping import Int16, UInt8
from tokenizers import Tokenizer
from torch import Tensor

from text_suite.encoder import PADDING
from text_suite.splits import Examples

LENGTH = 48


def tokenise(package: Path, examples: Examples) -> dict[str, tuple[Int16[Tensor, "N 48"], UInt8[Tensor, " N"]]]:
    """split → token ids, padded, and classes. Sorted by length, so that batches in that order are not all padding."""
    tokenizer = Tokenizer.from_file(str(package / "tokenizer.json"))
    tokenizer.enable_truncation(LENGTH)
    tokenizer.enable_padding(length=LENGTH, pad_id=PADDING)
    found = {}
    for split, texts in examples.splits.items():
        ids = torch.tensor([one.ids for one in tokenizer.encode_batch([text for text, _ in texts])], dtype=torch.int16)
        labels = torch.tensor([label for _, label in texts], dtype=torch.uint8)
        order = (ids != PADDING).sum(1).argsort(stable=True)
        found[split] = ids[order], labels[order]
    return found
