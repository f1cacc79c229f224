"""The text of a first configuration: one whole YAML file, whose comments say what is still to fill in."""

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lit_merge.checkpoints import Checkpoint
from lit_merge.checkpoints.json_text import entries_of
from lit_merge.cli.starting.found_files import FoundFiles
from lit_merge.cli.starting.model_kind import ModelKind, library_of, tower_of
from lit_merge.networks.clip_configurations import activation_of
from lit_merge.networks.clip_shapes import TowerSizes, has_sizes, open_clip_names, tower_sizes
from lit_merge.networks.preprocessing import says_preprocessing

PLAIN = re.compile(r"[A-Za-z_./][\w./-]*")
TO_FILL = "# TO FILL: "
CART = """\
  method: # others and their options: docs/methods.md
    class_path: CART
    init_args:
      rank_ratio: 0.16 # share of every matrix's singular directions that is kept of each task
      scaling: 1.0 # `fit` learns it from here on; `sweep --select agreement` chooses it and the rank without labels
"""
STAGES = """\
  stages: # of `fit`: first one scale, by entropy; then a coefficient for every direction, by the experts
    - {granularity: tied, steps: 100, lr: 0.05}
    - granularity: direction
      steps: 100
      lr: 0.04 # of the scale that the first stage has found
      relative: true
      decay: cosine
      objective: {class_path: ExpertAgreement} # leave this stage out where there are no experts any more
"""


@dataclass
class ConfigurationText:
    """Lines of YAML, and what of them is still to fill in."""

    text: str = ""
    missing: list[str] = field(default_factory=list)

    def add(self, *lines: str) -> None:
        self.text += "".join(f"{line}\n" for line in lines)

    def fill(self, line: str, what: str) -> None:
        """A line with a place that the user has to fill in."""
        self.missing.append(what)
        self.add(f"{line} {TO_FILL}{what}")


def configuration_text(
    files: FoundFiles, kind: ModelKind, checkpoint: Checkpoint, output: str
) -> tuple[str, list[str], str]:
    """The file's text, what is still to fill in, and what the experts are, in words.

    Args:
        files: experts, base, and what lies next to them.
        kind: of the experts.
        checkpoint: the first expert, opened: shapes by canonical names.
        output: the file that the text is for.
    """
    made, about = ConfigurationText(), kind.value
    made.add("seed_everything: 0")
    if kind in (ModelKind.CLIP, ModelKind.TEXT):
        made.add(f"run: {scalar(f'runs/{Path(output).stem}')} # the folder that `fit` writes")
    _model(made, files)
    if kind is ModelKind.CLIP:
        sizes = tower_sizes(checkpoint.shapes)
        about += f" in {library_of(checkpoint)}'s names" + (f": {sizes}" if sizes else "")
        _image_network(made, files, checkpoint, sizes)
        made.text += CART + STAGES
        _images(made, files)
    elif kind is ModelKind.TEXT:
        _text_network(made, files)
        made.text += CART + STAGES
        _texts(made, files)
    else:
        _method_without_data(made, files)
    return _comment(about, files, kind, made.missing, output) + made.text, made.missing, about


def _comment(about: str, files: FoundFiles, kind: ModelKind, missing: Iterable[str], output: str) -> str:
    runs = kind in (ModelKind.CLIP, ModelKind.TEXT)
    lines = [f"Written by `lit-merge init`: {len(files.experts)} {about}."]
    lines += [f"Still to fill in: {one}." for one in missing]
    lines += ["Paths are looked up from the folder in which you give the command. What to do with this file:"]
    name = scalar(output)
    lines += [f"  lit-merge merge --config {name} --dry-run"]
    if runs:
        lines += [f"  lit-merge sweep --config {name} --output runs/sweep --select agreement --inputs unlabelled"]
        lines += [f"  lit-merge fit --config {name}"]
    else:
        place = "merged" if kind is ModelKind.LANGUAGE else "merged.safetensors"
        lines += [f"  lit-merge merge --config {name} --output {place}"]
    return "".join(f"# {line}\n" for line in lines)


def _model(made: ConfigurationText, files: FoundFiles) -> None:
    made.add("", "model:", "  experts: # task: file or folder")
    made.add(*_mapping(files.experts, 4))
    if files.base is not None:
        made.add(f"  base: {scalar(files.base)} # the model before fine-tuning")
    else:
        made.add("  # base: pretrained.safetensors # the model before fine-tuning: many methods need it, CART does not")


def _image_network(
    made: ConfigurationText, files: FoundFiles, checkpoint: Checkpoint, sizes: TowerSizes | None
) -> None:
    config, note = _clip_configuration(files, checkpoint, sizes)
    about = entries_of(Path(config)) if config else {}
    network = "HuggingFaceImageEncoder" if "model_type" in about else "OpenClipImageEncoder"
    made.add("  network:", f"    class_path: {network}", "    init_args:")
    if config is None:
        made.fill("      config: network.json", f"the network's configuration ({note})")
    elif note:
        made.add(f"      config: {scalar(config)} # {note}")
    else:
        made.add(f"      config: {scalar(config)}")
    if (heads := files.heads) is not None:
        made.add(f"      heads: {scalar(heads)} # a row for every class of every task")
    elif (classes := files.classes) is not None and files.base is not None:
        made.add("      heads: # from the names of the classes, by the text tower of the base")
        made.add("        class_path: ZeroShotHeads", "        init_args:", "          classes: # a name on every line")
        made.add(*_mapping(classes, 12), f"          weights: {scalar(files.base)}")
    else:
        made.fill("      heads: heads.safetensors", "a file of heads, {task: (classes, width)}: docs/your_own_clip.md")


