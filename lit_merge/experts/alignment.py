"""Which weights all checkpoints of a merge share, and how checkpoints differ."""

import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase

import torch

from lit_merge.checkpoints import PLAIN, Checkpoint, is_image, named_like, without
from lit_merge.checkpoints.companions.cropping import Cropped, is_vocabulary, resized, rows_of, vocabulary
from lit_merge.checkpoints.companions.vocabularies import Conflict, conflicts, tokenizer_of
from lit_merge.checkpoints.families import has_role
from lit_merge.errors import MergeError, MergeWarning


def optional_weights(experts: Sequence[Checkpoint], base: Checkpoint | None) -> set[str]:
    """Names of what some of the checkpoints lack and none needs.

    That are buffers of positions, which transformers no longer writes; a second name of tied weights; and of a base
    that is a whole CLIP, the text tower that experts of the image tower lack. What else is in some of them only
    is for others to complain of.
    """
    everything = [*experts, *([] if base is None else [base])]
    shared = set(everything[0].shapes).intersection(*(one.shapes for one in everything))
    found = set()
    for name in set().union(*(one.shapes for one in everything)) - shared:
        having = [one for one in everything if name in one.shapes]
        of_base = base is not None and having == [base] and _only_of_base(name, base, experts[0])
        if of_base or has_role("buffer", name) or all(_is_copy(name, one, shared) for one in having):
            found.add(name)
    return found


def _only_of_base(name: str, base: Checkpoint, expert: Checkpoint) -> bool:
    if base.naming.family == PLAIN.family or name.startswith("other."):
        return False
    return not is_image(name) or name in expert.naming.rules.may_lack


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


Checkpoints = dict[str, Checkpoint]


def align(
    experts: Mapping[str, Checkpoint], base: Checkpoint | None, exclude: Sequence[str] = (), crop: bool = False
) -> tuple[Checkpoints, Checkpoint | None]:
    """Views of the weights that are merged: without what is excluded and what some lack and none needs, the base by the
    names of the experts, vocabularies cut to the rows that all have.

    Args:
        experts: task → checkpoint.
        base: the pretrained one, where it is known.
        exclude: shell patterns of names.
        crop: whether vocabularies are cut.

    Raises:
        MergeError: a pattern that matches no weight, or patterns that leave none.
    """
    files = [*experts.values(), *([] if base is None else [base])]
    excluded = matching(exclude, dict.fromkeys(name for file in files for name in (*file.shapes, *file.unfit)))
    for file in files:
        file.refuse_unfit((n for n in file.unfit if n not in excluded), ": leave it out with exclude: [{name}]")
    views = {task: without(file, excluded) for task, file in experts.items()}
    first = next(iter(views.values()))
    if exclude and not first.shapes:
        raise MergeError(f"exclude={list(exclude)} leaves no weight of {first.label} to merge")
    pretrained = None if base is None else named_like(without(base, excluded), first.shapes)
    optional = optional_weights(list(views.values()), pretrained)
    views = {task: without(one, optional) for task, one in views.items()}
    pretrained = None if pretrained is None else without(pretrained, optional)
    if crop:
        rows = common_rows([*views.values(), *([] if pretrained is None else [pretrained])])
        views = {task: Cropped(one, rows) for task, one in views.items()}
        pretrained = None if pretrained is None else Cropped(pretrained, rows)
    return views, pretrained


def common_rows(checkpoints: Sequence[Checkpoint]) -> dict[str, int]:
    """Weight → number of rows that are the same tokens in all checkpoints, of vocabularies that differ in it."""
    vocabularies = _vocabularies(checkpoints)
    tokens = min((one.number for one in token_conflicts(checkpoints) if one.number is not None), default=None)
    found = {}
    for name in (name for name in checkpoints[0].shapes if name in vocabularies):
        shapes = {one.shapes[name] for one in checkpoints if name in one.shapes}
        rows = [rows_of(name, shape) for shape in shapes]
        least = min(rows) if tokens is None else min(*rows, tokens)
        if least and {least} != set(rows) and len({resized(name, shape, least) for shape in shapes}) == 1:
            found[name] = least
    whole = max(
        (min(rows_of(name, one.shapes[name]) for one in checkpoints if name in one.shapes) for name in found), default=0
    )
    if tokens and 2 * tokens < whole:
        warnings.warn(
            f"crop: the tokenizers are the same up to token {tokens} only: no more rows of {whole} are "
            f"merged; exclude: [{', '.join(found)}] keeps the base's",
            MergeWarning,
            stacklevel=2,
        )
    return found


