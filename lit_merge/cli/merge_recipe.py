"""MergeRecipe: a MergedModel from what a configuration file says."""

from typing import Any

from lit_merge.adaptation.merged_model import MergedModel
from lit_merge.adaptation.stages import TWO_STAGES
from lit_merge.choose.sources import Sources
from lit_merge.cli.recipe import Recipe
from lit_merge.errors import MergeError

MERGED = ("experts", "base", "exclude", "crop", "method", "transform", "bank", "decompositions", "svd")
LEARNT = ("objective", "bounds", "ranks", "sharpness", "microbatch", "gradient_checkpointing", "bank_device", "compile")


class MergeRecipe(MergedModel):
    """Builds or loads a task bank and makes its coefficients learnable.

    Args:
        options: see `Recipe`.

    Raises:
        MergeError: neither experts and method nor a bank; files that cannot be read or do not fit together.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        recipe = Recipe(*args, **options)
        given = recipe.options
        if given["network"] is None:
            raise MergeError("this verb runs a network: give --model.network, for example OpenClipImageEncoder")
        place = {name: given[name] for name in ("network", "data", "accelerator")}
        sources = Sources(**{name: given[name] for name in MERGED}, **place)
        learnt = {name: given[name] for name in LEARNT}
        stages = given["stages"] or TWO_STAGES
        super().__init__(sources.bank(), given["network"], stages=stages, experts=sources.experts, **learnt)
        self.sources = sources
