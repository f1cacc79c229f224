"""Transforms of task vectors, in front of any method."""

from lit_merge.transforms.awd import AWD
from lit_merge.transforms.base import Transform

__all__ = ["AWD", "Transform"]
