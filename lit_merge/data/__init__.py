"""DataModules: unlabelled streams to adapt on, labelled inputs to evaluate on."""

from lit_merge.data.base import TaskData, check_tasks
from lit_merge.data.folders import ImageFolders
from lit_merge.data.suite import Suite
from lit_merge.data.texts import TextFiles

__all__ = ["ImageFolders", "Suite", "TaskData", "TextFiles", "check_tasks"]
