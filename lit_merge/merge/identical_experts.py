"""Experts that are one file twice, or the base: probably a wrong path."""

import warnings
from collections.abc import Collection
from itertools import combinations

import torch

from lit_merge.errors import MergeWarning
from lit_merge.experts.experts import Experts
from lit_merge.experts.weight import Weight


class IdenticalExperts:
    """Which experts are identical, or the base, as far as the weights tell that have been compared.

    Args:
        experts: opened checkpoints.
        with_base: whether weights come with the base, which is compared too.
    """

    def __init__(self, experts: Experts, with_base: bool) -> None:
        self.experts = experts
        # The base comes after the experts.
        self.pairs = set(combinations(range(len(experts.tasks) + with_base), 2))

    def compare(self, weight: Weight) -> None:
        """Drops the pairs that differ in this weight."""
        distinct = weight.distinct
        # Counters come without the base's.
        distinct += distinct[:1] if len(distinct) == len(weight.experts) else []
        self.pairs = {(i, j) for i, j in self.pairs if torch.equal(distinct[i], distinct[j])}

    def warn(self, others: Collection[str]) -> None:
        """Warns of every pair that is left, once it has been compared in these other weights too."""
        files = [*self.experts.checkpoints.values(), self.experts.base]
        for i, j in sorted(self.pairs):
            one, other = files[i], files[j]
            assert one is not None
            assert other is not None
            pairs = ((one.read(name), other.read(name)) for name in others)
            if all(torch.equal(a.to(wide := torch.promote_types(a.dtype, b.dtype)), b.to(wide)) for a, b in pairs):
                names = self.experts.tasks[i : j + 1][:: j - i]
                message = (
                    f"experts {' and '.join(names)} are identical" if names[1:] else f"expert {names[0]} is the base"
                )
                warnings.warn(f"the {message}: is a path wrong?", MergeWarning, stacklevel=5)
