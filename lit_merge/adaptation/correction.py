"""A shared correction: what is learnt of the origin, one for all tasks, next to the coefficients."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lit_merge.bank.task_bank import TaskBank
from lit_merge.errors import Finite, MergeError
from lit_merge.networks import Network

# The fit's own seed would give every other random choice another value where a correction is added.
SEED = 0


@dataclass(frozen=True)
class Correction(Finite):
    """Learn a correction of the origin, one for all tasks, next to the coefficients.

    Args:
        rank: of the correction A·B of every matrix; what is no matrix, or has no larger rank, is corrected as a whole.
            None corrects every weight as a whole, which is distillation into the merged model.
        lr: Adam's learning rate for the correction.

    Raises:
        MergeError: a rank or a rate that is not above 0.
    """

    rank: int | None = 32
    lr: float = 1e-3

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rank is not None and self.rank < 1:
            raise MergeError(f"correction: rank={self.rank}: expected at least 1, or null to learn whole weights")
        if self.lr <= 0:
            raise MergeError(f"correction: lr={self.lr}: expected a number above 0")


class SharedCorrection(nn.Module):
    """The learnable parts of a correction, by the names that a bank gives them: see `TaskBank.learnt`.

    At the start it is 0: A of every product is. A bank that has a correction goes on with it.

    Args:
        bank: whose origin is corrected.
        network: whose weights are learnt; what it only stores, as running means, stays.
        rank: see `Correction`.

    Raises:
        MergeError: the rank is above that of every matrix; no parameter of the network is the bank's; the bank has a
            correction of another rank.
    """

    def __init__(self, bank: TaskBank, network: Network, rank: int | None) -> None:
        super().__init__()
        shapes = {name: shape for name, shape in bank.shapes.items() if network.learns(name)}
        if not shapes:
            raise MergeError(
                f"correction: {type(network).__name__} has no parameter that the bank calls so, as "
                f"{next(iter(bank.shapes))}: its method `learns` says which it has"
            )
        start = _start(shapes, rank)
        found = bank.correction
        if found and {name: value.shape for name, value in found.items()} != {k: v.shape for k, v in start.items()}:
            raise MergeError(
                f"correction: rank={rank}: the correction that this bank has from an earlier fit is of another rank"
            )
        wide = torch.promote_types(bank.coefficients.dtype, torch.float32)
        self.names = tuple(start)
        self.parts = nn.ParameterList(
            nn.Parameter(found.get(name, value).detach().clone().to(wide)) for name, value in start.items()
        )

    def forward(self) -> dict[str, Tensor]:
        """Name in the bank → value."""
        return dict(zip(self.names, self.parts, strict=True))


def _start(shapes: dict[str, tuple[int, ...]], rank: int | None) -> dict[str, Tensor]:
    matrices = [name for name, shape in shapes.items() if rank is not None and len(shape) == 2 and min(shape) > rank]
    if rank is not None and not matrices:
        largest = max((min(shape) for shape in shapes.values() if len(shape) == 2), default=0)
        raise MergeError(
            f"correction: rank={rank}: expected less than {largest}, the rank of the largest matrix; or null"
        )
    generator = torch.Generator().manual_seed(SEED)
    start: dict[str, Tensor] = {}
    for name, shape in shapes.items():
        if name in matrices:
            assert rank is not None
            start[f"A/{name}"] = torch.zeros(shape[0], rank)
            start[f"B/{name}"] = torch.randn(rank, shape[1], generator=generator) / shape[1] ** 0.5
        else:
            start[f"correction/{name}"] = torch.zeros(shape)
    return start
