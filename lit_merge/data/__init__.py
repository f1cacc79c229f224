"""Unlabelled streams to adapt on, labelled inputs to evaluate on: images, texts, and the tasks of the literature.

Labels are read here for evaluation only; what adaptation gets has none. Lightning joins when data is made.
"""

from lit_merge.data.data_module import only_read
from lit_merge.data.images.folders import ImageFolders
from lit_merge.data.images.hub import HubImages
from lit_merge.data.images.suite import Suite
from lit_merge.data.leaks import Leak, find_leaks
from lit_merge.data.task_data import TaskData, check_tasks
from lit_merge.data.texts.files import TextFiles
from lit_merge.data.vision.tasks import VisionTasks
