"""MergeRecipe: a MergedModel from what a configuration file says."""

from lit_merge.errors import MergeError
from lit_merge.experts import Experts
from lit_merge.merged_model import MergedModel, Stage
from lit_merge.methods import MergeMethod, build_bank
from lit_merge.networks import Network
from lit_merge.objectives import Objective
from lit_merge.task_bank import TaskBank


class MergeRecipe(MergedModel):
    """Builds or loads a task bank and makes its coefficients learnable.

    Args:
        network: encoder and heads.
        experts: task → safetensors file (`zoo:8/experts/mnist.safetensors` names one of the built-in suite).
        base: the pretrained checkpoint; CART and weight averaging need it for the report only.
        method: how the experts are merged.
        bank: folder of a saved task bank to use instead of merging; its coefficients are where things start.
        objective: what adaptation minimises; entropy by default.
        stages: what is learnt, for how many steps, at which rate; one after the other.
        bounds: [lower, upper] for the coefficients; none by default.

    Raises:
        MergeError: neither experts and method nor a bank; files that cannot be read or do not fit together.
    """

    def __init__(
        self,
        network: Network,
        experts: dict[str, str] | None = None,
        base: str | None = None,
        method: MergeMethod | None = None,
        bank: str | None = None,
        objective: Objective | None = None,
        stages: list[Stage] | None = None,
        bounds: tuple[float, float] | None = None,
    ) -> None:
        opened = Experts(experts, base) if experts else None
        if bank is not None:
            built = TaskBank.load(bank)
            if opened is not None and opened.tasks != built.tasks:
                raise MergeError(
                    f"{bank} is a bank of {', '.join(built.tasks)}; the configuration's experts are "
                    f"{', '.join(opened.tasks)}"
                )
        elif opened is not None and method is not None:
            for task in opened.tasks:
                network.heads.classes(task)
            built = build_bank(opened, method=method)
        else:
            raise MergeError("nothing to merge: give --model.experts and --model.method, or --model.bank")
        super().__init__(built, network, objective, stages or [Stage()], bounds)
        self.experts = opened
