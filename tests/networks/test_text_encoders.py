"""Text encoders with weights handed in: transformers' own logits, whatever the architecture."""

import io
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from lit_merge import (
    CART,
    Experts,
    HuggingFaceTextEncoder,
    MergedModel,
    MergeError,
    TaskArithmetic,
    TextFiles,
    WeightAveraging,
    build_bank,
    collect_moments,
    evaluate,
)
from lit_merge.choose.activations import input_moments
from lit_merge.choose.sources import open_experts
from lit_merge.data.texts.tokens import Tokens
from lit_merge.merge.programs import OfTokens, export_program

KINDS = ("bert", "roberta", "distilbert")
SINGLE = [("w1 w2 w3",), ("w4 w5 w6 w7 w8 w9 w10",)]
PAIRS = [("w11 w12", "w3 w9 w8 w1 w2 w4 w40"), ("w4", "w8 w9")]


def network_of(texts: Any, kind: str, **options: Any) -> HuggingFaceTextEncoder:
    return HuggingFaceTextEncoder(texts.folder(kind), **{"heads": texts.experts(kind)} | options)


def tokens(texts: Any, kind: str, some: list[tuple[str, ...]]) -> Tensor:
    return Tokens(texts.folder(kind)).tokenise(some, "table", range(len(some)), "").read(range(len(some)))


def encoder_weights(network: HuggingFaceTextEncoder, folder: str) -> dict[str, Tensor]:
    weights = load_file(f"{folder}/model.safetensors")
    return {name: value for name, value in weights.items() if name not in network.strangers(weights)}


