"""ZeroShotHeads: heads from the names of the classes, in templates as `a photo of a {}.`, as CLIP makes them."""

import hashlib
import json
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from lit_merge.checkpoints import open_checkpoint, write_safetensors
from lit_merge.checkpoints.locations import cache_folder, resolve
from lit_merge.checkpoints.outputs import is_kept
from lit_merge.checkpoints.own import check_own
from lit_merge.console import track
from lit_merge.data.class_names import ClassNames, distinct_names, read_lines
from lit_merge.errors import MergeError, MergeWarning
from lit_merge.networks.clip_configurations import open_clip_options
from lit_merge.networks.heads.cosine import CosineHeads
from lit_merge.networks.heads.text_tower import TextTower

# Classes per forward of the text tower, each in all templates.
BATCH = 10


@dataclass(frozen=True)
class ZeroShotHeads:
    """One row per class: the mean over templates of the normalised embeddings of `a photo of a {class}`, normalised.

    Rows are kept in the cache (`$LIT_MERGE_CACHE`) under a digest of all that they depend on.

    Args:
        classes: task → text file with the name of a class on every line; where the data calls it otherwise, the data's
            name, a tab, and the words for the text. Or data, whose labels have names: in a configuration `${data}` is
            the one that it adapts on.
        weights: file with the text tower of the pretrained model, in any format that experts may have.
            Its `logit_scale` is taken too; 100 where there is none.
        templates: texts with `{}` where the name goes, or a text file with one on every line; or task → such; CLIP's
            80 by default.
    """

    classes: dict[str, str] | ClassNames
    weights: str
    templates: dict[str, list[str] | str] | list[str] | str | None = None

    def build(self, config: str) -> CosineHeads:
        """The heads, computed on the CPU once and read from the cache afterwards.

        Args:
            config: name of the open_clip model, or path of its JSON configuration, with a text tower.

        Raises:
            MergeError: no class or the same one twice, a template without {}, a file that is missing, weights that are
                not the text tower's.
        """
        options, path = open_clip_options(config), resolve(self.weights)
        called, names = self._names()
        templates = self._templates(names)
        # Of the text tower: how images are prepared changes no head.
        sizes = {name: value for name, value in options.items() if name != "preprocess_cfg"}
        about = [sizes, names, templates, version("open_clip_torch")]
        about += [digest_of(file) for file in open_checkpoint(path).files]
        digest = hashlib.blake2b(json.dumps(about, sort_keys=True).encode(), digest_size=16).hexdigest()
        kept = cache_folder() / "heads" / f"{digest}.safetensors"
        if not is_kept(kept):
            tower = TextTower(options, path, config)
            rows = {task: zero_shot_rows(tower, task, names[task], templates[task]) for task in names}
            try:
                write_safetensors(kept, rows, {"logit_scale": repr(tower.logit_scale)}, overwrite=True)
            except MergeError as error:
                warnings.warn(f"heads are computed again next time: {error}", MergeWarning, stacklevel=2)
                made = CosineHeads(rows, tower.logit_scale)
                made.name_rows(called, "classes")
                return made
        check_own(kept)
        made = CosineHeads.load(kept)
        # Not in the file: the same words may stand for other names.
        made.name_rows(called, "classes")
        return made

    def _names(self) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
        """Task → what the data calls its classes, and the words for their texts."""
        if not isinstance(self.classes, ClassNames):
            lines, called = {}, {}
            for task, file in self.classes.items():
                lines[task] = distinct_names(task, read_lines(resolve(file), f"class names of task {task}"), file)
                called[task] = distinct_names(task, [one.partition("\t")[0].strip() for one in lines[task]], file)
            return called, {task: [one.rpartition("\t")[2].strip() for one in found] for task, found in lines.items()}
        found = {}
        for task in self.classes.tasks:
            names = self.classes.class_names(task)
            if names is None:
                raise MergeError(
                    f"the data does not know the names of the classes of task {task}: give classes as task → text file",
                    task=task,
                )
            found[task] = distinct_names(task, names, "the data")
        return found, found

    def _templates(self, tasks: Iterable[str]) -> dict[str, list[str]]:
        given = self.templates
        if not isinstance(given, dict):
            return dict.fromkeys(tasks, read_templates(given))
        for task in given:
            if task not in tasks:
                raise MergeError(f"templates: there is no task {task!r}; there are {', '.join(tasks)}", task=task)
        return {task: read_templates(given.get(task)) for task in tasks}


def zero_shot_rows(tower: TextTower, task: str, names: Sequence[str], templates: Sequence[str]) -> Float[Tensor, "C d"]:
    """A head from class names, which open_clip builds."""
    from open_clip import build_zero_shot_classifier

    parts = [names[start : start + BATCH] for start in range(0, len(names), BATCH)]
    columns = [
        build_zero_shot_classifier(tower, tower.tokenizer, part, templates, num_classes_per_batch=None)
        for part in track(parts, f"embedding class names of {task}", len(parts))
    ]
    return torch.cat(columns, dim=1).T.contiguous()


def digest_of(path: Path) -> str:
    """A digest of a file's content, in hexadecimal digits."""
    digest = hashlib.blake2b(digest_size=16)
    try:
        with path.open("rb") as file:
            while part := file.read(1 << 24):
                digest.update(part)
    except OSError as error:
        raise MergeError(f"{path}: {error.strerror}") from error
    return digest.hexdigest()


def clip_templates() -> list[str]:
    """The 80 templates of CLIP."""
    from open_clip import OPENAI_IMAGENET_TEMPLATES

    return [template("{}") for template in OPENAI_IMAGENET_TEMPLATES]


def read_templates(given: Sequence[str] | str | None) -> list[str]:
    """Templates from a list or a file; CLIP's 80 for None.

    Raises:
        MergeError: no such file, no template, or one without {}.
    """
    templates = clip_templates() if given is None else list(given)
    where = "templates"
    if isinstance(given, str):
        path = resolve(given)
        templates, where = read_lines(path, "templates"), str(path)
    if not templates:
        raise MergeError(f"{where}: expected at least one, as 'a photo of a {{}}.'")
    for template in templates:
        if template.count("{}") != 1 or template.count("{") + template.count("}") != 2:
            raise MergeError(f"{where}: {template!r} lacks the one {{}} where the name goes, as 'a photo of a {{}}.'")
    return templates