def _clip_configuration(files: FoundFiles, checkpoint: Checkpoint, sizes: TowerSizes | None) -> tuple[str | None, str]:
    """The configuration of the image tower, or None, and what is to be said of it."""
    fitting = [path for path in files.configurations() if _fits(entries_of(path), checkpoint, sizes)]
    if fitting:
        # Experts are often saved without, and then it is the base's that says how images are prepared.
        return str(next((path for path in fitting if says_preprocessing(path)), fitting[0])), ""
    if sizes is None:
        return None, "no vision transformer of CLIP, whose sizes are known from its weights"
    names = open_clip_names(sizes)
    if not names:
        return None, f"no model of open_clip is {sizes}"
    quick, activation = next((name for name in names if name.endswith("-quickgelu")), None), activation_of(checkpoint)
    if quick is None or activation is not None:
        return (quick or names[0]) if activation == "quick_gelu" else names[0], ""
    return names[0], f"{quick} for OpenAI's weights: no weight shows which activation a model was trained with"


def _fits(about: dict[str, Any], checkpoint: Checkpoint, sizes: TowerSizes | None) -> bool:
    """Whether this is the configuration of an image tower of these sizes, or of this kind where sizes do not tell; of
    any CLIP where it is Hugging Face's."""
    if about.get("model_type") in ("clip", "clip_vision_model"):
        return True
    options = about.get("model_cfg", about)
    if sizes is not None:
        return has_sizes(options, sizes)
    vision = options.get("vision_cfg") if isinstance(options, dict) else None
    if not isinstance(vision, dict):
        return False
    kind = "timm" if "timm_model_name" in vision else "resnet" if isinstance(vision.get("layers"), list) else ""
    return kind == tower_of(checkpoint)


def _images(made: ConfigurationText, files: FoundFiles) -> None:
    made.add("", "data:", "  class_path: ImageFolders", "  init_args:")
    _inputs(made, files, "images", lambda task: f"images/{task}", "a folder of images without labels for every task")
    _labelled(made, files, lambda task: f"labelled/{task}", "a folder for every class")


def _text_network(made: ConfigurationText, files: FoundFiles) -> None:
    config = files.folder_with("config.json")
    made.add("  network:", "    class_path: HuggingFaceTextEncoder", "    init_args:")
    if config is None:
        made.fill("      config: pretrained", "a folder with the model's config.json")
    else:
        made.add(f"      config: {scalar(config)} # heads are the classifiers in the experts' files")


def _texts(made: ConfigurationText, files: FoundFiles) -> None:
    tokenizer = files.folder_with("tokenizer.json", "vocab.txt", "tokenizer_config.json")
    made.add("", "data:", "  class_path: TextFiles", "  init_args:")
    if tokenizer is None:
        made.fill("    tokenizer: pretrained", "a folder with the tokenizer")
    else:
        made.add(f"    tokenizer: {scalar(tokenizer)}")
    _inputs(made, files, "texts", lambda task: f"texts/{task}.csv", "a table of texts without labels for every task")
    _labelled(made, files, lambda task: f"labelled/{task}.csv", "tables with a column of labels")
    made.add("    text: text # the column; [question, answer] for pairs", "    label: label")


def _method_without_data(made: ConfigurationText, files: FoundFiles) -> None:
    """Language models, and what no network is known for: merged weight by weight."""
    if files.base is None:
        made.add("  method: # needs no base; with one, TaskArithmetic and TIES are a good start: docs/methods.md")
        made.add("    class_path: WeightAveraging")
        return
    made.add("  method: # others and their options: docs/methods.md", "    class_path: TaskArithmetic")
    made.add("    init_args:", "      scaling: 0.3 # of the sum of the differences from the base")


def _inputs(made: ConfigurationText, files: FoundFiles, kind: str, place: Callable[[str], str], what: str) -> None:
    found = files.inputs()
    if found is not None:
        made.add(f"    adapt: # {kind} without labels; labels are not read")
    else:
        made.fill("    adapt:", what)
    made.add(*_mapping(found or {task: place(task) for task in files.experts}, 6))


def _labelled(made: ConfigurationText, files: FoundFiles, place: Callable[[str], str], what: str) -> None:
    if (found := files.inputs(labelled=True)) is not None:
        made.add(f"    test: # for accuracies: {what}", *_mapping(found, 6))
        return
    made.add(f"    # test: # for accuracies, where there are labels: {what}")
    made.add(*(f"    #   {line.strip()}" for line in _mapping({task: place(task) for task in files.experts}, 6)))


def _mapping(entries: Mapping[str, str], indent: int) -> list[str]:
    return [f"{' ' * indent}{scalar(key)}: {scalar(value)}" for key, value in entries.items()]


def scalar(text: str) -> str:
    """Text as YAML has it: as it is, or in quotes where it could be read as something else."""
    return text if PLAIN.fullmatch(text) else json.dumps(text, ensure_ascii=False)
