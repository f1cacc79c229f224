"""DataModules: unlabelled streams to adapt on, labelled inputs to evaluate on."""

from lit_merge.data.base import TaskData, check_tasks
from lit_merge.data.folders import ImageFolders
from lit_merge.data.hub_images import HubImages
from lit_merge.data.leaks import Leak, find_leaks
from lit_merge.data.suite import Suite
from lit_merge.data.texts import TextFiles
from lit_merge.data.vision_tasks import VisionTasks

__all__ = [
    "HubImages",
    "ImageFolders",
    "Leak",
    "Suite",
    "TaskData",
    "TextFiles",
    "VisionTasks",
    "check_tasks",
    "find_leaks",
]
