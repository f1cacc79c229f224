"""Callbacks: hooks only; the operations are functions elsewhere."""

from lit_merge.adaptation.callbacks.coefficient_log import CoefficientLog
from lit_merge.adaptation.callbacks.collapse_guard import CollapseGuard, gone_back
from lit_merge.adaptation.callbacks.compression_export import CompressionExport
from lit_merge.adaptation.callbacks.online_scores import OnlineScores
from lit_merge.adaptation.callbacks.prediction_writer import PredictionWriter
from lit_merge.adaptation.callbacks.progress_bar import MergeProgress
from lit_merge.adaptation.callbacks.rank_schedule import RankSchedule
from lit_merge.adaptation.callbacks.resume_point import ResumePoint
