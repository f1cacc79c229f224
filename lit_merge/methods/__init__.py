"""Merging methods: one file, one pure function and one frozen dataclass each."""

from lit_merge.methods.arithmetic import TaskArithmetic, WeightAveraging
from lit_merge.methods.base import MergeMethod
from lit_merge.methods.build import build_bank, needs_all
from lit_merge.methods.cart import CART
from lit_merge.methods.consensus import ConsensusTA
from lit_merge.methods.esm import ESM
from lit_merge.methods.iso import IsoC, IsoCTS
from lit_merge.methods.job import Job, Part, Svd, check_merge
from lit_merge.methods.moments import MomentsMethod
from lit_merge.methods.regmean import RegMean
from lit_merge.methods.scaling import at_scaling, self_consistent_scaling
from lit_merge.methods.ties import TIES
from lit_merge.methods.tsv import TSVM, TSVCompress

__all__ = [
    "CART",
    "ESM",
    "TIES",
    "TSVM",
    "ConsensusTA",
    "IsoC",
    "IsoCTS",
    "Job",
    "MergeMethod",
    "MomentsMethod",
    "Part",
    "RegMean",
    "Svd",
    "TSVCompress",
    "TaskArithmetic",
    "WeightAveraging",
    "at_scaling",
    "build_bank",
    "check_merge",
    "needs_all",
    "self_consistent_scaling",
]
