"""MergeRecipe: a MergedModel from what a configuration file says."""

from lit_merge.adaptation_step import MicroBatch
from lit_merge.data import TaskData
from lit_merge.decompositions import Decompositions
from lit_merge.errors import MergeError
from lit_merge.experts import Experts, expert_files, open_all
from lit_merge.merged_model import MergedModel
from lit_merge.methods import MergeMethod, build_bank
from lit_merge.networks import Network
from lit_merge.objectives import Objective
from lit_merge.progress import say
from lit_merge.rank_masks import AdaRank
from lit_merge.stages import TWO_STAGES, Stage
from lit_merge.task_bank import TaskBank
from lit_merge.transforms import Transform
from lit_merge.unlabelled import Unlabelled

# Names of weights that a line holds.
TOLD = 8


class MergeRecipe(MergedModel):
    """Builds or loads a task bank and makes its coefficients learnable.

    Args:
        network: encoder and heads.
        experts: task → checkpoint of any format, or a folder with one for every task, named after it: files, folders of
            Hugging Face, PEFT LoRA folders, `hf://org/name`, `zoo:8/experts/mnist.safetensors` of the built-in suite.
        exclude: shell patterns of weights that are not merged, as `classifier.*`; by default those that lie beside the
            network's encoder, which are named when the experts are opened. [] merges all.
        base: the pretrained checkpoint, which LoRA experts need; CART and weight averaging need it for the report only.
        method: how the experts are merged.
        transform: what is done to the task vectors first.
        bank: folder of a saved task bank to use instead of merging; its coefficients are where things start.
        objective: what adaptation minimises; entropy by default.
        stages: what is learnt, for how many steps, at which rate; one after the other.
        bounds: [lower, upper] for the coefficients; none by default.
        ranks: learn which singular directions are used, too.
        sharpness: radius of sharpness-aware steps; 0 is off.
        microbatch: `task` runs the tasks of a step one after the other, in the memory of one.
        gradient_checkpointing: less memory for more time, with `microbatch: task`.
        decompositions: folder in which singular value decompositions are kept for later runs; `memory` keeps them for
            this one (sweep).
        data: set by the command line: where methods that look at unlabelled inputs take them from.
        accelerator: set by the command line: where those inputs are run.

    Raises:
        MergeError: neither experts and method nor a bank; files that cannot be read or do not fit together.
    """

    def __init__(
        self,
        network: Network,
        experts: dict[str, str] | str | None = None,
        base: str | None = None,
        exclude: list[str] | None = None,
        method: MergeMethod | None = None,
        transform: Transform | None = None,
        bank: str | None = None,
        objective: Objective | None = None,
        stages: list[Stage] | None = None,
        bounds: tuple[float, float] | None = None,
        ranks: AdaRank | None = None,
        sharpness: float = 0.0,
        microbatch: MicroBatch = "all",
        gradient_checkpointing: bool = False,
        decompositions: str | None = None,
        data: TaskData | None = None,
        accelerator: str = "auto",
    ) -> None:
        opened = open_experts(network, expert_files(experts), base, exclude) if experts else None
        unlabelled = Unlabelled(network, data, accelerator)
        kept = None if decompositions is None or opened is None else keep(decompositions, opened, transform)
        if bank is not None:
            built = TaskBank.load(bank)
            if opened is not None and opened.tasks != built.tasks:
                raise MergeError(
                    f"{bank} is a bank of {', '.join(built.tasks)}; the configuration's experts are "
                    f"{', '.join(opened.tasks)}"
                )
        elif opened is not None and method is not None:
            network.heads.mix(opened.tasks)
            unlabelled.check(method)
            method = unlabelled.prepare(method, opened)
            built = build_bank(opened, method=method, transform=transform, decompositions=kept)
            if method.scale == "entropy":
                built = unlabelled.most_confident(built, method)
        else:
            raise MergeError("nothing to merge: give --model.experts and --model.method, or --model.bank")
        super().__init__(
            *(built, network, objective, stages or TWO_STAGES, bounds, ranks),
            *(sharpness, microbatch, gradient_checkpointing, opened),
        )
        self.method, self.transform, self.decompositions = method, transform, kept
        self.unlabelled = unlabelled

    def require_method(self) -> MergeMethod:
        """The configuration's method; raises MergeError where a bank was loaded instead."""
        if self.method is None:
            raise MergeError("no method: give --model.method")
        return self.method


def open_experts(network: Network, files: dict[str, str], base: str | None, exclude: list[str] | None) -> Experts:
    """The experts, without what lies beside the network's encoder unless `exclude` says what is left out; the network
    takes its heads from them where it wants any.

    Raises:
        MergeError: as `Experts`; a head that the network cannot take.
    """
    sources, opened_base = open_all(files, base)
    if exclude is None:
        opened = [*sources.values(), *([] if opened_base is None else [opened_base])]
        exclude = network.strangers(dict.fromkeys(name for file in opened for name in file.shapes))
        for task, file in sources.items():
            if set(file.shapes) <= set(exclude):
                raise MergeError(
                    f"{file.label} has none of the network's weights, but {', '.join(list(file.shapes)[:3])}, …: take "
                    "the configuration that the experts were trained with",
                    task=task,
                )
        if exclude:
            more = f", … ({len(exclude)} in all)" if len(exclude) > TOLD else ""
            say(f"not merged, beside the encoder: {', '.join(exclude[:TOLD])}{more}")
    experts = Experts(sources, opened_base, exclude)
    network.take_heads(experts.whole)
    return experts


def keep(where: str, experts: Experts, transform: Transform | None) -> Decompositions:
    """Decompositions of these experts under this transform, in a folder or in memory.

    Raises:
        MergeError: a folder for experts that are no files: nothing would tell them from others.
    """
    if where == "memory":
        return Decompositions()
    if experts.identity is None:
        raise MergeError("decompositions are kept in a folder for experts in files only: take memory")
    return Decompositions(where, [experts.identity, None if transform is None else transform.describe()])