@pytest.mark.parametrize("entry", ["AutoConfig", "AutoModelForSequenceClassification", "AutoTokenizer"])
def test_code_of_a_folder_is_never_run_nor_asked_about(
    entry: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not even where somebody answers yes."""
    ran = tmp_path / "ran"
    for name in ("config.json", "tokenizer_config.json"):
        about = {"model_type": "own", "auto_map": {entry: ["own.Own", None] if "Tokenizer" in entry else "own.Own"}}
        (tmp_path / name).write_text(json.dumps(about))
    (tmp_path / "own.py").write_text(f"import pathlib\npathlib.Path({str(ran)!r}).touch()\nOwn = None\n")
    monkeypatch.setattr("sys.stdin", io.StringIO("y\ny\ny\n"))
    for opens in (HuggingFaceTextEncoder, Tokens):
        with pytest.raises(MergeError, match="cannot be read"):
            opens(str(tmp_path))
    assert not ran.exists()
    assert "run the custom code" not in capsys.readouterr().out


@pytest.mark.parametrize("kind", KINDS)
def test_logits_are_those_of_transformers(texts: Any, kind: str) -> None:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    network = network_of(texts, kind)
    # Of unequal lengths: one batch, padded to the longest of all tasks.
    inputs = {"topic": tokens(texts, kind, PAIRS), "ham": tokens(texts, kind, SINGLE)}
    assert inputs["topic"].shape[1] != inputs["ham"].shape[1]
    for task, some in {"ham": SINGLE, "topic": PAIRS}.items():
        weights = encoder_weights(network, texts.folder(kind, task))
        network.check({name: tuple(value.shape) for name, value in weights.items()})
        model = AutoModelForSequenceClassification.from_pretrained(texts.folder(kind, task)).eval()
        tokenizer = AutoTokenizer.from_pretrained(texts.folder(kind, task))
        columns = [list(column) for column in zip(*some, strict=True)]
        encoded = tokenizer(*columns, padding=True, return_tensors="pt")
        taken = {name: encoded[name] for name in ("input_ids", "attention_mask")}
        if kind == "bert":
            taken["token_type_ids"] = encoded["token_type_ids"]
            assert bool(encoded["token_type_ids"].any()) == (task == "topic")
        with torch.no_grad():
            torch.testing.assert_close(network(weights, inputs)[task], model(**taken).logits, rtol=1e-5, atol=1e-5)


def test_names_may_lack_what_transformers_puts_before_them(texts: Any) -> None:
    network = network_of(texts, "bert")
    weights = encoder_weights(network, texts.folder("bert", "mood"))
    bare = {name.removeprefix("bert."): value for name, value in weights.items()}
    assert bare.keys() != weights.keys()
    inputs = {"mood": tokens(texts, "bert", SINGLE)}
    assert torch.equal(network(weights, inputs)["mood"], network(bare, inputs)["mood"])
    assert network.strangers([*bare, "classifier.weight", "cls.bias", "embeddings.position_ids"]) == [
        "classifier.weight",
        "cls.bias",
        "embeddings.position_ids",
    ]


def test_it_keeps_no_weights_and_no_dropout(texts: Any) -> None:
    network = network_of(texts, "bert")
    assert all(value.is_meta for value in network.encoder.state_dict().values())
    assert not any(value.requires_grad for value in network.parameters())
    assert not any(module.training for module in (*network.encoder.modules(), *network.heads.model.modules()))


@pytest.mark.parametrize("kind", KINDS)
def test_checkpointed_gradients_are_the_same(texts: Any, kind: str) -> None:
    bank = build_bank(open_experts(network_of(texts, kind), texts.experts(kind), None, None), method=CART(0.5, 1.0))
    batch = {task: tokens(texts, kind, SINGLE) for task in texts.tasks}
    found = []
    for options in ({}, {"microbatch": "task"}, {"microbatch": "task", "gradient_checkpointing": True}):
        network = network_of(texts, kind)
        calls = []
        layer = next(m for n, m in network.encoder.named_modules() if n.endswith("layer.1"))
        layer.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        model = MergedModel(bank, network, **options)
        model.log = model.log_dict = lambda *_, **__: None  # type: ignore[method-assign,assignment]
        model.training_step(batch, 0)["loss"].backward()
        found.append(model.coefficients.offset.grad)
    for one in found[1:]:
        torch.testing.assert_close(one, found[0], rtol=1e-4, atol=1e-7)
    assert found[0].abs().sum() > 0


def test_statistics_count_no_padding(texts: Any) -> None:
    network = network_of(texts, "bert")
    weights = encoder_weights(network, texts.folder("bert", "ham"))
    batch = tokens(texts, "bert", SINGLE)
    assert network.token_mask(batch).sum(1).tolist() == [5, 9]
    padded = torch.nn.functional.pad(batch, (0, 3), value=-1)
    together = input_moments(network, weights, iter([padded]))
    parts = [input_moments(network, weights, iter([batch[i : i + 1, :n]])) for i, n in enumerate((5, 9))]
    name = "bert.encoder.layer.1.attention.self.query.weight"
    torch.testing.assert_close(together[name], (5 * parts[0][name] + 9 * parts[1][name]) / 14)


def test_moments_of_every_matrix(texts: Any) -> None:
    network = network_of(texts, "bert")
    experts = open_experts(network, texts.experts("bert"), None, None)
    source = Tokens(texts.folder("bert")).tokenise(SINGLE, "table", range(2), "")
    moments = collect_moments(experts, network, dict.fromkeys(texts.tasks, source), samples=2)
    blocks = {name for name, shape in experts.shapes.items() if ".layer." in name and len(shape) == 2}
    assert blocks <= moments["ham"].keys()


def test_heads_of_a_file(texts: Any, tmp_path: Path) -> None:
    rows, bias = torch.randn(3, 16), torch.randn(3)
    save_file({"mood.weight": rows, "mood.bias": bias}, tmp_path / "heads.safetensors")
    inputs = {"mood": tokens(texts, "bert", SINGLE)}
    mask = (inputs["mood"] >= 0)[..., None].float()
    for pooling in ("cls", "mean", "pooler"):
        network = HuggingFaceTextEncoder(texts.folder("bert"), str(tmp_path / "heads.safetensors"), pooling)
        weights = encoder_weights(network, texts.folder("bert", "mood"))
        assert any("pooler" in name for name in weights) == (pooling == "pooler")
        logits = network(weights, inputs)["mood"]
        whole = network_of(texts, "bert")
        found = whole.holding(
            encoder_weights(whole, texts.folder("bert", "mood")), lambda w=whole: w.encode(inputs["mood"])
        )
        hidden = found.outputs.last_hidden_state
        pooled = {
            "cls": hidden[:, 0],
            "mean": (hidden * mask).sum(1) / mask.sum(1),
            "pooler": found.outputs.pooler_output,
        }
        torch.testing.assert_close(logits, pooled[pooling] @ rows.T + bias)


def test_heads_and_pooling_that_do_not_go_together(texts: Any, tmp_path: Path) -> None:
    path = tmp_path / "heads.safetensors"
    save_file({"mood.weight": torch.randn(3, 15)}, path)
    with pytest.raises(MergeError, match="set pooling to cls, mean or pooler"):
        HuggingFaceTextEncoder(texts.folder("bert"), str(path))
    with pytest.raises(MergeError, match="classifiers pool by themselves"):
        HuggingFaceTextEncoder(texts.folder("bert"), pooling="cls")
    with pytest.raises(MergeError, match="has no pooler: take cls or mean"):
        HuggingFaceTextEncoder(texts.folder("distilbert"), str(path), "pooler")
    network = HuggingFaceTextEncoder(texts.folder("bert"), str(path), "cls")
    with pytest.raises(MergeError, match=rf"{path}: head mood is 15 wide, the encoder's features 16"):
        network(encoder_weights(network, texts.folder("bert", "mood")), {"mood": tokens(texts, "bert", SINGLE)})


def test_mixed_is_all_classifiers_one_after_the_other(texts: Any) -> None:
    network = network_of(texts, "roberta")
    weights = encoder_weights(network, texts.folder("roberta", "ham"))
    inputs = tokens(texts, "roberta", SINGLE)
    found = network(weights, {"mixed": inputs})["mixed"]
    each = [network(weights, {task: inputs})[task] for task in texts.tasks]
    torch.testing.assert_close(found, torch.cat(each, -1))
    assert [network.heads.first_row("mixed", task) for task in texts.tasks] == [0, 2, 5]


def test_inputs_of_another_tokenizer(texts: Any) -> None:
    network = network_of(texts, "bert")
    weights = encoder_weights(network, texts.folder("bert", "ham"))
    with pytest.raises(MergeError, match="token 64 is not in the encoder's vocabulary of 64"):
        network(weights, {"ham": torch.tensor([[2, 64, 3]], dtype=torch.int32)})
    with pytest.raises(MergeError, match="a text has 19 tokens, the model takes 18: set the data's max_length"):
        network(weights, {"ham": torch.full((1, 19), 5)})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"num_hidden_layers": 3}, "the network has a weight encoder.layer.2.+, which the experts lack"),
        ({"num_hidden_layers": 1}, "the experts have a weight encoder.layer.1.+, which the network lacks"),
        ({"vocab_size": 65}, r"word_embeddings.weight has shape \[65, 16\] in the network and \[64, 16\]"),
        ({"hidden_size": 32}, r"the head classifier.weight has shape \[2, 16\], expected classes × 32"),
    ],
)
def test_another_configuration(texts: Any, tmp_path: Path, change: dict[str, int], said: str) -> None:
    about = json.loads(Path(texts.folder("bert"), "config.json").read_text()) | change
    (tmp_path / "config.json").write_text(json.dumps(about))
    network = HuggingFaceTextEncoder(str(tmp_path))
    with pytest.raises(MergeError, match=said):
        network.check(open_experts(network, texts.experts("bert"), None, None).shapes)


def test_experts_of_another_kind(texts: Any, tiny: Any) -> None:
    with pytest.raises(MergeError, match="has none of the network's weights, but"):
        open_experts(HuggingFaceTextEncoder(texts.folder("bert")), tiny.experts, None, None)


def test_configurations_that_are_none(texts: Any, tmp_path: Path) -> None:
    with pytest.raises(MergeError, match="no such folder: expected the folder of a transformers model"):
        HuggingFaceTextEncoder(str(tmp_path / "nowhere"))
    with pytest.raises(MergeError, match=r"no config\.json in it"):
        HuggingFaceTextEncoder(str(tmp_path))
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(MergeError, match=r"config\.json cannot be read"):
        HuggingFaceTextEncoder(str(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "vit", "hidden_size": 8}')
    with pytest.raises(MergeError, match="builds no text classifier of model type 'vit'"):
        HuggingFaceTextEncoder(str(tmp_path))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda w: w.pop("classifier.bias"), "holds no classifier.bias, the head of task ham"),
        (lambda w: w.update({"classifier.bias": torch.zeros(5)}), "unclear: classifier.weight 2, classifier.bias 5"),
        (lambda w: w["classifier.bias"].fill_(float("nan")), "the head classifier.bias holds NaN"),
        (
            lambda w: w.update({"classifier.bias": torch.zeros(1), "classifier.weight": torch.zeros(1, 16)}),
            "has one class, as of a regression",
        ),
    ],
)
def test_bad_heads(texts: Any, tmp_path: Path, change: Any, said: str) -> None:
    shutil.copytree(texts.folder("bert", "ham"), tmp_path / "ham")
    weights = load_file(tmp_path / "ham" / "model.safetensors")
    change(weights)
    save_file(weights, tmp_path / "ham" / "model.safetensors")
    with pytest.raises(MergeError, match=said) as error:
        network_of(texts, "bert", heads={"ham": str(tmp_path / "ham")})
    assert str(tmp_path / "ham") in str(error.value)


SMALL = {"vocab_size": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
ARCHITECTURES = {
    "gpt2": SMALL | {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 12},
    "bart": SMALL
    | {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32}
    | {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "max_position_embeddings": 12},
    "t5": SMALL | {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2, "decoder_start_token_id": 0},
    "albert": SMALL
    | {"hidden_size": 16, "embedding_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2}
    | {"intermediate_size": 32, "max_position_embeddings": 12},
}


# `dropout` of a block's own, and what it keeps for texts that go on: both would show where blocks run again.
ARCHITECTURES["opt"] = SMALL | {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "ffn_dim": 32,
    "max_position_embeddings": 12,
    "word_embed_proj_dim": 16,
}


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_other_architectures_answer_as_their_own_classifiers(kind: str, tmp_path: Path) -> None:
    """Logits of padded texts, and the gradient of every weight, also of those that an encoder and a decoder share."""
    from transformers import AutoConfig, AutoModelForSequenceClassification

    config = AutoConfig.for_model(kind, **ARCHITECTURES[kind], num_labels=3)
    model = AutoModelForSequenceClassification.from_config(config).eval()
    with torch.no_grad():
        for value in model.parameters():
            value.add_(0.2 * torch.randn_like(value))
    model.save_pretrained(tmp_path)
    tokens = torch.randint(3, 60, (3, 9))
    for row, length in enumerate((9, 5, 7)):
        tokens[row, length - 1], tokens[row, length:] = 2, -1
    expected = model(input_ids=tokens.clamp_min(0), attention_mask=(tokens >= 0).long()).logits
    network = HuggingFaceTextEncoder(str(tmp_path))
    experts = open_experts(network, {"a": str(tmp_path)}, None, None)
    network.check(experts.shapes)
    weights = {name: experts.checkpoints["a"].read(name).requires_grad_() for name in experts.shapes}
    found = network(weights, {"a": tokens})["a"]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    found.square().sum().backward()
    expected.square().sum().backward()
    own = dict(model.named_parameters())
    for name, value in weights.items():
        theirs = own[name if name in own else f"{model.base_model_prefix}.{name}"].grad
        torch.testing.assert_close(value.grad, theirs, rtol=1e-4, atol=1e-5)
    for names in network.tied:
        # As older files hold them: under all names.
        (there,) = (name for name in weights if name.removeprefix(f"{network.prefix}.") in names)
        start = there.removesuffix(there.removeprefix(f"{network.prefix}."))
        every = weights | {start + name: weights[there] for name in names}
        assert len(every) > len(weights)
        assert torch.equal(network(every, {"a": tokens})["a"], found)
    if kind != "albert":
        network.checkpoint_gradients()
        leaves = [value.detach().requires_grad_() for value in weights.values()]

        def work() -> tuple[Tensor, ...]:
            return torch.autograd.grad(network.logits({"a": tokens})["a"].square().sum(), leaves)

        again = network.holding(dict(zip(weights, leaves, strict=True)), work)
        for value, gradient in zip(weights.values(), again, strict=True):
            torch.testing.assert_close(gradient, value.grad, rtol=1e-4, atol=1e-5)
    if kind in ("gpt2", "bart", "opt"):
        with pytest.raises(MergeError, match="a text has 13 tokens, the model takes 12: set the data's max_length"):
            network(weights, {"a": torch.full((1, 13), 5)})


def test_programs_of_what_is_tied(tmp_path: Path) -> None:
    """Every name of a weight gets its values. PyTorch writes BART's program and cannot read it: nothing is left."""
    from transformers import BartConfig, BartForSequenceClassification

    BartForSequenceClassification(BartConfig(**ARCHITECTURES["bart"])).save_pretrained(tmp_path / "a")
    network = HuggingFaceTextEncoder(str(tmp_path / "a"))
    experts = open_experts(network, {"a": str(tmp_path / "a")}, None, None)
    bank = build_bank(experts, method=WeightAveraging())
    tokens = torch.tensor([[1, 5, 7, 2], [1, 9, 9, 2]])
    program = OfTokens(network, bank.merge(), ("a",)).eval()
    assert torch.equal(program(tokens, torch.ones_like(tokens))["a"], network(bank.merge(), {"a": tokens})["a"])
    with pytest.raises(MergeError, match=r"cannot write this model as torch_export: .*: try --format onnx"):
        export_program(bank, tmp_path / "a.pt2", network, "torch_export")
    assert not (tmp_path / "a.pt2").exists()


@pytest.mark.parametrize(
    ("about", "said"),
    [
        ({"model_type": "xlnet", "d_model": 16, "n_layer": 1, "n_head": 2}, "XLNet tells texts apart in a way of its"),
        (
            {"model_type": "canine", "hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1},
            "CanineModel reads no tokens of a vocabulary",
        ),
    ],
)
def test_architectures_that_are_refused(about: dict[str, Any], said: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(about))
    with pytest.raises(MergeError, match=said):
        HuggingFaceTextEncoder(str(tmp_path))


def test_an_expert_of_several_labels_at_once(texts: Any, tmp_path: Path) -> None:
    """Entropy and accuracy are of one class an input: its numbers would mean nothing."""
    shutil.copytree(texts.folder("bert", "ham"), tmp_path / "ham")
    about = json.loads((tmp_path / "ham" / "config.json").read_text()) | {"problem_type": "multi_label_classification"}
    (tmp_path / "ham" / "config.json").write_text(json.dumps(about))
    with pytest.raises(MergeError, match=r"ham.*: task ham is of several labels at once \(problem_type in its config"):
        network_of(texts, "bert", heads={"ham": str(tmp_path / "ham")})


def test_a_bank_alone_has_no_heads(texts: Any) -> None:
    network = HuggingFaceTextEncoder(texts.folder("bert"))
    bank = build_bank(Experts(texts.experts("bert"), exclude=["classifier.*"]), method=CART(0.5, 1.0))
    with pytest.raises(MergeError, match="no head for task ham: classifiers lie in the experts' files"):
        MergedModel(bank, network)


def test_labels_go_to_the_rows_that_are_called_so(texts: Any, tmp_path: Path) -> None:
    """The expert's config.json names its rows, in another order than the sorted labels."""
    experts = {}
    for task, names in (("ham", ["spam", "ham"]), ("topic", ["Sea_Lake", "Forest", "Crop", "ANIMAL"])):
        shutil.copytree(texts.folder("bert", task), tmp_path / task)
        about = json.loads((tmp_path / task / "config.json").read_text())
        about |= {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}}
        (tmp_path / task / "config.json").write_text(json.dumps(about))
        experts[task] = str(tmp_path / task)
        for split in ("test", "adapt"):
            lines = Path(texts.tables("test")[task]).read_text().splitlines()
            rows = [line.rpartition(",") for line in lines[1:]]
            called = [f"{text},{names[int(label)].lower().replace('_', ' ')}" for text, _, label in rows]
            (tmp_path / f"{task}-{split}.csv").write_text("\n".join(["text,label", *called]) + "\n")
    network = HuggingFaceTextEncoder(texts.folder("bert"), heads=experts)
    assert network.heads.names["topic"] == ("Sea_Lake", "Forest", "Crop", "ANIMAL")
    bank = build_bank(experts, method=TaskArithmetic(0.5), base=texts.folder("bert"), exclude=["classifier.*"])
    numbered = {task: texts.tables("test")[task] for task in experts}
    expected = evaluate(bank, network, TextFiles(numbered, texts.folder("bert"), test=numbered), accelerator="cpu")
    named = {task: str(tmp_path / f"{task}-test.csv") for task in experts}
    data = TextFiles({task: str(tmp_path / f"{task}-adapt.csv") for task in experts}, texts.folder("bert"), test=named)
    assert evaluate(bank, network, data, accelerator="cpu") == expected
    # Names that are none, and others.
    about["id2label"] = {"0": "a", "1": "b", "2": "c", "3": "d"}
    (tmp_path / "topic" / "config.json").write_text(json.dumps(about))
    other = HuggingFaceTextEncoder(texts.folder("bert"), heads=experts)
    with pytest.raises(
        MergeError, match=r"task topic: .*only the data has 'animal', 'crop', 'forest', …, only the head"
    ):
        evaluate(bank, other, data, accelerator="cpu")
    del about["id2label"], about["label2id"]
    (tmp_path / "topic" / "config.json").write_text(json.dumps(about))
    unnamed = HuggingFaceTextEncoder(texts.folder("bert"), heads=experts)
    assert "topic" not in unnamed.heads.names
    assert evaluate(bank, unnamed, data, accelerator="cpu").keys() == set(experts)
