"""ZeroShotHeads: heads from the names of the classes, as CLIP makes them."""

import hashlib
import json
import math
import os
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from open_clip import OPENAI_IMAGENET_TEMPLATES, build_zero_shot_classifier
from open_clip.model import _build_text_tower, convert_to_custom_text_state_dict
from open_clip.tokenizer import SimpleTokenizer
from torch import Tensor, nn
from torch.nn import functional as F

from lit_merge.checkpoints import Checkpoint, canonical, is_image, open_checkpoint, write_safetensors
from lit_merge.checkpoints.locations import cache_folder, resolve
from lit_merge.console import track
from lit_merge.data.class_names import ClassNames
from lit_merge.errors import MergeError, MergeWarning
from lit_merge.networks.architectures.clip import read_config
from lit_merge.networks.heads.base import CosineHeads

# CLIP's own 80.
TEMPLATES = tuple(template("{}") for template in OPENAI_IMAGENET_TEMPLATES)
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
        options, path = read_config(config), resolve(self.weights)
        called, names = self._names()
        templates = self._templates(names)
        about = [options, names, templates, version("open_clip_torch")]
        about += [digest_of(file) for file in open_checkpoint(path).files]
        digest = hashlib.blake2b(json.dumps(about, sort_keys=True).encode(), digest_size=16).hexdigest()
        kept = cache_folder() / "heads" / f"{digest}.safetensors"
        if not kept.exists():
            tower = TextTower(options, path, config)
            rows = {task: zero_shot_rows(tower, task, names[task], templates[task]) for task in names}
            try:
                write_safetensors(kept, rows, {"logit_scale": repr(tower.logit_scale)}, overwrite=True)
            except MergeError as error:
                warnings.warn(f"heads are computed again next time: {error}", MergeWarning, stacklevel=2)
                made = CosineHeads(rows, tower.logit_scale)
                made.name_rows(called, "classes")
                return made
        made = CosineHeads.load(kept)
        # Here rather than in the file: the same words may stand for other names.
        made.name_rows(called, "classes")
        return made

    def _names(self) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
        """Task → what the data calls its classes, and the words for their texts."""
        if not isinstance(self.classes, ClassNames):
            lines = {task: read_names(task, file) for task, file in self.classes.items()}
            called = {
                task: unique_names(task, [line.partition("\t")[0].strip() for line in found], str(self.classes[task]))
                for task, found in lines.items()
            }
            return called, {task: [line.rpartition("\t")[2].strip() for line in found] for task, found in lines.items()}
        found = {}
        for task in self.classes.tasks:
            names = self.classes.class_names(task)
            if names is None:
                raise MergeError(
                    f"the data does not know the names of the classes of task {task}: give classes as task → text file",
                    task=task,
                )
            found[task] = unique_names(task, list(names), "the data")
        return found, found

    def _templates(self, tasks: Iterable[str]) -> dict[str, list[str]]:
        given = self.templates
        if not isinstance(given, dict):
            return dict.fromkeys(tasks, read_templates(given))
        for task in given:
            if task not in tasks:
                raise MergeError(f"templates: there is no task {task!r}; there are {', '.join(tasks)}", task=task)
        return {task: read_templates(given.get(task)) for task in tasks}


class TextTower(nn.Module):
    """The text tower of an open_clip model with its tokenizer, which open_clip ships.

    Args:
        options: the model's configuration.
        path: file with its weights; those of the image tower are left out.
        label: what messages call the configuration.

    Raises:
        MergeError: no text tower, one of another library, or weights that are not its own.
    """

    def __init__(self, options: Mapping[str, Any], path: Path, label: str) -> None:
        super().__init__()
        text: dict[str, Any] = options.get("text_cfg") or {}
        foreign = text.get("hf_model_name") or text.get("hf_tokenizer_name") or options.get("multimodal_cfg")
        if not text or foreign:
            raise MergeError(
                f"{label} has no text tower that open_clip builds by itself, so it makes no heads from class names: "
                "give a file of heads"
            )
        self.tokenizer = SimpleTokenizer(
            context_length=text.get("context_length", 77), **text.get("tokenizer_kwargs") or {}
        )
        try:
            self.text = _build_text_tower(options["embed_dim"], dict(text), options.get("quick_gelu", False))
        except (KeyError, TypeError) as error:
            raise MergeError(f"{label} is no open_clip configuration: {error!r}") from error
        if self.text.vocab_size < self.tokenizer.vocab_size:
            raise MergeError(f"{label}: vocab_size is {self.text.vocab_size}, CLIP's tokens are 49408")
        weights = read_text_weights(path)
        self.logit_scale = math.exp(weights["logit_scale"].item()) if "logit_scale" in weights else 100.0
        own = {name.removeprefix("text."): value for name, value in weights.items() if name.startswith("text.")}
        check_weights(own, self.text.state_dict(), path, label)
        self.text.load_state_dict(own)
        self.eval()

    def encode_text(self, tokens: Tensor, normalize: bool = False) -> Float[Tensor, "B d"]:
        """As open_clip's models do."""
        features = self.text(tokens)
        return F.normalize(features, dim=-1) if normalize else features


