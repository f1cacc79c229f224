"""What methods may see of unlabelled inputs before there is a trainer: second moments, and a scale by entropy."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from lightning.fabric import Fabric

from lit_merge.bank.task_bank import TaskBank
from lit_merge.checkpoints.locations import resolve
from lit_merge.choose.activations import collect_moments
from lit_merge.choose.sample import Probe
from lit_merge.choose.scale import choose_scaling
from lit_merge.data import TaskData, check_tasks
from lit_merge.errors import MergeError
from lit_merge.experts.experts import Experts
from lit_merge.merge.scaling import at_scaling
from lit_merge.methods import MergeMethod, MomentsMethod
from lit_merge.networks import Network


@dataclass(frozen=True)
class Unlabelled:
    """A network, and the data whose unlabelled inputs it may be shown.

    Args:
        network: encoder and heads; None where a configuration names none.
        data: None where a configuration names none: then moments are not collected, and entropy cannot choose.
        accelerator: where the network runs for this.
    """

    network: Network | None
    data: TaskData | None
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
        if method.moments is not None and (folder is None or resolve(folder).exists()):
            return method
        check_tasks(self.data, experts.tasks)
        if self.data.mixed:
            raise MergeError(
                f"{type(method).__name__} looks at inputs of every task by itself, and the data mixes them: name a "
                "folder of moments with --model.method.moments"
            )
        with self._on_device(self.network):
            sources = self.data.unlabelled()
            try:
                moments = collect_moments(
                    experts, self.network, sources, method.samples, seed=self.data.seed, folder=folder
                )
            except MergeError:
                # Another process of the same run may have been faster.
                if folder is None or not resolve(folder).exists():
                    raise
        return method if folder else replace(method, moments=moments)

    def most_confident(self, bank: TaskBank, method: MergeMethod) -> TaskBank:
        """The bank at the scale that `choose_scaling` finds."""
        assert self.data is not None
        assert self.network is not None
        check_tasks(self.data, bank.tasks)
        with self._on_device(self.network):
            choice = choose_scaling(bank, method, Probe.draw(self.network, self.data))
        return at_scaling(bank, method, choice.scaling)

    @contextmanager
    def _on_device(self, network: Network) -> Iterator[None]:
        place = next(network.parameters()).device
        network.to(Fabric(accelerator=self.accelerator, devices=1).device)
        try:
            yield
        finally:
            network.to(place)
