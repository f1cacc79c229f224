"""Suite: the images of a built-in zoo."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from lit_merge.checkpoints import SafetensorsFile
from lit_merge.data.base import Labelled, TaskData
from lit_merge.data.corruptions import CorruptedImages, Corruption, Kind
from lit_merge.data.streams import ImageSource, ImageTensor
from lit_merge.errors import MergeError
from lit_merge.locations import resolve

PROTOCOLS = {
    "inductive": "inductive (adapted on other images, of other fonts, than tested on)",
    "transductive": "transductive (adapted on the test images themselves, without their labels)",
}


class Suite(TaskData):
    """Images of a folder that scripts/build_zoo.py made: uint8, 32 × 32.

    Args:
        path: `zoo:8` (shipped), `zoo:14`, `zoo:20` or a folder.
        protocol: `inductive` adapts on the adaptation images and tests on the test images; `transductive` adapts on
            the test images, whose labels it does not read.
        tasks: some of the suite's tasks; all by default.
        corruption: noise, blur, contrast, brightness or pixelate, of all images: adapted and tested on.
        severity: of the corruption, 1 to 5.
        batch_size: images of each task per adaptation step and process.
        eval_batch_size: images per batch of validation and test.
        seed: of the order in which images are drawn, and of the noise.

    Raises:
        MergeError: no suite there, or a task that it has not; no such corruption.
    """

    def __init__(
        self,
        path: str = "zoo:8",
        protocol: Literal["inductive", "transductive"] = "inductive",
        tasks: list[str] | None = None,
        corruption: Kind | None = None,
        severity: int = 3,
        batch_size: int = 16,
        eval_batch_size: int = 500,
        seed: int = 0,
    ) -> None:
        # Images come from memory: a reading process would only cost.
        super().__init__(batch_size, eval_batch_size, num_workers=0, seed=seed)
        if protocol not in PROTOCOLS:
            raise MergeError(f"protocol={protocol!r}: expected inductive or transductive")
        self.path: Path = resolve(path)
        self._protocol = protocol
        self._corruption = None if corruption is None else Corruption(corruption, severity, seed)
        self._images = SafetensorsFile(self.path / "images.safetensors")
        all_tasks = tuple(dict.fromkeys(name.rpartition("/")[0] for name in self._images.shapes))
        for task in tasks or ():
            if task not in all_tasks:
                raise MergeError(f"{path} has no task {task!r}; it has {', '.join(all_tasks)}", task=task)
            if tasks is not None and tasks.count(task) > 1:
                raise MergeError(f"tasks={tasks} names {task!r} twice", task=task)
        self._tasks = tuple(tasks or all_tasks)

    @property
    def tasks(self) -> tuple[str, ...]:
        return self._tasks

    @property
    def protocol(self) -> str:
        about = self._corruption
        corrupted = f"; all images corrupted: {about.kind}, severity {about.severity}" if about else ""
        return PROTOCOLS[self._protocol] + corrupted

    def class_names(self, task: str) -> list[str] | None:
        path = self.path / "zoo.json"
        if not path.is_file():
            return None
        about = json.loads(path.read_text(encoding="utf-8"))
        return next((one["classes"] for one in about["tasks"] if one["name"] == task), None)

    def identity(self, split: str) -> list[Any]:
        # Contents, which are small and read anyway: suites of other seeds have equal names and sizes.
        return [*super().identity(split), hashlib.blake2b(self._images.path.read_bytes()).hexdigest()]

    def unlabelled(self) -> Mapping[str, ImageSource]:
        split = "adaptation" if self._protocol == "inductive" else "test"
        return {task: self._source(f"{task}/{split}") for task in self.tasks}

    def labelled(self, split: str) -> Mapping[str, Labelled]:
        labels = SafetensorsFile(self.path / "labels.safetensors")
        found: dict[str, Labelled] = {}
        for task in self.tasks:
            images, targets = self._source(f"{task}/{split}"), labels.read(f"{task}/{split}")
            if len(images) != len(targets):
                raise MergeError(
                    f"{self.path}: {task}/{split} has {len(images)} images and {len(targets)} labels", task=task
                )
            found[task] = images, targets
        return found

    def _source(self, name: str) -> ImageSource:
        images = ImageTensor(self._images.read(name))
        return images if self._corruption is None else CorruptedImages(images, self._corruption, name)
