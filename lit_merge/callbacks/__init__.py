"""Callbacks: hooks only; the operations are functions elsewhere."""

from lit_merge.callbacks.compression_export import CompressionExport
from lit_merge.callbacks.progress_bar import MergeProgress
from lit_merge.callbacks.rank_schedule import RankSchedule
from lit_merge.callbacks.resume_point import ResumePoint

__all__ = ["CompressionExport", "MergeProgress", "RankSchedule", "ResumePoint"]
