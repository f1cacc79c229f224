"""Merging methods: one file, one pure function and one frozen dataclass each."""

from lit_merge.methods.arithmetic import TaskArithmetic as TaskArithmetic
from lit_merge.methods.arithmetic import WeightAveraging as WeightAveraging
from lit_merge.methods.awd import AWD as AWD
from lit_merge.methods.base import MergeMethod as MergeMethod
from lit_merge.methods.base import Transform as Transform
from lit_merge.methods.cart import CART as CART
from lit_merge.methods.consensus import ConsensusTA as ConsensusTA
from lit_merge.methods.esm import ESM as ESM
from lit_merge.methods.iso import IsoC as IsoC
from lit_merge.methods.iso_cts import IsoCTS as IsoCTS
from lit_merge.methods.regmean import RegMean as RegMean
from lit_merge.methods.ties import TIES as TIES
from lit_merge.methods.tsv import TSVM as TSVM
from lit_merge.methods.tsv_compress import TSVCompress as TSVCompress
from lit_merge.methods.with_moments import MomentsMethod as MomentsMethod
