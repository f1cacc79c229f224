"""Callbacks: hooks only; the operations are functions elsewhere."""

from lit_merge.callbacks.coefficient_log import CoefficientLog
from lit_merge.callbacks.collapse_guard import CollapseGuard, gone_back
from lit_merge.callbacks.compression_export import CompressionExport
from lit_merge.callbacks.online_scores import OnlineScores
from lit_merge.callbacks.prediction_writer import PredictionWriter
from lit_merge.callbacks.progress_bar import MergeProgress
from lit_merge.callbacks.rank_schedule import RankSchedule
from lit_merge.callbacks.resume_point import ResumePoint

__all__ = [
    "CoefficientLog",
    "CollapseGuard",
    "CompressionExport",
    "MergeProgress",
    "OnlineScores",
    "PredictionWriter",
    "RankSchedule",
    "ResumePoint",
    "gone_back",
]
