"""What configurations of test_distributed.py name: data that writes down what is read, and a kill in mid-fit."""

import json
import os
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback
from torch import Tensor

from lit_merge import Suite
from lit_merge.data.streams import ImageSource


class Noted(ImageSource):
    """Appends the positions of the images that are read to a file."""

    def __init__(self, images: ImageSource, task: str, file: Path) -> None:
        self.images, self.task, self.file = images, task, file

    def __len__(self) -> int:
        return len(self.images)

    def read(self, indices: Sequence[int]) -> Tensor:
        with self.file.open("a") as file:
            file.write(json.dumps([self.task, list(indices)]) + "\n")
        return self.images.read(indices)


class WatchedSuite(Suite):
    """A file `split-rank` in the working folder for every split and process."""

    def unlabelled(self) -> Mapping[str, ImageSource]:
        return {task: Noted(images, task, self._file("adaptation")) for task, images in super().unlabelled().items()}

    def labelled(self, split: str) -> Mapping[str, Any]:
        found = super().labelled(split)
        return {task: (Noted(images, task, self._file(split)), labels) for task, (images, labels) in found.items()}

    def _file(self, split: str) -> Path:
        return Path(f"{split}-{os.environ.get('LOCAL_RANK', 0)}")


class KillOnce(Callback):
    """SIGKILL to the first process of the run at this step, where no file `killed` is there."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer: Any, *arguments: Any) -> None:
        if trainer.global_step == self.step and trainer.is_global_zero and not Path("killed").exists():
            Path("killed").touch()
            os.kill(os.getpid(), signal.SIGKILL)
