"""Classes that configurations of tests name: data that writes down what is read, ends in mid-fit and in mid-merge."""

import json
import os
import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback
from torch import Tensor

from lit_merge import CART, Suite
from lit_merge.bank.low_rank import Delta
from lit_merge.data.streams import ImageSource
from lit_merge.experts.weight import Weight


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


merged: list[str] = []
"""Weights that this process has merged by MortalCART."""


@dataclass(frozen=True)
class MortalCART(CART):
    """A merge whose second process does not get beyond the third weight of its rest, unless there is a file `ended`.

    Every process leaves a file `merging-PID`.

    Args:
        end: `killed` by SIGKILL; `broken` by an error that no user can mend; `waiting`, with a file `waiting`.
    """

    end: str = "killed"

    def rest(self, weight: Weight) -> tuple[Tensor, Delta | None]:
        Path(f"merging-{os.getpid()}").touch()
        merged.append(weight.name)
        if os.environ.get("LOCAL_RANK") == "1" and len(merged) == 3 and not Path("ended").exists():
            Path("waiting" if self.end == "waiting" else "ended").touch()
            if self.end == "waiting":
                time.sleep(600)
            if self.end == "broken":
                raise ZeroDivisionError("a bug")
            os.kill(os.getpid(), signal.SIGKILL)
        return super().rest(weight)
