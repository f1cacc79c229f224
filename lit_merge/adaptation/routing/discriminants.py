"""Fisher's linear discriminants of features, and a normal distribution of each task among them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

# Ridge, in units of the mean variance within tasks, of features that are scaled to variance 1; and the share of the
# identity in the covariance of every task.
RIDGE, SHRINKAGE = 0.1, 0.1
COLUMNS = 4096


@dataclass(frozen=True, eq=False)
class Discriminants:
    """The T − 1 directions in which the means of T tasks are furthest apart, measured by the spread within tasks; and
    mean and covariance of every task along them.

    Attributes:
        centre: mean of the tasks' means, (d,).
        directions: (d, T − 1).
        means: of every task, (T, T − 1).
        roots: L of every task's covariance L·Lᵀ, (T, T − 1, T − 1).
    """

    centre: Float[Tensor, " d"]
    directions: Float[Tensor, "d q"]
    means: Float[Tensor, "T q"]
    roots: Float[Tensor, "T q q"]

    @classmethod
    def fit(cls, features: Sequence[Float[Tensor, "_ d"]]) -> "Discriminants":
        """Of the features of every task, in turn.

        With R the differences from a task's mean and C = RᵀR/N + ridge·I, C⁻¹·D is found from N × N products, for
        there may be many more features than inputs.
        """
        each = torch.stack([one.double().mean(0) for one in features])
        whole = torch.cat([one - mean.float() for one, mean in zip(features, each, strict=True)])
        spread = whole.double().square().mean(0).sqrt()
        spread = spread.clamp_min(1e-6 * spread.max()).clamp_min(1e-30)
        whole = whole.div_(spread * len(whole) ** 0.5)
        centre = each.mean(0)
        apart = (each - centre) / spread
        gram = torch.zeros(len(whole), len(whole), dtype=torch.float64)
        shift = torch.zeros(len(whole), len(each), dtype=torch.float64)
        for columns in range(0, whole.shape[1], COLUMNS):
            part = whole[:, columns : columns + COLUMNS].double()
            gram.addmm_(part, part.T)
            shift.addmm_(part, apart[:, columns : columns + COLUMNS].T)
        ridge = RIDGE * gram.trace().item() / whole.shape[1] or 1.0
        gram.diagonal().add_(ridge)
        inner = torch.linalg.solve(gram, shift)
        solved = (apart.T - torch.cat([part.double().T @ inner for part in whole.split(COLUMNS, 1)])) / ridge
        between = apart @ solved
        values, vectors = torch.linalg.eigh((between + between.T) / 2)
        # Differences from the mean of all sum to zero: one direction of T is none.
        kept = values[1:].clamp_min(1e-12 * values[-1].abs().item() + 1e-30)
        directions = solved @ vectors[:, 1:] / kept.sqrt() / spread[:, None]
        along = [(one.double() - centre) @ directions for one in features]
        means = torch.stack([one.mean(0) for one in along])
        roots = torch.stack([_root(one) for one in along])
        return cls(*(value.float() for value in (centre, directions, means, roots)))

    def log_densities(self, features: Float[Tensor, "B d"]) -> Float[Tensor, "B T"]:
        """log p(features | task) but for a constant."""
        along = (features - self.centre) @ self.directions
        apart = (along[None] - self.means[:, None]).mT
        squares = torch.linalg.solve_triangular(self.roots, apart, upper=False).square().sum(1)
        volumes = self.roots.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        return (-0.5 * squares - volumes[:, None]).T

    def to(self, device: torch.device) -> "Discriminants":
        """These on another device."""
        return Discriminants(*(value.to(device) for value in vars(self).values()))

    def tensors(self) -> dict[str, Tensor]:
        """By the names that a file gives them."""
        return {name: value.cpu().contiguous() for name, value in vars(self).items()}

    @classmethod
    def of_tensors(cls, tensors: Mapping[str, Any]) -> "Discriminants | None":
        """What `tensors` answered; None where these are none."""
        names = ("centre", "directions", "means", "roots")
        if not all(name in tensors and tensors[name].is_floating_point() for name in names):
            return None
        made = cls(*(tensors[name] for name in names))
        tasks = len(made.means)
        wanted = [(len(made.centre), tasks - 1), (tasks, tasks - 1), (tasks, tasks - 1, tasks - 1)]
        fits = [tuple(tensors[name].shape) for name in names[1:]] == wanted
        return made if fits and (made.roots.diagonal(dim1=-2, dim2=-1) > 0).all() else None


def _root(values: Float[Tensor, "N q"]) -> Float[Tensor, "q q"]:
    """L of the covariance, with a share of the identity, which is the mean one along discriminants."""
    apart = values - values.mean(0)
    covariance = (1 - SHRINKAGE) * apart.T @ apart / len(apart)
    covariance.diagonal().add_(SHRINKAGE)
    return torch.linalg.cholesky(covariance)
