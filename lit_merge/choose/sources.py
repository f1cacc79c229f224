"""What a configuration merges: experts and a method, or a bank that was saved."""

import functools
from pathlib import Path
from typing import Any, cast

import torch

from lit_merge import __version__
from lit_merge.bank.files import AnyFile
from lit_merge.bank.task_bank import TaskBank
from lit_merge.checkpoints import Checkpoint, canonical, open_checkpoint
from lit_merge.checkpoints.locations import resolve
from lit_merge.choose.unlabelled import Later, Unlabelled, built
from lit_merge.console import LISTED, say
from lit_merge.data import TaskData
from lit_merge.errors import MergeError
from lit_merge.experts.decompositions import Decompositions
from lit_merge.experts.experts import Experts
from lit_merge.experts.files import expert_files, open_all
from lit_merge.merge.job import Job, Svd
from lit_merge.merge.processes import CPU
from lit_merge.methods import MergeMethod, MomentsMethod, Transform
from lit_merge.networks import Network


class Sources:
    """Opened experts with a method for them, or the path of a bank; nothing is merged before it is asked for.

    Args:
        network: encoder and heads; merge and export need none.
        experts: task → checkpoint of any format, or a folder with one for every task, named after it: files, folders of
            Hugging Face, PEFT LoRA folders, `hf://org/name`, `zoo:8/experts/mnist.safetensors` of the built-in suite.
        base: the pretrained checkpoint, which LoRA experts need; CART and weight averaging need it for the report only.
        exclude: shell patterns of weights that are not merged, as `classifier.*`; by default those that are not of the
            network's encoder, which are named when the experts are opened. [] merges all.
        crop: of vocabularies that differ by tokens which were added, merge the rows that all have.
        method: how the experts are merged.
        transform: what is done to the task vectors first.
        bank: folder of a saved task bank to use instead of merging; its coefficients are where things start.
        decompositions: folder in which singular value decompositions are kept for later runs; `memory` keeps them for
            this one (sweep).
        svd: `auto` decomposes large matrices only as far as is asked for; `exact` decomposes all as a whole.
        data: set by the command line: where methods that look at unlabelled inputs take them from.
        accelerator: set by the command line: where those inputs are run.

    Raises:
        MergeError: neither experts and method nor a bank; files that cannot be read or do not fit together.
    """

    def __init__(
        self,
        network: Network | None = None,
        experts: dict[str, str] | str | None = None,
        base: str | None = None,
        exclude: list[str] | None = None,
        crop: bool = False,
        method: MergeMethod | None = None,
        transform: Transform | None = None,
        bank: str | None = None,
        decompositions: str | None = None,
        svd: Svd = "auto",
        data: TaskData | None = None,
        accelerator: str = "auto",
    ) -> None:
        # From Python experts may be open already, and network and data may be built later.
        if experts and not isinstance(experts, Experts):
            experts = cast(Any, open_experts(network, expert_files(experts, base), base, exclude, crop))
        self.experts = cast("Experts | None", experts or None)
        self.method, self.transform, self.saved, self._base = method, transform, bank, base
        if bank is None and (self.experts is None or method is None):
            raise MergeError("nothing to merge: give --model.experts and --model.method, or --model.bank")
        self.decompositions, self.svd = None, svd
        if decompositions is not None and self.experts is not None:
            self.decompositions = shared_decompositions(decompositions, self.experts, transform)
        self.unlabelled = Unlabelled(network, data, accelerator)

    def bank(self) -> TaskBank:
        """The bank that was saved, or one that is built now, at the scale that the method names or finds."""
        if self.saved is not None:
            return self.stored[1]
        return self.at_scale(self.job().build())

    def at_scale(self, bank: TaskBank) -> TaskBank:
        """The bank that was built, at the scale that the method's rule finds with unlabelled inputs, if it has one."""
        method = self.method
        return bank if method is None or method.scale != "entropy" else self.unlabelled.most_confident(bank, method)

    def job(self, device: torch.device = CPU) -> Job:
        """The method, about to run over the experts; matrices are decomposed on this device."""
        experts, method = self._prepare()
        return Job.open(experts, method, self.transform, self.decompositions, self.svd, device)

    def plan(self) -> list[object] | None:
        """All that makes a merge what it is, once `job` has been asked for: of the same plan two merges are the same.
        None where weights are in memory only: nothing would distinguish them from others."""
        versions = [__version__, torch.__version__]
        if self.saved is not None:
            return [*versions, *(file.stamp for file in self._opened[1].inputs)]
        experts, method = self.experts, self.method
        assert experts is not None
        assert method is not None
        moments = method.moments if isinstance(method, MomentsMethod) else None
        if experts.identity is None or not isinstance(moments, str | None):
            return None
        files = [] if moments is None else _stamps(*sorted(resolve(moments).iterdir()))
        transform = None if self.transform is None else self.transform.describe()
        about = [method.describe(), transform, self.svd, experts.tasks, list(experts.shapes.items())]
        return [*versions, *about, experts.identity, files]

    @property
    def files(self) -> list[Path]:
        """That are read, as far as they are known."""
        bank = [] if self.saved is None else [resolve(self.saved) / name for name in ("bank.json", "bank.safetensors")]
        base = [] if self.base is None else self.base.files
        return [*bank, *base, *([] if self.experts is None else self.experts.files)]

    @functools.cached_property
    def stored(self) -> tuple[TaskBank, TaskBank]:
        """The bank that was saved without its values, see `TaskBank.open`; and as one whose values are read when they
        are asked for."""
        frame, file = self._opened
        return self._checked(frame), frame.reading(file.read, file.read_row)

    @functools.cached_property
    def _opened(self) -> tuple[TaskBank, AnyFile]:
        assert self.saved is not None
        return TaskBank.open(self.saved, self._base)

    @functools.cached_property
    def base(self) -> Checkpoint | None:
        """The pretrained model, where it stands without experts: what lies next to it may serve a bank's merge."""
        return canonical(open_checkpoint(self._base, "base")) if self._base and self.experts is None else None

    def _checked(self, built: TaskBank) -> TaskBank:
        if self.experts is not None and set(self.experts.tasks) != set(built.tasks):
            raise MergeError(
                f"{self.saved} is a bank of {', '.join(built.tasks)}; the configuration's experts are "
                f"{', '.join(self.experts.tasks)}"
            )
        return built

    def _prepare(self) -> tuple[Experts, MergeMethod]:
        """The experts, and the method with what it takes from unlabelled inputs."""
        experts, method = self.experts, self.method
        assert experts is not None
        assert method is not None
        self.unlabelled.check(method)
        self.method = self.unlabelled.prepare(method, experts)
        return experts, self.method


