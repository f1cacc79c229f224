"""What is copied next to written weights, and which of its entries must change."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from lit_merge.checkpoints.checkpoint import Checkpoint
from lit_merge.checkpoints.companions.config_fit import true_changes
from lit_merge.checkpoints.companions.files import (
    Companions,
    companions_of,
    configurations_of,
    copy_companions,
    with_most_tokens,
)
from lit_merge.checkpoints.companions.judging import Files


@dataclass(frozen=True)
class CopiedFiles:
    """The files that are copied next to weights.

    Attributes:
        companions: whose configuration and tokenizer are copied.
        rows: of a vocabulary that is cut.
        changes: entries of the configuration that are no longer true.
        others: configurations of all models that have one.
        copies: weights that are not written, being equal to others.
        lost: weights that are left out of the merge, and of what is written.
        expert: one whose weights show which of them are equal, where they are at hand.
    """

    companions: Companions
    rows: int | None = None
    changes: Mapping[str, Any] = field(default_factory=dict)
    others: Sequence[Mapping[str, Any]] = ()
    copies: frozenset[str] = frozenset()
    lost: tuple[str, ...] = ()
    expert: Checkpoint | None = None

    @classmethod
    def of(
        cls,
        checkpoints: Sequence[Checkpoint],
        shapes: Mapping[str, tuple[int, ...]],
        rows: int | None = None,
        most_tokens: bool = False,
    ) -> "CopiedFiles | None":
        """Of the first of these checkpoints that has a configuration; None where none has.

        Args:
            checkpoints: in the order in which they are asked.
            shapes: of the weights that are written.
            rows: of a vocabulary that is cut.
            most_tokens: whether the tokenizer may be another's, that has more tokens.

        Raises:
            MergeError: a tokenizer or a configuration that is no JSON.
        """
        found = companions_of(checkpoints, shapes)
        if found is None:
            return None
        found = with_most_tokens(found, checkpoints, shapes) if most_tokens else found
        return cls(found, rows, {} if rows is None else {"vocab_size": rows}, configurations_of(checkpoints))

    def with_changes(self, **entries: Any) -> "CopiedFiles":
        """With more entries that are true."""
        return replace(self, changes={**self.changes, **entries})

    def fitted(self, files: Files, kept: Collection[str]) -> "CopiedFiles":
        """With all entries by which these files load whole; `kept` are the base's own. See `true_changes`."""
        tied = any(one.get("tie_word_embeddings") for one in self.others)
        named = [one.get("architectures") for one in self.others]
        architectures = [str(name) for names in named if isinstance(names, list) for name in names]
        return replace(
            self,
            changes=true_changes(
                self.companions.folder,
                files,
                self.changes,
                self.rows,
                lambda missing: missing <= self.copies or (tied and not missing & set(self.lost)),
                architectures,
                kept,
                self._equal,
            ),
        )

    @property
    def names(self) -> list[str]:
        """Of the files that are copied."""
        return [name.as_posix() for _, name in self.companions.files()]

    def copy_to(self, target: Path) -> list[str]:
        """Copies the files; answers their names."""
        return copy_companions(self.companions, target, self.changes, self.rows)

    def _equal(self, one: str, other: str) -> bool:
        """Whether two matrices are the same in an expert; so where there is none that has both."""
        held = self.expert
        if held is None or one not in held.shapes or other not in held.shapes:
            return True
        return torch.equal(held.read(one), held.read(other))