def token_conflicts(checkpoints: Sequence[Checkpoint]) -> list[Conflict]:
    """Where numbers of tokens, of rows that these merge, mean other tokens in one than in those before it.

    Raises:
        MergeError: a tokenizer that cannot be read.
    """
    vocabularies = _vocabularies(checkpoints)
    rows = [
        max((rows_of(name, one.shapes[name]) for name in vocabularies & one.shapes.keys()), default=0)
        for one in checkpoints
    ]
    return list(conflicts([tokenizer_of(one) for one in checkpoints], min(rows))) if min(rows) else []


def differences(experts: Mapping[str, Checkpoint], base: Checkpoint | None) -> Iterator[MergeError]:
    """Every way in which these do not fit together, from headers alone, and from the files of tokenizers."""
    first, *others = experts.items()
    for task, checkpoint in others:
        yield from _compare(first[1], checkpoint, task, dtypes=True)
    if base is not None:
        # The base may be stored in another precision: experts are often saved in half of it.
        yield from _compare(first[1], base, "base", dtypes=False)
    files = dict(experts) | ({} if base is None else {"base": base})
    names = _vocabularies(list(files.values()))
    for index, number, message in token_conflicts(list(files.values())):
        excluded = f"exclude: [{', '.join(name for name in first[1].shapes if name in names)}] merges the rest only"
        crop = f"crop: true merges the first {number} rows, which are the same tokens in all; " if number else ""
        yield MergeError(
            f"{message}: their rows of the vocabulary are of different tokens and cannot be merged; {crop}{excluded}",
            task=list(files)[index],
        )


def _vocabularies(checkpoints: Sequence[Checkpoint]) -> set[str]:
    return set().union(*(vocabulary(one) for one in checkpoints))


def matching(patterns: Sequence[str], names: Collection[str]) -> set[str]:
    """The names that any of the shell patterns matches.

    Raises:
        MergeError: a pattern that matches none.
    """
    found: set[str] = set()
    for pattern in patterns:
        matched = {name for name in names if name == pattern or fnmatchcase(name, pattern)}
        if not matched:
            near = get_close_matches(pattern, names, n=1, cutoff=0)
            message = f"; the nearest is {near[0]}" if near else ""
            raise MergeError(f"exclude: the pattern {pattern!r} matches no weight of the experts{message}")
        found |= matched
    return found


def _compare(first: Checkpoint, other: Checkpoint, task: str, dtypes: bool) -> Iterator[MergeError]:
    for name in sorted(first.shapes.keys() ^ other.shapes.keys()):
        has, lacks = (first, other) if name in first.shapes else (other, first)
        lacking = lacks.name_of(name)
        where = "" if has.name_of(name) == lacking else f" as {has.name_of(name)}"
        yield MergeError(
            f"{lacks.label} has no weight {lacking}, which {has.label} has{where}: all must be fine-tuned from one "
            "checkpoint",
            task=task,
            weight=lacking,
        )
    for name, shape in first.shapes.items():
        if name not in other.shapes:
            continue
        called, there = first.name_of(name), other.name_of(name)
        where = other.label if there == called else f"{other.label} ({there})"
        if shape != other.shapes[name]:
            yield MergeError(
                f"{called} has shape {list(shape)} in {first.label} and {list(other.shapes[name])} in {where}; "
                + _way_out(name, first, other),
                task=task,
                weight=there,
            )
        kinds = first.dtypes[name], other.dtypes[name]
        # Numbers of other precisions are numbers; of a base integers may be, which nothing is subtracted from.
        floating = [kind.is_floating_point for kind in kinds]
        if floating[0] != floating[1] or (dtypes and kinds[0] != kinds[1] and not all(floating)):
            yield MergeError(
                f"{called} is {first.dtypes[name]} in {first.label} and {other.dtypes[name]} in {where}: "
                "save all of them in one dtype",
                task=task,
                weight=there,
            )


def _way_out(name: str, first: Checkpoint, other: Checkpoint) -> str:
    names = _vocabularies([first, other])

    def grown(one: str) -> bool:
        shape, there = first.shapes[one], other.shapes.get(one, ())
        if one not in names or len(shape) != len(there) or shape == there:
            return False
        return resized(one, shape, 0) == resized(one, there, 0)

    if not grown(name):
        return f"what is each task's own, as a head, is left out of the merge with exclude: [{name}]"
    rows = min(rows_of(name, one.shapes[name]) for one in (first, other))
    listed = ", ".join(one for one in first.shapes if grown(one))
    return (
        f"their vocabularies differ by added tokens: crop: true merges the first {rows} rows of all, without the "
        f"tokens that come after them; exclude: [{listed}] merges the rest only"
    )
