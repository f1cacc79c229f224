"""Which weights of a model are decomposed: the one place that decides it."""

import re
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

from lit_merge.checkpoints.families import has_role
from lit_merge.errors import MergeError

Matrices = str | list[str]

_NOT_BLOCK = re.compile(r"(ln_|norm|bias|embed)", re.IGNORECASE)
# What a name begins with up to the number of its block.
_UP_TO_BLOCK = re.compile(r"^.*?\.\d+\.")


def select_matrices(shapes: Mapping[str, Sequence[int]], matrices: Matrices) -> frozenset[str]:
    """The names of the 2-D weights that a method decomposes.

    Args:
        shapes: name → shape of every weight.
        matrices: `block` (attention and MLP weights of the blocks; all weights of the blocks in a model that calls none
            of them so), `all` (every 2-D weight but `text_projection` and vocabulary-sized embeddings), `every`
            (`text_projection` too), or a list of shell patterns.

    Raises:
        MergeError: nothing is selected, or a pattern matches no matrix.
    """
    two_d = [name for name, shape in shapes.items() if len(shape) == 2]
    if matrices == "block":
        inside = [name for name in two_d if block_of(name) and not _NOT_BLOCK.search(name)]
        # A model that names its parts in ways of its own still has numbered blocks.
        selected = {name for name in inside if has_role("block", name.removeprefix(block_of(name)))} or set(inside)
    elif matrices in ("all", "every"):
        # Tables that are looked up are no maps of features.
        selected = {name for name in two_d if not has_role("vocabulary", name) and not has_role("segments", name)}
        if matrices == "all":
            selected = {name for name in selected if not has_role("text_projection", name)}
    elif isinstance(matrices, str):
        raise MergeError(f"matrices={matrices!r}: expected block, all, every or a list of name patterns")
    else:
        selected = set()
        for pattern in matrices:
            matched = {name for name in two_d if fnmatchcase(name, pattern)}
            if not matched:
                example = ", ".join(two_d[:3]) or "none"
                raise MergeError(
                    f"matrices: the pattern {pattern!r} matches no 2-D weight of the experts ({example}, …; a CLIP's "
                    "go by open_clip's names)"
                )
            selected |= matched
    if not selected:
        example = ", ".join(two_d[:3]) or "none"
        raise MergeError(
            f"matrices={matrices!r} selects none of the experts' 2-D weights ({example}): take all, or name patterns"
        )
    return frozenset(selected)


def block_of(name: str) -> str:
    """What a weight's name begins with up to the number of its block; empty outside blocks.

    >>> block_of("transformer.resblocks.3.mlp.c_fc.weight")
    'transformer.resblocks.3.'
    """
    match = _UP_TO_BLOCK.match(name)
    return match.group() if match else ""
