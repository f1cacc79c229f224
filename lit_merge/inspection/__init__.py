"""The verb `inspect`: any checkpoint, bank or run as a tree, from headers and small files only."""

from lit_merge.inspection.weights import weight_tree

__all__ = ["weight_tree"]
