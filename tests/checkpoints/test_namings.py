"""One bank whatever the naming: merges, files, adaptation and moments do not depend on how experts name weights."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from lit_merge import (
    CART,
    ESM,
    TSVM,
    Experts,
    HuggingFaceImageEncoder,
    IsoC,
    MergedModel,
    MergeError,
    MergeMethod,
    OpenClipImageEncoder,
    Stage,
    TaskArithmetic,
    TaskBank,
    build_bank,
    collect_moments,
    evaluate,
    load_moments,
    save_moments,
)
from lit_merge.checkpoints import canonical_weights, named, rename
from lit_merge.cli.main import main
from lit_merge.experts.stream import WeightStream
from lit_merge.merge.export import export_bank
from lit_merge.networks import Network
from tests.clip_models import (
    EMBED,
    hugging_face_config,
    hugging_face_model,
    hugging_face_tower,
    moved,
    open_clip_config,
    open_clip_model,
    state,
)
from tests.saved_banks import without_digest

TASKS = ("alpha", "beta", "gamma")
Weights = dict[str, Tensor]


@pytest.fixture(scope="module")
def whole() -> dict[str, Weights]:
    """Whole models in open_clip's names: base, and an expert of every task."""
    base = state(open_clip_model("tiny"))
    return {"base": base} | {task: moved(base, i) for i, task in enumerate(TASKS)}


def tower(weights: Weights) -> Weights:
    return {name.removeprefix("visual."): w for name, w in weights.items() if name.startswith("visual.")}


def as_named(weights: Weights, naming: str, prefix: str = "") -> Weights:
    inside = canonical_weights(weights)
    return {prefix + name: w.contiguous() for name, w in rename(inside, named(naming, inside)).items()}


def towers(whole: dict[str, Weights], naming: str, prefix: str = "") -> dict[str, Weights]:
    return {task: as_named(tower(weights), naming, prefix) for task, weights in whole.items()}


def split(models: dict[str, Weights]) -> tuple[dict[str, Weights], Weights]:
    return {task: models[task] for task in TASKS}, models["base"]


def same(first: Weights, second: Weights) -> None:
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