def zero_shot_rows(tower: TextTower, task: str, names: Sequence[str], templates: Sequence[str]) -> Float[Tensor, "C d"]:
    """A head from class names, as open_clip builds it."""
    parts = [names[start : start + BATCH] for start in range(0, len(names), BATCH)]
    columns = [
        build_zero_shot_classifier(tower, tower.tokenizer, part, templates, num_classes_per_batch=None)
        for part in track(parts, f"embedding class names of {task}", len(parts))
    ]
    return torch.cat(columns, dim=1).T.contiguous()


def read_text_weights(path: Path) -> dict[str, Tensor]:
    """Weights of a model but for its image tower; those of the text tower are called `text.…`.

    Raises:
        MergeError: no such file, or no file of weights.
    """
    file = canonical(open_checkpoint(path))
    found = {name: file.read(name) for name in file.shapes if not _is_image(name, file)}
    return dict(convert_to_custom_text_state_dict(found))


def _is_image(name: str, file: Checkpoint) -> bool:
    # A file of a text tower alone is no whole CLIP, and keeps its names.
    return name.startswith("visual.") if file.naming.identity else is_image(name)


def check_weights(found: Mapping[str, Tensor], own: Mapping[str, Tensor], path: Path, label: str) -> None:
    """Raises MergeError where names or shapes are not those of the text tower."""
    for name in sorted(own.keys() ^ found.keys()):
        lacks = f"{path} has no weight {name}" if name in own else f"{label} has no weight {name}, which {path} has"
        raise MergeError(f"{lacks} of the text tower: take the weights of this configuration", weight=name)
    for name, value in own.items():
        if value.shape != found[name].shape:
            raise MergeError(
                f"{name} of the text tower has shape {list(value.shape)} in {label} and {list(found[name].shape)} in "
                f"{path}",
                weight=name,
            )


def read_names(task: str, file: str | os.PathLike[str]) -> list[str]:
    """Names of the classes of a task, one on every line that is not blank.

    Raises:
        MergeError: no such file, no name in it, or one twice.
    """
    path = resolve(file)
    names = read_lines(path, f"class names of task {task}")
    if not names:
        raise MergeError(f"{path} (class names of task {task}) is empty: expected a name on every line", task=task)
    return unique_names(task, names, str(path))


def unique_names(task: str, names: list[str], where: str) -> list[str]:
    """The names; MergeError where one is there twice."""
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise MergeError(
            f"{where} (class names of task {task}) names {', '.join(map(repr, twice))} more than once: give "
            "every class a name of its own",
            task=task,
        )
    return names


def read_templates(given: Sequence[str] | str | None) -> list[str]:
    """Templates from a list or a file; CLIP's 80 for None.

    Raises:
        MergeError: no such file, no template, or one without {}.
    """
    templates = list(TEMPLATES if given is None else given)
    where = "templates"
    if isinstance(given, str):
        path = resolve(given)
        templates, where = read_lines(path, "templates"), str(path)
    if not templates:
        raise MergeError(f"{where}: expected at least one, as 'a photo of a {{}}.'")
    for template in templates:
        if template.count("{}") != 1 or template.count("{") + template.count("}") != 2:
            raise MergeError(f"{where}: {template!r} has not one {{}} where the name goes, as 'a photo of a {{}}.'")
    return templates


def read_lines(path: Path, what: str) -> list[str]:
    """The lines of a text file that are not blank, without the space around them."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise MergeError(f"{path} ({what}): {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise MergeError(
            f"{path} ({what}) is no text in UTF-8: {error.reason} at byte {error.start}: save it in UTF-8"
        ) from error
    return [line.strip() for line in lines if line.strip()]


def digest_of(path: Path) -> str:
    """Of a file's content, in hexadecimal digits."""
    digest = hashlib.blake2b(digest_size=16)
    try:
        with path.open("rb") as file:
            while part := file.read(1 << 24):
                digest.update(part)
    except OSError as error:
        raise MergeError(f"{path}: {error.strerror}") from error
    return digest.hexdigest()
