"""DataModules: unlabelled streams to adapt on, labelled images to evaluate on."""

from lit_merge.data.base import TaskData, check_tasks
from lit_merge.data.folders import ImageFolders
from lit_merge.data.suite import Suite

__all__ = ["ImageFolders", "Suite", "TaskData", "check_tasks"]
