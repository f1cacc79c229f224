"""HubImages: images of Hugging Face data sets, from folders on disk or by name."""

from collections.abc import Collection
from typing import Any

from lit_merge.data.images.hub_tables import CALLED, Tables
from lit_merge.data.images.splits import Split, SplitName, SplitTasks
from lit_merge.errors import MergeError


class HubImages(SplitTasks):
    """Images and labels of a Hugging Face data set per task: `datasets` folders, folders of Parquet files, or names.

    Args:
        paths: task → folder that `save_to_disk` wrote, or with Parquet or Arrow files; or `hf://org/name`, which is
            downloaded, or `hf://org/name/configuration`.
        image: the column with the images.
        label: the column with the classes: ClassLabel, or whole numbers from 0.
        splits: ours (train, validation, test) → the data set's, where it calls them otherwise. A tenth of train, at
            most 5000 images, is set aside as validation where there is none.
        options: those of `SplitTasks`, which adapts on the training images by default.

    Raises:
        MergeError: no such folder or name, no such column or split, the Hub cannot be reached.
    """

    def __init__(
        self,
        paths: dict[str, str],
        image: str = "image",
        label: str = "label",
        splits: dict[SplitName, str] | None = None,
        adapt: SplitName = "train",
        **options: Any,
    ) -> None:
        if not paths:
            raise MergeError("no task: give --data.paths, a data set for every task")
        super().__init__(list(paths), adapt, **options)
        called = CALLED | {split: (name,) for split, name in (splits or {}).items()}
        self._tables = {task: Tables(path, called, (image,), (label,), self.image_size) for task, path in paths.items()}
        for tables in self._tables.values():
            # Opened now: what is wrong with a data set is wrong with the configuration.
            tables.splits()
            for name in (splits or {}).values():
                tables.find((name,))

    def splits(self, task: str) -> Collection[str]:
        return self._tables[task].splits()

    def open(self, task: str, split: str) -> Split:
        return self._tables[task].read(split)
