"""What is kept of every merge that was read: its point of the sweep, and its logits on the unlabelled inputs."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from jaxtyping import Float
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, cat

from lit_merge.choose.sample import Probe
from lit_merge.choose.sweep import Point

Logits = dict[str, Float[Tensor, "N C"]]


class Recorder(Probe):
    """A probe that keeps the logits it saw last, so that rules can be tried later without another forward."""

    @property
    def seen(self) -> Logits:
        """task → logits (N, C) of the last reading."""
        return {task: cat(parts) for task, parts in self._last.items()}

    def _forward(self, weights: Mapping[str, Tensor], tasks: list[str]) -> Iterator[tuple[str, Tensor]]:
        self._last: dict[str, list[Tensor]] = {task: [] for task in tasks}
        for task, logits in super()._forward(weights, tasks):
            self._last[task].append(logits.cpu())
            yield task, logits


@dataclass(frozen=True)
class Record:
    """One merge of the study."""

    point: Point
    pool: Logits

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{file_name(self.point)}.safetensors"
        save_atomically(self.pool, path, {"point": json.dumps(asdict(self.point))})


def file_name(point: Point) -> str:
    return "_".join(str(part) for part in point.key)


def load_records(folder: Path) -> list[Record]:
    """All records of a folder, by file name."""
    found = []
    for path in sorted(folder.glob("*.safetensors")):
        pool, metadata = load(path)
        found.append(Record(Point(**json.loads(metadata["point"])), pool))
    return found


def load(path: Path) -> tuple[Logits, dict[str, str]]:
    with safe_open(path, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118


def save_atomically(tensors: Logits, path: Path, metadata: dict[str, str] | None = None) -> None:
    part = path.with_suffix(".part")
    save_file({name: value.contiguous() for name, value in tensors.items()}, part, metadata)
    part.replace(path)
