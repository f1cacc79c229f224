"""Weights that some checkpoints of one model have and others do without."""

from collections.abc import Sequence

import torch

from lit_merge.checkpoints import Checkpoint, is_image
from lit_merge.checkpoints.cropping import is_vocabulary


def optional_weights(experts: Sequence[Checkpoint], base: Checkpoint | None) -> set[str]:
    """Names of what some of the checkpoints lack and none needs.

    That are buffers of positions, which transformers no longer writes; a second name of tied weights; and of a base
    that is a whole CLIP, the text tower that experts of the image tower have not. What else is in some of them only
    is for others to complain of.
    """
    everything = [*experts, *([] if base is None else [base])]
    shared = set(everything[0].shapes).intersection(*(one.shapes for one in everything))
    found = set()
    for name in set().union(*(one.shapes for one in everything)) - shared:
        having = [one for one in everything if name in one.shapes]
        beside = base is not None and having == [base] and _is_beside(name, base, experts[0])
        if beside or name.endswith("position_ids") or all(_is_copy(name, one, shared) for one in having):
            found.add(name)
    return found


def _is_beside(name: str, base: Checkpoint, expert: Checkpoint) -> bool:
    if base.naming.family == "plain" or name.startswith("other."):
        return False
    # Hugging Face's vision model ends before the projection.
    return not is_image(name) or (name == "proj" and expert.naming.family == "hugging_face")


def _is_copy(name: str, checkpoint: Checkpoint, shared: set[str]) -> bool:
    """Whether a matrix holds what another one of the same checkpoint does, that all checkpoints have."""
    shape, dtype = checkpoint.shapes[name], checkpoint.dtypes[name]
    alike = [one for one in shared if checkpoint.shapes[one] == shape and checkpoint.dtypes[one] == dtype]
    # Of vectors a vocabulary's biases have second names.
    alike = alike if len(shape) != 1 else [one for one in alike if is_vocabulary(one) and is_vocabulary(name)]
    if len(shape) not in (1, 2) or not alike:
        return False
    value = checkpoint.read(name)
    if len(shape) == 1:
        return any(torch.equal(checkpoint.read(one), value) for one in alike)
    # Matrices of zeros, as some layers begin with, are alike and yet no copies.
    return bool((value != value.flatten()[0]).any()) and any(torch.equal(checkpoint.read(one), value) for one in alike)
