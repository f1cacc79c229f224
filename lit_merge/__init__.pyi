"""The public names of lit_merge, and where each is defined: `__init__` loads them from there on first use."""

from .adaptation.adapt import adapt, evaluate
from .adaptation.callbacks import (
    CoefficientLog,
    CollapseGuard,
    CompressionExport,
    OnlineScores,
    PredictionWriter,
    RankSchedule,
    ResumePoint,
)
from .adaptation.coefficients import Coefficients
from .adaptation.correction import Correction
from .adaptation.merged_model import MergedModel
from .adaptation.rank_masks import AdaRank
from .adaptation.stages import Stage
from .bank.low_rank import LowRank
from .bank.task_bank import TaskBank
from .checkpoints.conversion import convert
from .choose.activations import collect_moments
from .choose.sample import Probe
from .choose.scale import choose_scaling
from .choose.write import merge_files
from .data import HubImages, ImageFolders, Suite, TextFiles, VisionTasks
from .data.augmentation import ImageAugmentation, WordDropout
from .errors import MergeError, MergeWarning
from .experts.decompositions import Decompositions
from .experts.experts import Experts
from .experts.moments import load_moments, save_moments
from .merge.build import build_bank
from .methods import (
    AWD,
    CART,
    ESM,
    TIES,
    TSVM,
    ConsensusTA,
    IsoC,
    IsoCTS,
    MergeMethod,
    RegMean,
    TaskArithmetic,
    Transform,
    TSVCompress,
    WeightAveraging,
)
from .networks import (
    HuggingFaceImageEncoder,
    HuggingFaceTextEncoder,
    LinearHeads,
    OpenClipImageEncoder,
    ReleasedHeads,
    ZeroShotHeads,
)
from .report.analysis import Analysis, analyze
from .report.coefficient_figure import coefficient_figure

__version__: str

__all__ = [
    "AWD",
    "CART",
    "ESM",
    "TIES",
    "TSVM",
    "AdaRank",
    "Analysis",
    "CoefficientLog",
    "Coefficients",
    "CollapseGuard",
    "CompressionExport",
    "ConsensusTA",
    "Correction",
    "Decompositions",
    "Experts",
    "HubImages",
    "HuggingFaceImageEncoder",
    "HuggingFaceTextEncoder",
    "ImageAugmentation",
    "ImageFolders",
    "IsoC",
    "IsoCTS",
    "LinearHeads",
    "LowRank",
    "MergeError",
    "MergeMethod",
    "MergeWarning",
    "MergedModel",
    "OnlineScores",
    "OpenClipImageEncoder",
    "PredictionWriter",
    "Probe",
    "RankSchedule",
    "RegMean",
    "ReleasedHeads",
    "ResumePoint",
    "Stage",
    "Suite",
    "TSVCompress",
    "TaskArithmetic",
    "TaskBank",
    "TextFiles",
    "Transform",
    "VisionTasks",
    "WeightAveraging",
    "WordDropout",
    "ZeroShotHeads",
    "adapt",
    "analyze",
    "build_bank",
    "choose_scaling",
    "coefficient_figure",
    "collect_moments",
    "convert",
    "evaluate",
    "load_moments",
    "merge_files",
    "save_moments",
]
