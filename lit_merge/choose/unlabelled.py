"""What methods may see of unlabelled inputs before there is a trainer: second moments, and a scale by entropy."""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

import torch

from lit_merge.bank.task_bank import TaskBank
from lit_merge.checkpoints.locations import resolve
from lit_merge.checkpoints.outputs import is_kept
from lit_merge.choose.activations import collect_moments
from lit_merge.choose.sample import Probe
from lit_merge.choose.scale import choose_scaling
from lit_merge.data import TaskData, check_tasks
from lit_merge.errors import MergeError
from lit_merge.experts.experts import Experts
from lit_merge.merge.scaling import at_scaling
from lit_merge.methods import MergeMethod, MomentsMethod
from lit_merge.networks import Network

T = TypeVar("T")


class Later(Generic[T]):
    """A network or data that is built when it is first needed: most merges look at neither.

    Args:
        kind: its class.
        build: builds it.
    """

    def __init__(self, kind: type[T], build: Callable[[], T]) -> None:
        self.kind, self.build = kind, build

    @functools.cached_property
    def built(self) -> T:
        return self.build()


def built(value: T | Later[T] | None) -> T | None:
    """The value itself, built now where it was to be built later."""
    return value.built if isinstance(value, Later) else value


@dataclass(frozen=True)
class Unlabelled:
    """A network, and the data whose unlabelled inputs it may be shown.

    Args:
        network: encoder and heads; None where a configuration names none.
        data: None where a configuration names none: then moments are not collected, and entropy cannot choose.
        accelerator: where the network runs for this.
    """

    network: Network | Later[Network] | None
    data: TaskData | Later[TaskData] | None
    accelerator: str = "auto"

    def check(self, method: MergeMethod) -> None:
        """Raises MergeError, before anything is computed, where the method's rule needs inputs that are not there."""
        if method.scale == "entropy" and (self.data is None or self.network is None):
            what = "--data" if self.data is None else "--model.network"
            raise MergeError(
                f"scaling=entropy looks at unlabelled inputs: give {what}, or a number, or self_consistent"
            )

    def prepare(self, method: MergeMethod, experts: Experts) -> MergeMethod:
        """The method with second moments of these experts, where it looks at such and there is data.

        Moments that are named as a folder are collected and written there once, and read from it afterwards.

        Raises:
            MergeError: fewer inputs than the method asks for; a folder that cannot be written.
        """
        if not isinstance(method, MomentsMethod) or self.data is None or self.network is None:
            return method
        folder = method.moments if isinstance(method.moments, str) else None
        if method.moments is not None and (folder is None or is_kept(resolve(folder))):
            return method
        network, data = built(self.network), built(self.data)
        assert network is not None
        assert data is not None
        check_tasks(data, experts.tasks)
        if data.mixed:
            raise MergeError(
                f"{type(method).__name__} looks at inputs of every task by itself, and the data mixes them: name a "
                "folder of moments with --model.method.moments"
            )
        data.suit(network)
        with self._on_device(network):
            sources = data.unlabelled()
            try:
                moments = collect_moments(experts, network, sources, method.samples, seed=data.seed, folder=folder)
            except MergeError:
                # Another process of the same run may have been faster.
                if folder is None or not resolve(folder).exists():
                    raise
        return method if folder else replace(method, moments=moments)

    def most_confident(self, bank: TaskBank, method: MergeMethod) -> TaskBank:
        """The bank at the scale that `choose_scaling` finds."""
        network, data = built(self.network), built(self.data)
        assert network is not None
        assert data is not None
        check_tasks(data, bank.tasks)
        with self._on_device(network):
            choice = choose_scaling(bank, method, Probe.draw(network, data))
        return at_scaling(bank, method, choice.scaling)

    @contextmanager
    def _on_device(self, network: Network) -> Iterator[None]:
        place = next(network.parameters()).device
        network.to(device_of(self.accelerator))
        try:
            yield
        finally:
            network.to(place)


def device_of(accelerator: str) -> torch.device:
    """The first device of this kind: `auto` is a GPU where there is one, `gpu` any GPU.

    Raises:
        MergeError: there is none.
    """
    there = torch.accelerator.current_accelerator(check_available=True)
    if accelerator == "cpu" or (accelerator == "auto" and there is None):
        return torch.device("cpu")
    if there is None or accelerator not in ("auto", "gpu", there.type):
        found = "none" if there is None else there.type
        raise MergeError(f"accelerator={accelerator}: there is no such device (apart from the CPU: {found})")
    return torch.device(there.type, 0)
