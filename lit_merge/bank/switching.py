"""Weights of a bank written into a live module, in place."""

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from lit_merge.checkpoints import PLAIN, Naming, rename
from lit_merge.errors import MergeError


class Slots:
    """Where the weights of a bank lie in a module: found once, before anything is written.

    Args:
        module: its parameters and persistent buffers go by the names of the experts' files, or by canonical names.
        shapes: of the bank's weights, by canonical names.
        naming: of the experts' files.
        strict: whether the module may have no parameter that the bank lacks.

    Raises:
        MergeError: a weight that the module lacks, or has in another shape; with `strict`, one that the bank lacks;
            a module on the device `meta`, which has no memory to write to.
    """

    def __init__(
        self, module: nn.Module, shapes: Mapping[str, Sequence[int]], naming: Naming, strict: bool = True
    ) -> None:
        title = type(module).__name__
        held = {name: one for name, one in module.state_dict(keep_vars=True).items() if isinstance(one, Tensor)}
        empty = {name: torch.empty(tuple(shape), device="meta") for name, shape in shapes.items()}
        absent: list[str] = []
        for self.naming in dict.fromkeys((naming, PLAIN)):
            parts = {name: rename({name: value}, self.naming) for name, value in empty.items()}
            wanted = {key: tuple(value.shape) for one in parts.values() for key, value in one.items()}
            if wanted.keys() <= held.keys():
                break
            absent.append(min(wanted.keys() - held.keys()))
        else:
            raise MergeError(
                f"{title} has no weight {absent[0]}, which the bank has: it is another architecture", weight=absent[0]
            )
        for name, shape in wanted.items():
            if tuple(held[name].shape) != shape:
                raise MergeError(
                    f"{title}: {name} has shape {list(held[name].shape)}, in the bank {list(shape)}: it is another "
                    "architecture",
                    weight=name,
                )
            if held[name].is_meta:
                raise MergeError(f"{title} is on the device meta: move it with to_empty first", weight=name)
        self.targets = {name: {key: held[key] for key in one} for name, one in parts.items()}
        places: dict[tuple[int, torch.Size], list[str]] = {}
        for name in wanted:
            places.setdefault(_place(held[name]), []).append(name)
        own = {name for name, _ in module.named_parameters(remove_duplicate=False)}
        others = sorted(name for name in held if name in own and _place(held[name]) not in places)
        if strict and others:
            raise MergeError(
                f"{title} has {others[0]}, which the bank lacks ({len(others)} such in all): with strict=False they "
                "stay as they are",
                weight=others[0],
            )
        weights = {key: name for name, one in parts.items() for key in one}
        self.tied = [[weights[key] for key in keys] for keys in places.values() if len(keys) > 1]
        """Groups of the bank's weights that are one tensor in the module."""
        self.device = next(iter(held.values())).device if held else torch.device("cpu")

    @torch.no_grad()
    def write(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Writes weights, by canonical names, as they come; what autograd saved of the old ones is out of date."""
        for name, value in weights:
            for key, part in rename({name: value}, self.naming).items():
                self.targets[name][key].copy_(part, non_blocking=True)


def _place(value: Tensor) -> tuple[int, torch.Size]:
    return value.data_ptr(), value.shape
