"""VisionTasks: the 8, 14 or 20 vision tasks that the merging literature reports on."""

import warnings
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lit_merge.checkpoints.locations import resolve
from lit_merge.data.datasets_tables import HUB, is_table_folder
from lit_merge.data.images.files import Side
from lit_merge.data.images.hub import CALLED, Tables
from lit_merge.data.images.splits import Split, SplitName, SplitTasks
from lit_merge.data.vision.layouts import ClassFolders, Layout
from lit_merge.data.vision.task_list import SUITES, TASKS, VisionTask, find_task
from lit_merge.data.vision.torchvision import Torchvision
from lit_merge.errors import MergeError, MergeWarning

# What copies on the Hub call their columns.
IMAGE, LABEL = ("image", "img"), ("label", "labels", "fine_label")


@dataclass(frozen=True)
class Place:
    """Where the images of a task were found: a layout below a root."""

    task: str
    layout: Layout
    root: Path
    side: Side

    def splits(self) -> Collection[str]:
        """Which of train, validation and test are there."""
        return self.layout.splits(self.root)

    def read(self, split: str) -> Split:
        """One of these splits. See `Layout.read`."""
        return self.layout.read(self.task, self.root, split, self.side)


class VisionTasks(SplitTasks):
    """Images of the tasks SUN397, Cars, RESISC45, EuroSAT, SVHN, GTSRB, MNIST and DTD, and of twelve more.

    Splits are those of the task-arithmetic code. Validation images are the data's own, or else a tenth of the training
    images, at most 5000, which are left out of `train`.

    Args:
        path: folder with the images of all tasks: as torchvision lays them out, or a folder per task, named after it,
            of a Hugging Face data set (docs/vision_tasks.md has a table).
        tasks: 8, 14 or 20, or names; however they are written, they are what the tasks of the merge are called.
        locations: task → another folder for it, or `hf://org/name` on the Hugging Face Hub.
        download: fetch what is missing, with torchvision where it can, else from the Hub.
        adapt: the split adapted on: `test` is transductive, the literature's protocol; `train` or `validation`
            inductive.
        options: those of `SplitTasks`.

    Raises:
        MergeError: an unknown task, images that are missing or damaged, the Hub cannot be reached.
    """

    def __init__(
        self,
        path: str,
        tasks: int | list[str] = 8,
        locations: dict[str, str] | None = None,
        download: bool = False,
        adapt: SplitName = "test",
        **options: Any,
    ) -> None:
        known = {name: find_task(name) for name in task_names(tasks)}
        super().__init__(list(known), adapt, **options)
        for name in locations or {}:
            if name not in known:
                raise MergeError(f"locations: there is no task {name!r}; there are {', '.join(known)}", task=name)
        self._known = known
        self._places = {
            name: find_place(replace(task, name=name), path, (locations or {}).get(name), download, self.side)
            for name, task in known.items()
        }
        self._numbered: set[str] = set()

    def splits(self, task: str) -> Collection[str]:
        return self._places[task].splits()

    def open(self, task: str, split: str) -> Split:
        found, known = self._places[task].read(split), self._known[task]
        if found.classes is None:
            self._numbered.add(task)
        return _checked(replace(found, classes=found.classes or known.names), task, known)

    def names_itself(self, task: str) -> bool:
        return task not in self._numbered


def task_names(tasks: int | list[str]) -> list[str]:
    """The names of a suite, or those given.

    Raises:
        MergeError: no suite of that size, no task, or one twice.
    """
    if isinstance(tasks, int):
        if tasks not in SUITES:
            raise MergeError(f"tasks={tasks}: the literature has suites of 8, 14 and 20; or give names")
        return [task.name for task in TASKS[:tasks]]
    if not tasks:
        raise MergeError("no task: give --data.tasks 8, 14, 20 or a list of names")
    known = [find_task(name).name for name in tasks]
    if twice := next((name for name in known if known.count(name) > 1), None):
        raise MergeError(f"tasks={tasks} names {twice} twice", task=twice)
    return tasks


def find_place(task: VisionTask, path: str, location: str | None, download: bool, side: Side) -> Place | Tables:
    """Where a task's images are; they are fetched first where that was asked for and they are missing.

    Raises:
        MergeError: they are nowhere; the message says where they were looked for and what gets them.
    """
    root = resolve(path if location is None or location.startswith(HUB) else location)

    def tables(where: str) -> Tables:
        called = CALLED | {split: (*CALLED[split], other) for split, other in task.splits}
        return Tables(where, called, IMAGE, LABEL, side)

    if location is not None and (location.startswith(HUB) or is_table_folder(root)):
        return tables(location if location.startswith(HUB) else str(root))
    own = [] if task.hub is None else [task.hub.split("/")[1]]
    names = list(dict.fromkeys((task.name, task.name.lower(), find_task(task.name).name, *own)))
    layouts = (*task.layouts, *(ClassFolders(name) for name in names), *([ClassFolders(".")] if location else []))
    # First: a copy from the Hub may lie in a folder of the name that torchvision looks for.
    if folder := next((root / name for name in names if is_table_folder(root / name)), None):
        return tables(str(folder))
    if found := next((layout for layout in layouts if "test" in layout.splits(root)), None):
        return Place(task.name, found, root, side)
    fetched = next((one for one in task.layouts if isinstance(one, Torchvision) and one.downloads), None)
    if download and fetched is not None:
        fetched.download(task.name, root)
        return Place(task.name, fetched, root, side)
    if download and task.hub is not None:
        return tables(HUB + task.hub)
    looked = ", ".join([*(layout.looked_for for layout in task.layouts), names[0]])
    raise MergeError(
        f"{root} has no images of task {task.name}: looked for {looked}: {_advice(task, fetched is not None)}",
        task=task.name,
    )


def _advice(task: VisionTask, torchvision: bool) -> str:
    if torchvision:
        return "set download: true to fetch them with torchvision, or put them there"
    if task.hub is not None:
        return f"set download: true to fetch {HUB}{task.hub} from the Hugging Face Hub, or put them there"
    return "nothing here fetches them: docs/vision_tasks.md says what torchvision reads"


def _checked(split: Split, task: str, known: VisionTask) -> Split:
    """The split, whose labels have to be those of its classes."""
    if split.classes is None or not len(split.labels):
        return split
    highest, classes = int(split.labels.max()), len(split.classes)
    if highest >= classes:
        raise MergeError(f"the data of task {task} has a label {highest} and {classes} classes", task=task)
    if classes != known.classes:
        warnings.warn(
            f"the data of task {task} has {classes} classes, the literature's {known.name} has {known.classes}: its "
            "numbers do not compare",
            MergeWarning,
            stacklevel=2,
        )
    return split
