"""A few test inputs of every task, and what every state of a run predicts of them: for people who look at a report."""

import base64
import io
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from torch import Tensor, distributed

from lit_merge.adaptation.callbacks.prediction_writer import class_names
from lit_merge.adaptation.merged_model import MergedModel
from lit_merge.checkpoints import write_text
from lit_merge.data import TaskData
from lit_merge.data.streams import ImageSource
from lit_merge.errors import MergeError
from lit_merge.report.run_folder import SAMPLES

# Inputs of every task, spread over all of them, and the most probable classes of each.
COUNT, TOP = 4, 3
# Pixels of a picture's longer side.
SIDE = 96

Seen = dict[str, dict[str, Any]]
"""`TASK/POSITION` → `label`, the head's row that is right, and state → rows and probabilities."""


class Samples:
    """What is predicted of these inputs, noted while the whole test data are scored: no forward is made for it.

    Args:
        data: whose test inputs are looked at.
        seen: what an earlier attempt of the fit has noted.
    """

    def __init__(self, data: TaskData, seen: Mapping[str, Any] | None = None) -> None:
        self.seen: Seen = {key: dict(value) for key, value in (seen or {}).items()}
        self._sources = {task: source for task, (source, _) in data.labelled("test").items()}
        self._wanted = {task: spread(len(source)) for task, source in self._sources.items()}

    def of(self, state: str) -> Callable[[Mapping[str, Any], Tensor, Tensor], None]:
        """A function that takes a batch, its logits (B, C) and its right rows (B,), for `Evaluator`."""

        def note(batch: Mapping[str, Any], logits: Tensor, rows: Tensor) -> None:
            wanted = self._wanted.get(batch["task"], ())
            for place, index in enumerate(batch["indices"].tolist()):
                if index in wanted:
                    found = logits[place].float().softmax(-1).topk(min(TOP, logits.shape[-1]))
                    about = self.seen.setdefault(f"{batch['task']}/{index}", {"label": int(rows[place])})
                    about[state] = [found.indices.tolist(), [round(p, 4) for p in found.values.tolist()]]

        return note

    def gather(self) -> None:
        """Takes what other processes of the fit have noted, which score other tasks."""
        if distributed.is_available() and distributed.is_initialized():
            every: list[Any] = [None] * distributed.get_world_size()
            distributed.all_gather_object(every, self.seen)
            for one in every:
                for key, about in one.items():
                    self.seen[key] = about | self.seen.get(key, {})

    def write(self, folder: Path, model: MergedModel, data: TaskData) -> None:
        """`samples.jsonl`: task, index, file, picture (a data URI) or text, label, and state → classes with their
        probabilities."""
        names: Mapping[str, Sequence[str]] = {}
        with suppress(MergeError):  # names that do not fit the head are no names
            names = class_names(data, model)
        lines = [
            json.dumps(self._line(task, index, names.get(task)))
            for task, positions in self._wanted.items()
            for index in positions
            if f"{task}/{index}" in self.seen
        ]
        if lines:
            write_text(folder / SAMPLES, "\n".join(lines) + "\n")

    def _line(self, task: str, index: int, names: Sequence[str] | None) -> dict[str, Any]:
        source, about = self._sources[task], dict(self.seen[f"{task}/{index}"])
        called = (lambda row: str(row)) if names is None else (lambda row: names[row])
        files, label = source.names([index]), about.pop("label")
        predictions = {
            state: [[called(row), p] for row, p in zip(*found, strict=True)] for state, found in about.items()
        }
        shown = {"text": text} if (text := source.text(index)) is not None else {"picture": picture(source, index)}
        place = {"task": task, "index": index, "file": files[0] if files else None}
        return place | shown | {"label": called(label), "predictions": predictions}


def spread(count: int) -> list[int]:
    """Positions of a few inputs among so many.

    >>> spread(100), spread(2)
    ([12, 37, 62, 87], [0, 1])
    """
    return sorted({int((i + 0.5) * count / COUNT) for i in range(COUNT)})


def picture(source: ImageSource, index: int) -> str | None:
    """An image as a data URI, PNG where it is small; None for an input that is no image."""
    from PIL import Image

    values = source.read([index])[0]
    if values.ndim not in (2, 3) or (values.ndim == 3 and values.shape[0] != 3):
        return None
    image = Image.fromarray((values if values.ndim == 2 else values.movedim(0, -1)).contiguous().numpy())
    small = max(image.size) <= SIDE
    image.thumbnail((SIDE, SIDE))
    file = io.BytesIO()
    image.save(file, "PNG" if small else "JPEG", **({"optimize": True} if small else {"quality": 85}))
    return f"data:image/{'png' if small else 'jpeg'};base64,{base64.b64encode(file.getvalue()).decode()}"
