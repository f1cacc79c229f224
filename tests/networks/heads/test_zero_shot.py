"""Heads from class names are those that open_clip builds, and are built once."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from safetensors.torch import save_file

from lit_merge import MergeError, MergeWarning, OpenClipImageEncoder, ZeroShotHeads
from lit_merge.cli.main import main
from lit_merge.data.class_names import ClassNames
from lit_merge.networks.heads import zero_shot
from lit_merge.networks.heads.zero_shot import clip_templates

TEXT = {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
NAMES = {"alpha": ["cat", "guinea pig", "Pokémon"], "beta": [f"sort {i} of tea" for i in range(23)]}


class Model:
    """A CLIP model with random weights, and the files of it that a user has."""

    def __init__(self, folder: Path, vision: dict[str, Any], text: dict[str, Any] = TEXT) -> None:
        self.folder, self.config, self.weights = folder, str(folder / "model.json"), str(folder / "model.safetensors")
        options = json.loads(Path(vision["network"]).read_text()) | {"text_cfg": text}
        (folder / "model.json").write_text(json.dumps(options))
        with torch.random.fork_rng():
            torch.manual_seed(3)
            self.clip = open_clip.CLIP(options["embed_dim"], options["vision_cfg"], text).eval()
            for value in self.clip.parameters():
                value.data += 0.1 * torch.randn_like(value)
        self.clip.logit_scale.data = torch.tensor(math.log(37.5))
        save_file({name: value.clone() for name, value in self.clip.state_dict().items()}, self.weights)
        for task, names in NAMES.items():
            (folder / f"{task}.txt").write_text("\n".join(names) + "\n", encoding="utf-8")
        self.classes = {task: str(folder / f"{task}.txt") for task in NAMES}

    def heads(self, **options: Any) -> ZeroShotHeads:
        return ZeroShotHeads(**{"classes": self.classes, "weights": self.weights} | options)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LIT_MERGE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "heads"


@pytest.fixture(scope="module")
def model(tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> Model:
    return Model(tmp_path_factory.mktemp("clip"), {"network": tiny.network})


def expected(model: Model, names: list[str], templates: Any) -> torch.Tensor:
    tokenizer = open_clip.tokenizer.SimpleTokenizer(context_length=TEXT["context_length"])
    return open_clip.build_zero_shot_classifier(model.clip, tokenizer, names, templates).T


def test_heads_are_those_of_open_clip(model: Model) -> None:
    heads = model.heads().build(model.config)
    assert heads.tasks == ("alpha", "beta")
    assert heads.logit_scale == pytest.approx(37.5, rel=1e-6)
    for task, names in NAMES.items():
        rows = expected(model, names, open_clip.OPENAI_IMAGENET_TEMPLATES)
        torch.testing.assert_close(heads._row(task), rows, rtol=1e-4, atol=1e-5)
        # Classes are apart by far more than that.
        assert (rows @ rows.T - 2 * torch.eye(len(rows))).max() < 0.999
    assert len(clip_templates()) == 80


def test_logits_are_those_of_the_whole_model(model: Model) -> None:
    network = OpenClipImageEncoder(model.config, model.heads(templates=["a {}."]))
    images = torch.randint(256, (5, 16, 16), dtype=torch.uint8)
    text = open_clip.tokenizer.SimpleTokenizer(context_length=16)([f"a {name}." for name in NAMES["alpha"]])
    with torch.no_grad():
        logits = network(model.clip.visual.state_dict(), {"alpha": images})["alpha"]
        image_features = model.clip.encode_image(network.prepare(images), normalize=True)
        both = model.clip.logit_scale.exp() * image_features @ model.clip.encode_text(text, normalize=True).T
    torch.testing.assert_close(logits, both, rtol=1e-4, atol=1e-4)


def test_templates_from_a_list_and_from_a_file(model: Model, tmp_path: Path) -> None:
    templates = ["a sketch of a {}.", "{}"]
    (tmp_path / "templates.txt").write_text("a sketch of a {}.\n\n  {}\n")
    rows = expected(model, NAMES["alpha"], templates)
    for given in (templates, str(tmp_path / "templates.txt")):
        torch.testing.assert_close(model.heads(templates=given).build(model.config)._row("alpha"), rows)


@pytest.mark.parametrize("form", ["plain", "custom", "training", "half"])
def test_weights_in_every_form_that_open_clip_writes(model: Model, tmp_path: Path, form: str) -> None:
    weights = model.clip.state_dict()
    if form == "custom":  # of models that keep the text tower apart
        weights = open_clip.model.convert_to_custom_text_state_dict(weights)
    if form == "half":
        weights = {name: value.half() for name, value in weights.items()}
    whole = {f"module.{n}": w for n, w in weights.items()} if form == "training" else weights
    torch.save({"epoch": 3, "state_dict": whole} if form == "training" else whole, tmp_path / "model.pt")
    found = model.heads(weights=str(tmp_path / "model.pt")).build(model.config)
    tolerance = 2e-3 if form == "half" else 1e-6
    torch.testing.assert_close(
        found._row("beta"), model.heads().build(model.config)._row("beta"), rtol=0, atol=tolerance
    )


def test_without_a_scale_it_is_clips(model: Model, tmp_path: Path) -> None:
    weights = {name: value.clone() for name, value in model.clip.state_dict().items() if name != "logit_scale"}
    save_file(weights, tmp_path / "model.safetensors")
    heads = model.heads(weights=str(tmp_path / "model.safetensors")).build(model.config)
    assert heads.logit_scale == 100.0


def test_rows_are_computed_once(model: Model, cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    first = model.heads().build(model.config)
    (file,) = cache.iterdir()

    def compute(*arguments: Any) -> None:
        raise AssertionError("computed again")

    monkeypatch.setattr(zero_shot, "zero_shot_rows", compute)
    again = model.heads().build(model.config)
    assert again.logit_scale == first.logit_scale
    assert torch.equal(again._row("beta"), first._row("beta"))
    # The same names in a file elsewhere are the same head; another name, template or weight is not.
    (tmp_path / "names.txt").write_text("cat\nguinea pig\nPokémon", encoding="utf-8")
    model.heads(classes=model.classes | {"alpha": str(tmp_path / "names.txt")}).build(model.config)
    (tmp_path / "names.txt").write_text("cat\nguinea pig\ndog")
    other = {name: value + 1 for name, value in model.clip.state_dict().items()}
    save_file(other, tmp_path / "other.safetensors")
    for changed in (
        {"classes": model.classes | {"alpha": str(tmp_path / "names.txt")}},
        {"templates": ["{}"]},
        {"weights": str(tmp_path / "other.safetensors")},
    ):
        with pytest.raises(AssertionError, match="computed again"):
            model.heads(**changed).build(model.config)
    assert list(cache.iterdir()) == [file]


def test_a_cache_that_cannot_be_written(model: Model, cache: Path) -> None:
    cache.parent.write_text("a file where the folder should be")
    with pytest.warns(MergeWarning, match="computed again next time: .*cannot be written"):
        heads = model.heads(templates=["{}"]).build(model.config)
    assert heads.classes("alpha") == 3


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "(class names of task alpha) holds no name"),
        (b"\n  \n", "(class names of task alpha) holds no name"),
        (
            b"cat\ndog\n cat\nowl\ndog\n",
            "(class names of task alpha) names 'cat', 'dog' more than once: give every class a name of its own",
        ),
        (b"cat\n\xff\xfe\n", "is no text in UTF-8: invalid start byte at byte 4: save it in UTF-8"),
        (None, "(class names of task alpha): no such file"),
    ],
)
def test_bad_class_files(model: Model, tmp_path: Path, content: bytes | None, said: str) -> None:
    path = tmp_path / "names.txt"
    if content is not None:
        path.write_bytes(content)
    refused(lambda: model.heads(classes={"alpha": str(path)}).build(model.config), str(path), said)


@pytest.mark.parametrize(
    ("templates", "said"),
    [
        ([], "templates: expected at least one"),
        (["a photo"], "templates: 'a photo' lacks the one {}"),
        (["a {} on a {}"], "lacks the one {}"),
        (["a {name}"], "lacks the one {}"),
        ("nowhere.txt", "nowhere.txt (templates): no such file"),
    ],
)
def test_bad_templates(model: Model, templates: Any, said: str) -> None:
    refused(lambda: model.heads(templates=templates).build(model.config), said)


def refused(action: Callable[[], Any], *parts: str) -> None:
    with pytest.raises(MergeError) as caught:
        action()
    assert "\n" not in str(caught.value)
    for part in parts:
        assert part in str(caught.value)


def test_weights_that_do_not_fit(model: Model, tmp_path: Path, tiny: Any, cache: Path) -> None:
    path = tmp_path / "model.safetensors"
    refused(lambda: model.heads(weights=str(path)).build(model.config), str(path), "no such file")
    weights = {name: value.clone() for name, value in model.clip.state_dict().items()}
    changes: list[tuple[dict[str, Any], str]] = [
        ({"ln_final.weight": None}, "has no weight ln_final.weight of the text tower"),
        ({"transformer.resblocks.1.ln_1.weight": torch.ones(16)}, "has no weight transformer.resblocks.1.ln_1.weight"),
        ({"text_projection": torch.ones(16, 5)}, "text_projection of the text tower has shape [16, 16] in"),
    ]
    for change, said in changes:
        save_file({name: value for name, value in (weights | change).items() if value is not None}, path)
        refused(lambda: model.heads(weights=str(path)).build(model.config), str(path), said)
    refused(lambda: model.heads(weights=tiny.base).build(model.config), tiny.base, "has no weight")
    (tmp_path / "model.pt").write_text("no weights")
    refused(
        lambda: model.heads(weights=str(tmp_path / "model.pt")).build(model.config),
        "model.pt is not a safetensors file",
    )
    assert not cache.exists()


def test_configurations_without_a_text_tower(model: Model, tmp_path: Path, tiny: Any) -> None:
    refused(lambda: model.heads().build(tiny.network), tiny.network, "no text tower")
    refused(lambda: model.heads().build("xlm-roberta-base-ViT-B-32"), "no text tower that open_clip builds by itself")
    refused(lambda: model.heads().build("coca_ViT-B-32"), "no text tower")
    options = json.loads(Path(model.config).read_text())
    options["text_cfg"]["vocab_size"] = 100
    (tmp_path / "small.json").write_text(json.dumps(options))
    refused(lambda: model.heads().build(str(tmp_path / "small.json")), "vocab_size is 100")
    options["text_cfg"]["colour"] = 1
    (tmp_path / "small.json").write_text(json.dumps(options))
    refused(lambda: model.heads().build(str(tmp_path / "small.json")), "is no open_clip configuration", "colour")


def test_from_a_configuration_file(model: Model, tiny: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    heads = {"classes": dict(model.classes), "weights": model.weights, "templates": ["a {}."]}
    init = {"config": model.config, "heads": heads}
    content: dict[str, Any] = {
        "model": {
            "experts": {task: tiny.experts[task] for task in NAMES},
            "base": tiny.base,
            "network": {"class_path": "OpenClipImageEncoder", "init_args": init},
            "method": {"class_path": "TaskArithmetic"},
        },
    }
    (tmp_path / "config.yaml").write_text(json.dumps(content))
    output = ["--output", str(tmp_path / "merged.safetensors"), "--overwrite"]
    assert main(["merge", "--config", str(tmp_path / "config.yaml"), *output]) == 0
    init["heads"] = {"class_path": "ZeroShotHeads", "init_args": heads}
    (tmp_path / "config.yaml").write_text(json.dumps(content))
    assert main(["merge", "--config", str(tmp_path / "config.yaml"), *output]) == 0
    for mistake, said in (({"wieghts": "a"}, "wieghts"), ({"classes": {"alpha": "nowhere.txt"}}, "nowhere.txt")):
        init["heads"] = heads | mistake
        (tmp_path / "config.yaml").write_text(json.dumps(content))
        capsys.readouterr()
        assert main(["test", "--config", str(tmp_path / "config.yaml")]) == 2
        line = capsys.readouterr().err
        assert line.count("\n") == 1
        assert said in line


class Named(ClassNames):
    """Data that knows its classes, or some of them."""

    def __init__(self, names: dict[str, list[str] | None]) -> None:
        self.names = names

    @property
    def tasks(self) -> tuple[str, ...]:
        return tuple(self.names)

    def class_names(self, task: str) -> list[str] | None:
        return self.names[task]


def test_names_from_the_data(model: Model) -> None:
    found = model.heads(classes=Named(dict(NAMES))).build(model.config)
    for task in NAMES:
        assert torch.equal(found._row(task), model.heads().build(model.config)._row(task))
    refused(lambda: model.heads(classes=Named({"alpha": None})).build(model.config), "task alpha", "text file")
    refused(lambda: model.heads(classes=Named({"alpha": ["a", "a"]})).build(model.config), "the data", "'a' more than")


def test_templates_of_each_task(model: Model, tmp_path: Path) -> None:
    (tmp_path / "templates.txt").write_text("{} of tea\n")
    given = {"alpha": ["a sketch of a {}."], "beta": str(tmp_path / "templates.txt")}
    found = model.heads(templates=given).build(model.config)
    for task, templates in (("alpha", ["a sketch of a {}."]), ("beta", ["{} of tea"])):
        torch.testing.assert_close(found._row(task), expected(model, NAMES[task], templates))
    rest = model.heads(templates={"alpha": ["a sketch of a {}."]}).build(model.config)
    assert torch.equal(rest._row("beta"), model.heads().build(model.config)._row("beta"))
    refused(lambda: model.heads(templates={"gamma": ["{}"]}).build(model.config), "no task 'gamma'", "alpha, beta")


def test_heads_know_what_the_data_calls_their_rows(model: Model, tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("n01\tcat\nn02\tguinea pig\n Pokémon\n", encoding="utf-8")
    classes = model.classes | {"alpha": str(tmp_path / "names.txt")}
    plain = model.heads().build(model.config)
    for _ in range(2):  # computed, and from the cache
        found = model.heads(classes=classes).build(model.config)
        assert torch.equal(found._row("alpha"), plain._row("alpha"))
        assert found.names["alpha"] == ("n01", "n02", "Pokémon")
        assert found.rows_of("alpha", ["n02", "pokémon", "n01"]) == [1, 2, 0]
    assert plain.names == {task: tuple(names) for task, names in NAMES.items()}
    assert model.heads(classes=Named(dict(NAMES))).build(model.config).names == plain.names
    (tmp_path / "names.txt").write_text("n01\tcat\nn01\tdog\n")
    refused(lambda: model.heads(classes=classes).build(model.config), "names.txt", "'n01' more than once")
