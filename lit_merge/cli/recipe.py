"""MergeRecipe: a MergedModel from what a configuration file says."""

import inspect
from typing import Any

from lit_merge.adaptation.merged_model import MergedModel
from lit_merge.adaptation.options import Adaptation, spelled_out
from lit_merge.choose.sources import Sources
from lit_merge.errors import MergeError
from lit_merge.networks import Network


class MergeRecipe(MergedModel):
    """Builds or loads a task bank and makes its coefficients learnable.

    Its arguments, the keys under `model`, are those of `Sources` and of `Adaptation`.

    Raises:
        MergeError: no network; what `Sources` and `Adaptation` refuse.
    """

    @spelled_out(Sources, Adaptation)
    def __init__(self, network: Network | None = None, **options: Any) -> None:
        if network is None:
            raise MergeError("this verb runs a network: give --model.network, for example OpenClipImageEncoder")
        merged = options.keys() & inspect.signature(Sources).parameters
        sources = Sources(network, **{name: options.pop(name) for name in merged})
        super().__init__(sources.bank(), network, experts=sources.experts, **options)
        self.sources = sources