def open_experts(
    network: Network | Later[Network] | None,
    files: dict[str, str],
    base: str | None,
    exclude: list[str] | None,
    crop: bool = False,
) -> Experts:
    """The experts, without what is not of the network's encoder unless `exclude` says what is left out; the network
    takes its heads from them where it wants any.

    Raises:
        MergeError: as `Experts`; a head that the network cannot take.
    """
    sources, opened_base = open_all(files, base)
    if isinstance(network, Later) and (exclude is not None or network.kind.strangers is Network.strangers):
        # Nothing of it is needed to open experts. Its heads are taken from them when it is built.
        experts = Experts(sources, opened_base, exclude or (), crop)
        later, build = network, network.build
        later.build = lambda: with_heads(build(), experts)
        return experts
    network = built(network)
    if exclude is None and network is not None:
        opened = [*sources.values(), *([] if opened_base is None else [opened_base])]
        exclude = network.strangers(dict.fromkeys(name for file in opened for name in (*file.shapes, *file.unfit)))
        for task, file in sources.items():
            if set(file.shapes) <= set(exclude):
                raise MergeError(
                    f"{file.label} has none of the network's weights, but {', '.join(list(file.shapes)[:3])}, …: take "
                    "the configuration that the experts were trained with",
                    task=task,
                )
        if exclude:
            more = f", … ({len(exclude)} in all)" if len(exclude) > LISTED else ""
            say(f"not merged, not of the encoder: {', '.join(exclude[:LISTED])}{more}")
    experts = Experts(sources, opened_base, exclude or (), crop)
    if network is not None:
        with_heads(network, experts)
    return experts


def with_heads(network: Network, experts: Experts) -> Network:
    """The network, with heads from the experts' own files where it wants any."""
    network.check_files(experts.whole)
    network.take_heads(experts.whole)
    network.heads.mix(experts.tasks)
    return network


def _stamps(*files: Path) -> list[object]:
    """What tells files from others."""
    stats = [(str(file.absolute()), file.stat()) for file in files]
    return [(path, stat.st_size, stat.st_mtime_ns) for path, stat in stats]


def shared_decompositions(where: str, experts: Experts, transform: Transform | None) -> Decompositions:
    """Decompositions of these experts under this transform, in a folder or in memory.

    Raises:
        MergeError: a folder for experts that are no files: nothing would distinguish them from others.
    """
    if where == "memory":
        return Decompositions()
    if experts.identity is None:
        raise MergeError("decompositions are kept in a folder for experts in files only: take memory")
    return Decompositions(where, [experts.identity, None if transform is None else transform.describe()])
