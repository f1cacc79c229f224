"""The eight tasks: where their texts come from, and how long their experts are trained."""

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from text_suite.docstrings import doc
from text_suite.passages import bible, icd, review, verb
from text_suite.splits import Examples, Text, make_splits
from text_suite.words import country, stress, wordlang


@dataclass(frozen=True)
class Task:
    """A task.

    Attributes:
        rows: folder of the sources → all texts.
        train: texts for training, at most.
        batch: texts per step of training.
        epochs: passes over the training texts.
        least: classes with fewer texts are left out.
    """

    rows: Callable[[Path], Iterable[Text]]
    train: int = 2400
    batch: int = 32
    epochs: int = 2
    least: int = 150


TASKS = {
    "stress": Task(stress, train=12000, batch=64, epochs=3),
    "country": Task(country, train=12000, batch=64, epochs=3),
    "wordlang": Task(wordlang, train=12000, batch=64),
    "icd": Task(icd, train=6000, batch=64, epochs=3),
    "verb": Task(verb, train=4800, least=350),
    "bible": Task(bible, train=6000),
    "review": Task(review),
    "doc": Task(doc, least=600),
}


def make_examples(name: str, work: Path) -> Examples:
    """The texts of a task: from `work/texts/<name>.json`, made from the sources where that does not exist."""
    path = work / "texts" / f"{name}.json"
    if path.exists():
        found = json.loads(path.read_text("utf-8"))
        return Examples(found["classes"], found["splits"])
    task = TASKS[name]
    rows = task.rows(work / ("downloads" if name == "doc" else "raw"))
    examples = make_splits(name, rows, task.train, task.least)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(json.dumps(vars(examples), ensure_ascii=False), "utf-8")
    part.replace(path)
    sizes = " / ".join(str(len(some)) for some in examples.splits.values())
    print(f"texts of {name}: {len(examples.classes)} classes, {sizes}", flush=True)
    return examples
