"""HubImages: images of Hugging Face data sets, from folders on disk or by name."""

from collections.abc import Collection
from typing import Literal

from lit_merge.data.datasets_tables import open_tables
from lit_merge.data.images.hub_tables import CALLED, find_split, read_split
from lit_merge.data.images.splits import Split, SplitName, SplitTasks
from lit_merge.data.leaks import OnLeak
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
        adapt: the split adapted on: `train` or `validation` is inductive, `test` transductive.
        online: adapt in one pass, in random order, and predict each batch before it is used.
        mixed: adapt on one stream of the images of all tasks, without saying which is whose.
        on_bad_image: `refuse` ends with the first image that cannot be decoded; `skip` decodes all once and leaves
            those out, with a warning that counts and names them.
        on_leak: test images among others that are adapted on, found by their files: `warn`, `refuse` or `ignore`.
        image_size: side of the squares that the network takes.
        batch_size: images of each task, or of the mixed stream, per adaptation step and process.
        eval_batch_size: images per batch of validation and test.
        num_workers: processes that decode images.
        seed: of the order in which images are drawn.

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
        online: bool = False,
        mixed: bool = False,
        on_bad_image: Literal["refuse", "skip"] = "refuse",
        on_leak: OnLeak = "warn",
        image_size: int = 224,
        batch_size: int = 16,
        eval_batch_size: int = 128,
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        if not paths:
            raise MergeError("no task: give --data.paths, a data set for every task")
        super().__init__(
            *(list(paths), adapt, online, mixed, on_bad_image, on_leak, image_size),
            *(batch_size, eval_batch_size, num_workers, seed),
        )
        self.image, self.label, self._called = image, label, splits or {}
        self._tables = {task: open_tables(path) for task, path in paths.items()}
        self._paths = paths
        for task, tables in self._tables.items():
            for name in self._called.values():
                find_split(paths[task], tables, (name,))

    def splits(self, task: str) -> Collection[str]:
        return [split for split in CALLED if any(name in self._tables[task] for name in self._names(split))]

    def open(self, task: str, split: str) -> Split:
        path = self._paths[task]
        table = find_split(path, self._tables[task], self._names(split))
        return read_split(path, split, table, (self.image,), (self.label,), self.image_size)

    def _names(self, split: str) -> tuple[str, ...]:
        return (self._called[split],) if split in self._called else CALLED[split]
