"""Fixtures that all tests share: real files of a very small model, three experts of it, and their images.

Heavy packages are imported by the fixtures: pytest's own process, which gives tests out to others, waits for none.
"""

from __future__ import annotations

import copy
import gc
import importlib
import importlib.util
import json
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

os.environ["HF_HUB_OFFLINE"] = "1"
# Small tensors: more threads than this only cost.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest

from tests import shape_checks

# Before the package is imported.
shape_checks.install()
# What is imported stays: to look through it for garbage would take a fifth of the time of collecting.
gc.disable()

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from lit_merge import MergedModel, MergeMethod, Suite, TaskBank
    from lit_merge.adaptation.trainer import Trainer
    from lit_merge.networks import OpenClipImageEncoder

NETWORK = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 16, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8, "mlp_ratio": 2.0},
    "preprocess_cfg": {"mean": [0.5, 0.5, 0.5], "std": [0.3, 0.3, 0.3]},
}
CLASSES = {"alpha": 3, "beta": 4, "gamma": 5}
# Unequal on purpose, and no multiple of any batch size in use.
SIZES = {
    "alpha": {"adaptation": 21, "validation": 9, "test": 23},
    "beta": {"adaptation": 34, "validation": 7, "test": 17},
    "gamma": {"adaptation": 13, "validation": 8, "test": 26},
}
# What Lightning tells developers; the command line leaves it out too (quiet.py).
LIGHTNING_SAYS = (
    "does not have many workers",
    "module\\(s\\) in eval mode at the start of training",
    "isinstance\\(treespec, LeafSpec\\)",
    "GPU available but not used",
    "your dataloader is not resumable",
)


# The experts of the small model are drawn at random: adapting their merge often does harm, which fit's guard sees.
GUARD_SAYS = ("the fit went on for too long", "the fit collapses", "back to the coefficients of step")


def pytest_configure(config: pytest.Config) -> None:
    for text in (*LIGHTNING_SAYS, *GUARD_SAYS):
        config.addinivalue_line("filterwarnings", f"ignore:.*{text}.*")


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()


@dataclass(frozen=True)
class Tiny:
    """Paths of a zoo in the layout of `lit_merge/zoo/suite8`, and the same images as PNG files in folders."""

    root: Path
    tasks: tuple[str, ...]
    base: str
    experts: dict[str, str]
    network: str
    heads: str
    suite: str
    adapt_folders: dict[str, str]
    """task → folder of unlabelled images."""
    test_folders: dict[str, str]
    """task → folder of class folders."""

    @property
    def options(self) -> list[str]:
        """Of a command whose configuration is of the built-in suite, so that it takes this one."""
        network = ["--model.network.config", self.network, "--model.network.heads", self.heads]
        experts = ["--model.experts", f"{self.root}/experts", "--model.base", self.base]
        return [*experts, *network, "--data.path", self.suite]

    def encoder(self) -> OpenClipImageEncoder:
        from lit_merge.networks import OpenClipImageEncoder

        return OpenClipImageEncoder(self.network, self.heads)

    def data(self, **options: Any) -> Suite:
        from lit_merge import Suite

        return Suite(self.suite, **{"batch_size": 4, "eval_batch_size": 10} | options)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """Base, three experts, heads, network.json, images and labels: written once, never changed."""
    import torch
    from open_clip.model import _build_vision_tower
    from safetensors.torch import save_file
    from torch.nn import functional as F

    from lit_merge.networks import OpenClipImageEncoder

    root = tmp_path_factory.mktemp("tiny")
    (root / "experts").mkdir()
    (root / "network.json").write_text(json.dumps(NETWORK))
    save_file({task: torch.eye(n, NETWORK["embed_dim"]) for task, n in CLASSES.items()}, root / "heads.safetensors")
    network = OpenClipImageEncoder(str(root / "network.json"), str(root / "heads.safetensors"))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        # The tower alone: a network keeps no weights.
        tower = _build_vision_tower(NETWORK["embed_dim"], NETWORK["vision_cfg"], False)
        base = {name: value.clone() for name, value in tower.state_dict().items()}
        save_file(base, root / "base.safetensors")
        heads, images, labels = {}, {}, {}
        for task, classes in CLASSES.items():
            expert = {name: w + 0.4 * w.std().nan_to_num(0.1) * torch.randn_like(w) for name, w in base.items()}
            save_file(expert, root / "experts" / f"{task}.safetensors")
            patterns = torch.randint(60, 196, (classes, 16, 16))
            pictures, targets = _draw(patterns, 30 * classes)
            features = F.normalize(torch.func.functional_call(network.encoder, expert, (network.prepare(pictures),)))
            means = torch.stack([features[targets == c].mean(0) for c in range(classes)])
            heads[task] = F.normalize(means - means.mean(0)).detach()
            for split, size in SIZES[task].items():
                images[f"{task}/{split}"], targets = _draw(patterns, size)
                if split != "adaptation":
                    labels[f"{task}/{split}"] = targets.to(torch.uint8)
    save_file(heads, root / "heads.safetensors", {"logit_scale": "16.0"})
    save_file(images, root / "images.safetensors")
    save_file(labels, root / "labels.safetensors")
    for task in CLASSES:
        _write_pngs(images[f"{task}/adaptation"], root / "folders" / task / "adapt")
        _write_pngs(images[f"{task}/test"], root / "folders" / task / "test", labels[f"{task}/test"])
    return Tiny(
        root=root,
        tasks=tuple(CLASSES),
        base=str(root / "base.safetensors"),
        experts={task: str(root / "experts" / f"{task}.safetensors") for task in CLASSES},
        network=str(root / "network.json"),
        heads=str(root / "heads.safetensors"),
        suite=str(root),
        adapt_folders={task: str(root / "folders" / task / "adapt") for task in CLASSES},
        test_folders={task: str(root / "folders" / task / "test") for task in CLASSES},
    )


