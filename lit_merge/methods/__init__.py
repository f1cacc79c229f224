"""Merging methods: one file, one pure function and one frozen dataclass each."""

from lit_merge.methods.arithmetic import TaskArithmetic, WeightAveraging
from lit_merge.methods.awd import AWD
from lit_merge.methods.base import MergeMethod, Transform
from lit_merge.methods.cart import CART
from lit_merge.methods.consensus import ConsensusTA
from lit_merge.methods.esm import ESM
from lit_merge.methods.iso import IsoC, IsoCTS
from lit_merge.methods.regmean import RegMean
from lit_merge.methods.ties import TIES
from lit_merge.methods.tsv import TSVM, TSVCompress
from lit_merge.methods.with_moments import MomentsMethod

__all__ = [
    "AWD",
    "CART",
    "ESM",
    "TIES",
    "TSVM",
    "ConsensusTA",
    "IsoC",
    "IsoCTS",
    "MergeMethod",
    "MomentsMethod",
    "RegMean",
    "TSVCompress",
    "TaskArithmetic",
    "Transform",
    "WeightAveraging",
]
