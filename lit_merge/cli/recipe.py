"""Recipe: what stands under `model` in a configuration."""

from lit_merge.adaptation.rank_masks import AdaRank
from lit_merge.adaptation.stages import Stage
from lit_merge.adaptation.step import MicroBatch
from lit_merge.adaptation.stored_bank import BankDevice
from lit_merge.data import TaskData
from lit_merge.merge.job import Svd
from lit_merge.methods import MergeMethod, Transform
from lit_merge.networks import Network
from lit_merge.objectives import Objective


class Recipe:
    """The model: a task bank, built or loaded, with learnable coefficients.

    Args:
        network: encoder and heads; merge and export need none.
        experts: task → checkpoint of any format, or a folder with one for every task, named after it: files, folders of
            Hugging Face, PEFT LoRA folders, `hf://org/name`, `zoo:8/experts/mnist.safetensors` of the built-in suite.
        exclude: shell patterns of weights that are not merged, as `classifier.*`; by default those that lie beside the
            network's encoder, which are named when the experts are opened. [] merges all.
        crop: of vocabularies that differ by tokens which were added, merge the rows that all have.
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
        bank_device: `auto` keeps the bank on the GPU where it takes at most half of the free memory; `cpu` keeps it in
            pinned memory and streams it weight by weight.
        compile: torch.compile of the network: minutes at first, less time a step.
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
        objective: Objective | None = None,
        stages: list[Stage] | None = None,
        bounds: tuple[float, float] | None = None,
        ranks: AdaRank | None = None,
        sharpness: float = 0.0,
        microbatch: MicroBatch = "all",
        gradient_checkpointing: bool = False,
        bank_device: BankDevice = "auto",
        compile: bool = False,
        decompositions: str | None = None,
        svd: Svd = "auto",
        data: TaskData | None = None,
        accelerator: str = "auto",
    ) -> None:
        self.options = {name: value for name, value in locals().items() if name != "self"}