def _draw(patterns: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Noisy pictures (N, 16, 16) of class patterns, and their classes (N,)."""
    import torch

    targets = torch.randint(len(patterns), (size,))
    noise = 45 * torch.randn(size, 16, 16)
    return (patterns[targets] + noise).clamp(0, 255).to(torch.uint8), targets


def _write_pngs(images: Tensor, folder: Path, labels: Tensor | None = None) -> None:
    from PIL import Image

    for i, image in enumerate(images):
        place = folder if labels is None else folder / f"class{labels[i]}"
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.numpy()).save(place / f"{i:03d}.png")


def _beside(name: str) -> Any:
    """A module beside this one, which importlib mode keeps off the path."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def language_models() -> Any:
    """Writers of very small language models; see language_models.py."""
    return _beside("language_models")


@pytest.fixture(scope="session")
def vision_files() -> Any:
    """Writers of small real files of the vision tasks; see vision_files.py."""
    return _beside("vision_files")


@pytest.fixture(scope="session")
def vision_root(vision_files: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files of every vision task that the installed packages can write."""
    root = tmp_path_factory.mktemp("vision")
    for task, write in vision_files.WRITERS.items():
        if task != "PCAM" or importlib.util.find_spec("h5py") is not None:
            write(root)
    return root


@pytest.fixture(scope="module")
def any_digest(vision_files: Any) -> Iterator[None]:
    """torchvision takes the small files for the originals, and asks for no unlabelled images of STL10."""
    from torchvision.datasets import STL10

    with pytest.MonkeyPatch.context() as patch:
        for name in vision_files.CHECKED:
            module = importlib.import_module(f"torchvision.datasets.{name}")
            patch.setattr(module, "check_integrity", lambda path, md5=None: Path(path).is_file())
        patch.setattr(STL10, "train_list", STL10.train_list[:2])
        yield


@pytest.fixture(scope="session")
def forks(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Runs commands of the package in processes that may be killed."""
    if sys.platform == "win32":
        pytest.skip("forks and signals are POSIX")
    from tests.forked_commands import Forks

    return Forks(tmp_path_factory.mktemp("forks") / "said")


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    import torch

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


@pytest.fixture(autouse=True)
def unpainted(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures are painted in tests marked `pictures` only."""
    from tests.forked_commands import leave_unpainted

    if request.node.get_closest_marker("pictures") is None:
        leave_unpainted(monkeypatch.setattr)


@pytest.fixture(scope="session")
def usual_bank(tiny: Tiny) -> TaskBank:
    """The three experts as CART leaves them: made once, to be copied."""
    from lit_merge import CART, build_bank

    return build_bank(tiny.experts, tiny.base, method=CART(rank_ratio=0.5, scaling=1.0))


@pytest.fixture
def make_model(tiny: Tiny, usual_bank: TaskBank) -> Callable[..., MergedModel]:
    """make_model(method=…, dtype=…, **options of MergedModel): a merge of the three experts."""
    from lit_merge import CART, MergedModel, build_bank

    def make(method: MergeMethod | None = None, dtype: torch.dtype | None = None, **options: Any) -> MergedModel:
        if method is None and dtype is None:
            bank = copy.deepcopy(usual_bank)
        else:
            method = method or CART(rank_ratio=0.5, scaling=1.0)
            bank = build_bank(tiny.experts, tiny.base, method=method, dtype=dtype)
        return MergedModel(bank, tiny.encoder(), **options)

    return make


@pytest.fixture
def make_trainer(tmp_path: Path) -> Callable[..., Trainer]:
    """make_trainer(max_steps=…, …): a quiet trainer on the CPU."""
    from lit_merge.adaptation.trainer import Trainer

    def make(**options: Any) -> Trainer:
        quiet = {
            "accelerator": "cpu",
            "devices": 1,
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "use_distributed_sampler": False,
            "num_sanity_val_steps": 0,
            "limit_val_batches": 0,
            "log_every_n_steps": 1,
            "default_root_dir": tmp_path,
        }
        return Trainer(**quiet | options)

    return make


WORDS = [f"w{i}" for i in range(60)]
TEXT_CLASSES = {"ham": 2, "mood": 3, "topic": 4}


@dataclass(frozen=True)
class TinyTexts:
    """Folders of very small text models as transformers saves them, and tables of texts."""

    root: Path
    tasks: tuple[str, ...] = tuple(TEXT_CLASSES)

    def folder(self, kind: str, name: str = "base") -> str:
        """The pretrained model of an architecture (bert, roberta, distilbert), or the expert of a task."""
        return str(self.root / kind / name)

    def experts(self, kind: str) -> dict[str, str]:
        return {task: self.folder(kind, task) for task in self.tasks}

    def tables(self, split: str) -> dict[str, str]:
        """task → CSV file; `adapt` has no labels."""
        return {task: str(self.root / f"{task}-{split}.csv") for task in self.tasks}


@pytest.fixture(scope="session")
def texts(tmp_path_factory: pytest.TempPathFactory) -> TinyTexts:
    """Base and three experts of three architectures, and their tables: written once, never changed."""
    import torch
    from transformers import AutoModel, AutoModelForSequenceClassification, BertConfig, DistilBertConfig, RobertaConfig
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    root = tmp_path_factory.mktemp("texts")
    common = {"vocab_size": 64, "initializer_range": 0.5, "max_position_embeddings": 18}
    bert = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    configs = {
        "bert": BertConfig(**common, **bert),
        "roberta": RobertaConfig(**common, **bert, pad_token_id=1, type_vocab_size=1),
        "distilbert": DistilBertConfig(**common, dim=16, n_layers=2, n_heads=2, hidden_dim=32),
    }
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for kind, config in configs.items():
            AutoModel.from_config(config).save_pretrained(root / kind / "base")
            save_tokenizer(root / kind / "base", segments=kind == "bert")
            for task, classes in TEXT_CLASSES.items():
                model = AutoModelForSequenceClassification.from_pretrained(root / kind / "base", num_labels=classes)
                with torch.no_grad():
                    for weight in model.parameters():
                        weight += 0.3 * weight.std().nan_to_num(0.1) * torch.randn_like(weight)
                model.save_pretrained(root / kind / task)
                save_tokenizer(root / kind / task, segments=kind == "bert")
        for task, classes in TEXT_CLASSES.items():
            for split, size in {"adapt": 17, "validation": 9, "test": 13}.items():
                write_texts(root / f"{task}-{split}.csv", classes, size, labels=split != "adapt")
    return TinyTexts(root)


def save_tokenizer(folder: Path, segments: bool) -> None:
    """A tokenizer of whole words; as BERT's it may tell the second text of a pair from the first."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = ["[UNK]", "[PAD]", "[CLS]", "[SEP]"]
    words = {word: i for i, word in enumerate(special + WORDS)}
    made = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    names = {"unk_token": "[UNK]", "pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    said = ["input_ids", "attention_mask", *(["token_type_ids"] if segments else [])]
    PreTrainedTokenizerFast(tokenizer_object=made, model_input_names=said, **names).save_pretrained(folder)


def write_texts(path: Path, classes: int, size: int, labels: bool) -> None:
    """Texts of 3 to 12 words, every class with words of its own."""
    import torch

    rows = ["text,label" if labels else "id,text"]
    for i in range(size):
        words = torch.randint(15 * (i % classes), 15 * (i % classes + 1), (int(torch.randint(3, 13, ())),)).tolist()
        text = " ".join(WORDS[word] for word in words)
        rows.append(f"{text},{i % classes}" if labels else f"{i},{text}")
    path.write_text("\n".join(rows) + "\n")