@pytest.fixture(scope="module")
def files(whole: dict[str, Weights], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of experts and base for each naming, with configurations of both libraries and heads."""
    root = tmp_path_factory.mktemp("namings")
    for naming in ("open_clip", "hugging_face"):
        (root / naming).mkdir()
        for task, weights in towers(whole, naming).items():
            save_file(weights, root / naming / f"{task}.safetensors")
        (root / naming / "base.safetensors").rename(root / f"{naming}-base.safetensors")
    (root / "open_clip.json").write_text(json.dumps(open_clip_config("tiny")))
    (root / "config.json").write_text(json.dumps(hugging_face_config("tiny")))
    heads = {task: F.normalize(torch.randn(n, EMBED)) for task, n in zip(TASKS, (3, 4, 5), strict=True)}
    save_file(heads, root / "heads.safetensors", {"logit_scale": "16.0"})
    return root


def network(files: Path, kind: str) -> Network:
    heads = str(files / "heads.safetensors")
    if kind == "open_clip":
        return OpenClipImageEncoder(str(files / "open_clip.json"), heads)
    return HuggingFaceImageEncoder(str(files / "config.json"), heads)


METHODS = [CART(rank_ratio=0.5), TSVM(), IsoC(), TaskArithmetic()]


@pytest.mark.parametrize("method", METHODS, ids=lambda method: type(method).__name__)
def test_merges_are_equal_to_the_bit(method: MergeMethod, whole: dict[str, Weights]) -> None:
    """In every naming, in a mixture of them, and as a whole model; what comes out is in the experts' own names."""
    experts, base = split(towers(whole, "open_clip"))
    expected = build_bank(experts, base, method=method).merge()
    for naming, prefix in (("hugging_face", ""), ("hugging_face", "module."), ("openai", "image_encoder.model.")):
        experts, base = split(towers(whole, naming, prefix))
        found = build_bank(experts, base, method=method).merge()
        same(found, as_named(expected, naming, prefix))
    mixed = {"alpha": experts["alpha"], "beta": towers(whole, "open_clip")["beta"]}
    mixed["gamma"] = towers(whole, "hugging_face")["gamma"]
    same(build_bank(mixed, whole["base"], method=method).merge(naming="open_clip"), expected)
    experts, base = split(whole)
    found = build_bank(experts, base, method=method).merge()
    assert found.keys() == base.keys()
    same(tower(found), expected)


def test_outputs_in_the_naming_asked_for_load_strictly(whole: dict[str, Weights]) -> None:
    experts, base = split({task: as_named(weights, "hugging_face") for task, weights in whole.items()})
    bank = build_bank(experts, base, method=CART(rank_ratio=0.5))
    for weights in (bank.merge, lambda naming=None: bank.expert("beta", naming=naming)):
        hugging_face_model("tiny").load_state_dict(weights(), strict=True)
        open_clip_model("tiny").load_state_dict(weights(naming="open_clip"), strict=True)
        open_clip_model("tiny").load_state_dict(weights(naming="openai"), strict=True)
        assert weights(naming="canonical").keys() == bank.origin.keys()
    alone = build_bank(*split(towers(whole, "open_clip")), method=CART(rank_ratio=0.5))
    hugging_face_tower("tiny").load_state_dict(alone.merge(naming="hugging_face"), strict=True)
    open_clip_model("tiny").visual.load_state_dict(alone.merge(), strict=True)
    with pytest.raises(MergeError, match="naming='keras': expected one of open_clip, openai"):
        alone.merge(naming="keras")


def test_weights_stay_differentiable_in_any_naming(whole: dict[str, Weights]) -> None:
    bank = build_bank(split(towers(whole, "hugging_face"))[0], method=CART(rank_ratio=0.5))
    gradients = []
    for naming in (None, "canonical"):
        coefficients = bank.coefficients.clone().requires_grad_()
        merged = bank.merge(coefficients, naming=naming)
        gradients.append(torch.autograd.grad(sum(w.square().sum() for w in merged.values()), coefficients)[0])
    torch.testing.assert_close(*gradients)


def test_plain_files_are_not_touched(whole: dict[str, Weights]) -> None:
    """Experts that are open_clip's towers: the same objects, in the order of the file."""
    experts = Experts(split(towers(whole, "open_clip"))[0])
    assert all(type(one).__name__ == "StateDict" for one in experts.checkpoints.values())
    assert list(experts.shapes) == list(tower(whole["base"]))


def test_a_whole_base_for_experts_of_the_image_tower(whole: dict[str, Weights]) -> None:
    for naming in ("open_clip", "hugging_face"):
        experts, base = split(towers(whole, naming))
        expected = build_bank(experts, base, method=TaskArithmetic()).merge()
        for base_naming in ("open_clip", "hugging_face"):
            found = build_bank(experts, as_named(whole["base"], base_naming, "model."), method=TaskArithmetic())
            same(found.merge(), expected)
    for missing in ("proj", "ln_post.weight"):
        less = towers(whole, "open_clip")
        for weights in less.values():
            del weights[missing]
        with pytest.raises(MergeError, match=rf"alpha has no weight {missing}, which base has as visual\.{missing}"):
            Experts(split(less)[0], whole["base"])
    with pytest.raises(MergeError, match="base has no weight logit_scale"):
        Experts(split(whole)[0], towers(whole, "openai")["base"])


def test_a_vision_model_without_projection(whole: dict[str, Weights]) -> None:
    """transformers' CLIPVisionModel ends before it; the base may be the whole model nevertheless."""
    bare = state(hugging_face_tower("tiny", projection=False)).keys()
    models = {
        task: {n.removeprefix("vision_model."): w for n, w in weights.items() if n.startswith("vision_model.")}
        for task, weights in towers(whole, "hugging_face").items()
    }
    merged = build_bank(split(models)[0], whole["base"], method=TaskArithmetic()).merge()
    assert merged.keys() == bare


def test_tied_weights_and_positions_may_be_absent_in_some() -> None:
    """Of any model: a second name of one matrix, which savers write or leave out."""
    base = {"embed.weight": torch.randn(5, 3), "block.0.mlp.weight": torch.randn(4, 3)}
    tied = [moved(base, i) for i in range(3)]
    full = [one | {"head.weight": one["embed.weight"].clone(), "embed.position_ids": torch.arange(3)} for one in tied]
    expected = build_bank(dict(zip(TASKS, tied, strict=True)), base, method=TaskArithmetic()).merge()
    for experts, start in (([full[0], *tied[1:]], base), (tied, base | {"head.weight": base["embed.weight"]})):
        same(build_bank(dict(zip(TASKS, experts, strict=True)), start, method=TaskArithmetic()).merge(), expected)
    own = full[0] | {"head.weight": full[0]["head.weight"] + 1}
    with pytest.raises(MergeError, match=r"has no weight head\.weight"):
        Experts({"alpha": own, "beta": tied[1]})
    empty = [one | {"block.1.mlp.weight": torch.zeros(4, 3)} for one in tied]
    with pytest.raises(MergeError, match=r"has no weight block\.2\.mlp\.weight"):
        Experts({"alpha": empty[0] | {"block.2.mlp.weight": torch.zeros(4, 3)}, "beta": empty[1]})
    everywhere = Experts({"alpha": full[0], "beta": full[1]})
    assert everywhere.shapes.keys() == full[0].keys()


def test_saved_banks_keep_their_naming(whole: dict[str, Weights], tmp_path: Path) -> None:
    bank = build_bank(split(towers(whole, "hugging_face"))[0], method=CART(rank_ratio=0.5))
    bank.save(tmp_path / "bank")
    same(TaskBank.load(tmp_path / "bank").merge(), bank.merge())
    about = without_digest(tmp_path / "bank")
    assert about["format_version"] == 1
    for change, said in (({}, None), ({"naming": {"family": "keras"}}, "unknown"), ({"naming": 3}, "unknown")):
        changed = {name: value for name, value in about.items() if name != "naming"} | change
        (tmp_path / "bank" / "bank.json").write_text(json.dumps(changed))
        if said is None:  # of a time before there were namings
            same(TaskBank.load(tmp_path / "bank").merge(), bank.merge(naming="canonical"))
        else:
            with pytest.raises(MergeError, match=r"bank\.json: unknown naming .*: update lit_merge"):
                TaskBank.load(tmp_path / "bank")


def test_messages_name_weights_as_the_file_does(whole: dict[str, Weights]) -> None:
    small, large = state(hugging_face_tower("B-32")), towers({"a": state(open_clip_model("B-16"))}, "open_clip")["a"]
    patches = "vision_model.embeddings.patch_embedding.weight"
    said = rf"{patches} has shape \[48, 3, 32, 32\] in expert a and \[48, 3, 16, 16\]"
    with pytest.raises(MergeError, match=said) as e:
        Experts({"a": small, "b": large})
    assert "expert b (conv1.weight)" in str(e.value)
    assert e.value.weight == "conv1.weight"
    deep = dict(towers(whole, "hugging_face")["alpha"])
    name = "vision_model.encoder.layers.0.self_attn.k_proj.bias"
    with pytest.raises(MergeError, match=r"expert b: .*k_proj\.bias"):
        Experts({"a": deep, "b": {n: w for n, w in deep.items() if n != name}})
    broken = deep | {name: torch.full_like(deep[name], torch.nan)}
    with pytest.raises(MergeError, match=r"k_proj\.bias.* holds NaN or infinity in 32 of 96 places"):
        list(WeightStream(Experts({"a": deep, "b": broken}), False))
    short = {n.replace("layers.1.", "layers.7."): w for n, w in deep.items()}
    with pytest.raises(MergeError, match=r"b has no weight \S*layers\.1\.\S*q_proj\.bias, \S*, \S*, which"):
        Experts({"a": deep, "b": short})


def test_patterns_go_by_canonical_names(whole: dict[str, Weights]) -> None:
    experts = split(towers(whole, "hugging_face"))[0]
    bank = build_bank(experts, method=CART(rank_ratio=0.5, matrices=["*attn.in_proj_weight"]))
    assert list(bank.ranks) == [f"transformer.resblocks.{i}.attn.in_proj_weight" for i in range(2)]
    with pytest.raises(MergeError, match=r"'\*q_proj\*' matches no 2-D weight .* a CLIP's go by open_clip's names"):
        build_bank(experts, method=CART(matrices=["*q_proj*"]))


@pytest.mark.parametrize("microbatch", ["all", "task"])
def test_adapting_does_not_depend_on_naming_or_network(
    microbatch: Any, files: Path, tiny: Any, make_trainer: Callable[..., Any], whole: dict[str, Weights]
) -> None:
    """Experts of one library in the network of the other, whole models in both: the same coefficients."""
    found = []
    banks = [build_bank(split(towers(whole, n))[0], method=CART(rank_ratio=0.5)) for n in ("hugging_face", "open_clip")]
    for bank, kind in zip(banks, ("open_clip", "hugging_face"), strict=True):
        options: dict[str, Any] = {"microbatch": microbatch, "gradient_checkpointing": microbatch == "task"}
        model = MergedModel(bank, network(files, kind), stages=[Stage("layer", 3, 0.01)], **options)
        trainer = make_trainer(max_steps=3)
        trainer.fit(model, datamodule=tiny.data())
        adapted = model.to_bank()
        assert not torch.equal(adapted.coefficients, bank.coefficients)
        found.append((adapted, evaluate(adapted, network(files, kind), tiny.data())))
        # Weights by hand, in any naming, are what the bank is.
        assert evaluate(adapted.merge(), network(files, kind), tiny.data()) == found[-1][1]
    (first, scores), (second, others) = found
    assert first.layers == tuple(sorted(second.layers))
    order = [second.layers.index(name) for name in first.layers]
    torch.testing.assert_close(first.coefficients, second.coefficients[:, order], rtol=1e-3, atol=1e-4)
    for task in TASKS:
        assert scores[task].accuracy == others[task].accuracy
        assert scores[task].entropy == pytest.approx(others[task].entropy, rel=1e-3)


@pytest.mark.parametrize("microbatch", ["all", "task"])
def test_whole_models_adapt_by_their_image_tower(
    microbatch: Any, files: Path, tiny: Any, make_trainer: Callable[..., Any], whole: dict[str, Weights]
) -> None:
    """The text tower is merged and written out, and no image says anything about it."""
    found = []
    for models in (towers(whole, "open_clip"), whole):
        bank = build_bank(split(models)[0], method=CART(rank_ratio=0.5))
        model = MergedModel(bank, network(files, "open_clip"), stages=[Stage("layer", 3, 0.01)], microbatch=microbatch)
        make_trainer(max_steps=3).fit(model, datamodule=tiny.data())
        found.append(model.to_bank())
    alone, together = found
    assert together.merge().keys() == whole["base"].keys()
    for i, name in enumerate(together.layers):
        column = together.coefficients[:, i]
        if name in alone.layers:
            torch.testing.assert_close(column, alone.coefficients[:, alone.layers.index(name)])
        else:
            assert torch.equal(column, bank.coefficients[:, i])


def test_moments_of_one_naming_serve_the_other(files: Path, tiny: Any, tmp_path: Path) -> None:
    merged = []
    for naming in ("open_clip", "hugging_face"):
        paths = {task: str(files / naming / f"{task}.safetensors") for task in TASKS}
        experts = Experts(paths, str(files / f"{naming}-base.safetensors"))
        moments = collect_moments(experts, network(files, naming), tiny.data().unlabelled(), samples=4)
        merged.append((experts, moments, build_bank(experts, method=ESM(matrices="block", moments=moments))))
    (ours, first, one), (theirs, second, other) = merged
    for task in TASKS:
        for name, moment in first[task].items():
            torch.testing.assert_close(moment, second[task][name], rtol=1e-4, atol=1e-6)
    other_merged = other.merge(naming="open_clip")
    for name, value in one.merge().items():
        torch.testing.assert_close(value, other_merged[name], rtol=1e-3, atol=1e-4)
    save_moments(tmp_path / "moments", first, ours)
    assert load_moments(tmp_path / "moments", theirs).keys() == set(TASKS)


def test_from_the_command_line(files: Path, tiny: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """merge and export: the experts' own naming, or the one that is asked for."""
    (tmp_path / "c.yaml").write_text(
        json.dumps(
            {
                "model": {
                    "experts": str(files / "hugging_face"),
                    "method": {"class_path": "CART", "init_args": {"rank_ratio": 0.5}},
                    "network": {
                        "class_path": "HuggingFaceImageEncoder",
                        "init_args": {"config": str(files / "config.json"), "heads": str(files / "heads.safetensors")},
                    },
                },
                "trainer": {"accelerator": "cpu"},
            }
        )
    )
    run = ["--config", str(tmp_path / "c.yaml"), "--output"]
    assert main(["merge", *run, str(tmp_path / "a.safetensors")]) == 0
    hugging_face_tower("tiny").load_state_dict(load_file(tmp_path / "a.safetensors"), strict=True)
    assert main(["merge", *run, str(tmp_path / "b.safetensors"), "--naming", "open_clip"]) == 0
    open_clip_model("tiny").visual.load_state_dict(load_file(tmp_path / "b.safetensors"), strict=True)
    assert main(["export", *run, str(tmp_path / "bank"), "--naming", "openai"]) == 0
    bank = TaskBank.load(tmp_path / "bank")
    assert "visual.proj" in bank.merge()
    export_bank(bank, tmp_path / "t.safetensors", "task", "beta", naming="open_clip")
    same(load_file(tmp_path / "t.safetensors"), bank.expert("beta", naming="open_clip"))
    capsys.readouterr()
    assert main(["merge", *run, str(tmp_path / "n.safetensors"), "--naming", "keras"]) == 2
    said = capsys.readouterr().err
    assert "keras" in said
    assert "hugging_face" in said
    assert said.count("\n") == 1
    assert not (tmp_path / "n.safetensors").exists()


def test_convert(whole: dict[str, Weights], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """There and back to the bit, through every other naming; no other model has one."""
    source = str(tmp_path / "open_clip.safetensors")
    save_file(whole["base"], source)
    for naming in ("hugging_face", "openai", "open_clip"):
        output = str(tmp_path / f"as_{naming}.safetensors")
        assert main(["convert", source, "--output", output, "--naming", naming]) == 0
        found = load_file(output)
        expected = rename(canonical_weights(whole["base"]), named(naming, canonical_weights(whole["base"])))
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], value) for name, value in expected.items())
        source = output
    capsys.readouterr()
    save_file({"wte.weight": torch.ones(2, 2)}, tmp_path / "other.safetensors")
    output = str(tmp_path / "never.safetensors")
    assert main(["convert", str(tmp_path / "other.safetensors"), "--output", output, "--naming", "openai"]) == 2
    assert "naming=openai: these weights (wte.weight, …) are not a CLIP's" in capsys.readouterr().err
    assert main(["convert", str(tmp_path / "missing.pt"), "--output", output, "--naming", "huggingface"]) == 2
    assert "hugging_face, canonical; the nearest is hugging_face" in capsys.readouterr().err
    assert not Path(output).exists()
