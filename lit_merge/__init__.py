"""lit_merge: merge fine-tuned models, adapt the merge on unlabelled data, ship it as a small task bank."""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from lit_merge.activations import collect_moments
    from lit_merge.adapting import adapt, evaluate
    from lit_merge.analysis import Analysis, analyze
    from lit_merge.callbacks import (
        CoefficientLog,
        CollapseGuard,
        CompressionExport,
        OnlineScores,
        PredictionWriter,
        RankSchedule,
        ResumePoint,
    )
    from lit_merge.choosing import choose_scaling
    from lit_merge.coefficients import Coefficients
    from lit_merge.conversion import convert
    from lit_merge.data import HubImages, ImageFolders, Suite, TextFiles, VisionTasks
    from lit_merge.decompositions import Decompositions
    from lit_merge.errors import MergeError, MergeWarning
    from lit_merge.experts import Experts
    from lit_merge.heat_map import coefficient_figure
    from lit_merge.low_rank import LowRank
    from lit_merge.merged_model import MergedModel
    from lit_merge.methods import (
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
        TSVCompress,
        WeightAveraging,
        build_bank,
    )
    from lit_merge.moments import load_moments, save_moments
    from lit_merge.networks import (
        HuggingFaceImageEncoder,
        HuggingFaceTextEncoder,
        LinearHeads,
        OpenClipImageEncoder,
        ReleasedHeads,
        ZeroShotHeads,
    )
    from lit_merge.probe import Probe
    from lit_merge.rank_masks import AdaRank
    from lit_merge.stages import Stage
    from lit_merge.streaming import merge_files
    from lit_merge.task_bank import TaskBank
    from lit_merge.transforms import AWD, Transform

# Where each public name is defined. Loaded on first use: `python -m lit_merge --help` must not wait for torch.
_HOMES = {
    "AWD": "transforms",
    "AdaRank": "rank_masks",
    "Analysis": "analysis",
    "CART": "methods",
    "CoefficientLog": "callbacks",
    "CollapseGuard": "callbacks",
    "Coefficients": "coefficients",
    "CompressionExport": "callbacks",
    "ConsensusTA": "methods",
    "Decompositions": "decompositions",
    "ESM": "methods",
    "Experts": "experts",
    "HubImages": "data",
    "HuggingFaceImageEncoder": "networks",
    "HuggingFaceTextEncoder": "networks",
    "ImageFolders": "data",
    "IsoC": "methods",
    "IsoCTS": "methods",
    "LinearHeads": "networks",
    "LowRank": "low_rank",
    "MergeError": "errors",
    "MergeMethod": "methods",
    "MergeWarning": "errors",
    "MergedModel": "merged_model",
    "OnlineScores": "callbacks",
    "OpenClipImageEncoder": "networks",
    "PredictionWriter": "callbacks",
    "Probe": "probe",
    "RankSchedule": "callbacks",
    "RegMean": "methods",
    "ReleasedHeads": "networks",
    "ResumePoint": "callbacks",
    "Stage": "stages",
    "Suite": "data",
    "TIES": "methods",
    "TSVCompress": "methods",
    "TSVM": "methods",
    "TaskArithmetic": "methods",
    "TaskBank": "task_bank",
    "TextFiles": "data",
    "Transform": "transforms",
    "VisionTasks": "data",
    "WeightAveraging": "methods",
    "ZeroShotHeads": "networks",
    "analyze": "analysis",
    "build_bank": "methods",
    "adapt": "adapting",
    "choose_scaling": "choosing",
    "coefficient_figure": "heat_map",
    "collect_moments": "activations",
    "convert": "conversion",
    "evaluate": "adapting",
    "load_moments": "moments",
    "merge_files": "streaming",
    "save_moments": "moments",
}

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
    "Decompositions",
    "Experts",
    "HubImages",
    "HuggingFaceImageEncoder",
    "HuggingFaceTextEncoder",
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


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
