"""Routing: every input runs with the weights, and where it is unknown the head, of the task that it looks like."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from lit_merge import (
    CART,
    Experts,
    HuggingFaceTextEncoder,
    IsoC,
    MergeError,
    Prototypes,
    RoutedModel,
    TaskBank,
    TextFiles,
    build_bank,
    evaluate,
)
from lit_merge.adaptation.routing.discriminants import RIDGE, SHRINKAGE, Discriminants
from lit_merge.adaptation.routing.mean_tokens import RowOrder, mean_tokens, placed
from lit_merge.adaptation.routing.router import UNSURE, Router
from lit_merge.adaptation.trainer import Trainer
from lit_merge.bank.low_rank import rank_of
from lit_merge.cli.main import main
from lit_merge.data.class_names import MIXED

MakeTrainer = Callable[..., Trainer]
IN_PROJ = "transformer.resblocks.1.attn.in_proj_weight"
C_PROJ = "transformer.resblocks.0.mlp.c_proj.weight"


@pytest.fixture(scope="module")
def made(tiny: Any) -> SimpleNamespace:
    bank = build_bank(tiny.experts, tiny.base, method=CART(rank_ratio=0.5, scaling=1.0))
    network, data = tiny.encoder(), tiny.data()
    network.heads.mix(bank.tasks)
    images = {task: source.read(range(len(source))) for task, (source, _) in data.labelled("test").items()}
    mixed = torch.cat(list(images.values()))[torch.randperm(66, generator=torch.Generator().manual_seed(0))]
    prototypes = Prototypes.collect(bank, network, data)
    return SimpleNamespace(bank=bank, network=network, data=data, images=images, mixed=mixed, prototypes=prototypes)


def hooked(network: Any, weights: Any, inputs: torch.Tensor) -> dict[str, torch.Tensor]:
    """Mean tokens by module hooks, one input at a time: what attention and the MLP of every block are given."""
    caught: dict[str, list[torch.Tensor]] = {}
    handles = []
    for i, block in enumerate(network.encoder.transformer.resblocks):
        for name, module in {"attn.in_proj_weight": block.ln_1, "mlp.c_proj.weight": block.mlp.gelu}.items():

            def note(_: Any, __: Any, out: torch.Tensor, key: str = f"transformer.resblocks.{i}.{name}") -> None:
                caught.setdefault(key, []).append(out.reshape(-1, out.shape[-1]).double().mean(0))

            handles.append(module.register_forward_hook(note))
    with torch.no_grad():
        for one in inputs:
            network.holding(weights, lambda: network.encode(one[None]))  # noqa: B023
    for handle in handles:
        handle.remove()
    return {name: torch.stack(values) for name, values in caught.items()}


def test_mean_tokens_are_those_of_every_input(made: SimpleNamespace) -> None:
    weights = placed(made.bank.origin, made.network, torch.float32)
    order = made.prototypes.order
    assert order.tokens_first[IN_PROJ]  # attention turns batch and tokens around
    assert not order.tokens_first[C_PROJ]
    found = mean_tokens(made.network, weights, order, made.mixed[:7])
    expected = hooked(made.network, weights, made.mixed[:7])
    for name, value in expected.items():
        torch.testing.assert_close(found[name].double(), value, rtol=1e-4, atol=1e-5)
    # Four matrices of two blocks; the positional embedding and the final projection are no y = x·Wᵀ.
    assert len(found) == 8


def test_discriminants_against_numpy() -> None:
    rng = np.random.default_rng(0)
    features = [rng.normal(t, [1, 2, 3, 1, 1, 1], (30 + t, 6)) @ rng.normal(size=(6, 6)) for t in range(4)]
    made = Discriminants.fit([torch.tensor(one, dtype=torch.float32) for one in features])
    means = np.stack([one.mean(0) for one in features])
    within = np.concatenate([one - mean for one, mean in zip(features, means, strict=True)])
    spread = within.std(0)
    scaled, apart = within / spread, (means - means.mean(0)) / spread
    covariance = scaled.T @ scaled / len(scaled)
    covariance += RIDGE * np.trace(covariance) / 6 * np.eye(6)
    # The nearest mean by Mahalanobis' distance, in all dimensions.
    new = rng.normal(1, 3, (50, 6)) @ rng.normal(size=(6, 6))
    differences = (new[:, None] - means[None]) / spread
    squares = np.einsum("btd,de,bte->bt", differences, np.linalg.inv(covariance), differences)
    along = (torch.tensor(new) - made.centre.double()) @ made.directions.double()
    own = (along[:, None] - made.means.double()[None]).square().sum(-1).numpy()
    # Distances differ by what lies outside the directions, which is the same for all tasks.
    np.testing.assert_allclose(own - own[:, :1], squares - squares[:, :1], rtol=1e-3, atol=1e-2)
    assert apart.shape == (4, 6)
    densities = []
    for one in features:
        z = (torch.tensor(one) - made.centre.double()) @ made.directions.double()
        cov = (1 - SHRINKAGE) * np.cov(z.numpy().T, bias=True) + SHRINKAGE * np.eye(3)
        normal = torch.distributions.MultivariateNormal(z.mean(0), torch.tensor(cov))
        densities.append(normal.log_prob(along))
    expected = torch.stack(densities, 1)
    found = made.log_densities(torch.tensor(new, dtype=torch.float32)).double()
    torch.testing.assert_close(found - found[:, :1], expected - expected[:, :1], rtol=1e-3, atol=1e-2)


def test_a_mixed_batch_runs_as_its_inputs_one_by_one(made: SimpleNamespace) -> None:
    router = Router(made.bank, made.network, made.prototypes, "prototypes")
    logits, scores = router(made.mixed, "beta")
    assert len(scores.argmax(1).unique()) > 1
    for i in range(0, 66, 9):
        alone, own = router(made.mixed[i : i + 1], "beta")
        torch.testing.assert_close(own[0], scores[i], rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(alone[0], logits[i], rtol=1e-3, atol=1e-3)
        weights = made.bank.expert(made.bank.tasks[int(scores[i].argmax())], torch.float32, "canonical")
        expected = made.network(weights, {"beta": made.mixed[i : i + 1]})["beta"]
        torch.testing.assert_close(expected[0], logits[i], rtol=1e-4, atol=1e-4)


def test_entropy_decides_among_the_two_nearest(made: SimpleNamespace) -> None:
    router = Router(made.bank, made.network, made.prototypes, "entropy")
    densities = router.log_densities(made.mixed)
    own, sure = [], []
    for task in made.bank.tasks:
        weights = made.bank.expert(task, torch.float32, "canonical")
        own.append(made.network(weights, {task: made.mixed})[task])
        p = own[-1].double().softmax(-1)
        sure.append(-(p * p.log()).sum(-1) / np.log(p.shape[-1]))
    nearest = densities.topk(2, 1).indices
    for i in range(0, 66, 6):
        row, two = densities[i], nearest[i]
        best = max(two.tolist(), key=lambda t: row[t].item() - UNSURE * sure[t][i].item())
        logits, scores = router(made.mixed[i : i + 1], MIXED)
        assert int(scores.argmax()) == best
        first = [0, 3, 7, 12]
        torch.testing.assert_close(logits[0, first[best] : first[best + 1]], own[best][i], rtol=1e-3, atol=1e-3)
        rest = logits[0].softmax(-1).clone()
        rest[first[best] : first[best + 1]] = 0
        assert rest.sum() == 0


def test_residuals_of_the_nearest_prototype_in_every_layer(made: SimpleNamespace) -> None:
    """Against a forward of one input after the other with weights that are put together by hand."""
    ratio = 0.2
    router = Router(made.bank, made.network, made.prototypes, "layers", ratio)
    found, votes = router(made.mixed[:5], "gamma")
    merged = made.bank.merge(dtype=torch.float32, naming="canonical")
    layers = made.prototypes.layers
    for i, one in enumerate(made.mixed[:5]):
        weights, count = {name: value.clone() for name, value in merged.items()}, torch.zeros(3)
        # A layer's choice depends on those before it, so it is known once they are settled.
        for name in layers:
            seen = mean_tokens(made.network, weights, made.prototypes.order, one[None])[name][0]
            t = int((layers[name] - seen).square().sum(-1).argmin())
            count[t] += 1
            residual = (made.bank.only(made.bank.tasks[t]).weight(name).double() - merged[name].double()).numpy()
            u, s, v = np.linalg.svd(residual, full_matrices=False)
            k = rank_of(ratio, *residual.shape)
            weights[name] = weights[name] + torch.tensor((u[:, :k] * s[:k]) @ v[:k], dtype=torch.float32)
        expected = made.network(weights, {"gamma": one[None]})["gamma"][0]
        torch.testing.assert_close(found[i], expected, rtol=1e-3, atol=1e-3)
        assert torch.equal(votes[i], count)
    mixed, again = router(made.mixed[:5], MIXED)
    assert torch.equal(votes, again)
    first = [0, 3, 7]
    assert [int(row.argmax()) for row in mixed] != []
    for row, vote in zip(mixed, votes, strict=True):
        task = int(vote.argmax())
        assert first[task] <= int(row.argmax()) < (first[task] + [3, 4, 5][task])


@pytest.mark.parametrize("route", ["prototypes", "entropy", "layers"])
def test_test_counts_what_was_found(made: SimpleNamespace, make_trainer: MakeTrainer, tiny: Any, route: Any) -> None:
    model = RoutedModel(made.bank, tiny.encoder(), made.prototypes, route)
    make_trainer().test(model, datamodule=tiny.data(), verbose=False)
    labels = {task: label.long() for task, (_, label) in tiny.data().labelled("test").items()}
    for place, task in enumerate(tiny.tasks):
        logits, scores = model.router(made.images[task], task)
        assert model.scores[task].accuracy == pytest.approx((logits.argmax(1) == labels[task]).double().mean().item())
        assert model.routing[task].accuracy == pytest.approx((scores.argmax(1) == place).double().mean().item())
    assert evaluate(made.bank, tiny.encoder(), tiny.data(), route=route) == model.scores
    # Of mixed data the head has to be right too.
    whole = RoutedModel(made.bank, tiny.encoder(), made.prototypes, route)
    make_trainer().test(whole, datamodule=tiny.data(mixed=True), verbose=False)
    for place, task in enumerate(tiny.tasks):
        logits, _ = model.router(made.images[task], MIXED)
        right = labels[task] + [0, 3, 7][place]
        assert whole.scores[task].accuracy == pytest.approx((logits.argmax(1) == right).double().mean().item())


def test_prototypes_of_images_in_one_place(made: SimpleNamespace) -> None:
    """Tasks that are far apart are distinguished, whatever is adapted."""
    network, bank = made.network, made.bank
    sources = {task: F.pad(torch.zeros(12, 8, 16), (0, 0, 0, 8), value=40 * i) for i, task in enumerate(bank.tasks)}
    noise = torch.randint(0, 9, (12, 16, 16), generator=torch.Generator().manual_seed(0))
    images = {task: (value + noise).to(torch.uint8) for task, value in sources.items()}
    weights = placed(bank.origin, network, torch.float32)
    order = RowOrder.find(network, weights, made.prototypes.layers, images["alpha"])
    features = [torch.cat(list(mean_tokens(network, weights, order, x).values()), 1) for x in images.values()]
    made_here = Discriminants.fit([one[:8] for one in features])
    for i, one in enumerate(features):
        assert (made_here.log_densities(one[8:]).argmax(1) == i).all()


def test_the_file_belongs_to_one_bank(made: SimpleNamespace, tiny: Any, tmp_path: Path) -> None:
    path = tmp_path / "p.safetensors"
    made.prototypes.save(path)
    again = Prototypes.load(path, made.bank)
    x = torch.randn(5, len(again.discriminants.centre), generator=torch.Generator().manual_seed(0))
    assert torch.equal(again.discriminants.log_densities(x), made.prototypes.discriminants.log_densities(x))
    assert again.tokens_first == made.prototypes.tokens_first
    # Adaptation changes nothing that they are made of.
    made.bank.save(tmp_path / "bank")
    Prototypes.load(path, TaskBank.load(tmp_path / "bank"))
    with pytest.raises(MergeError, match=r"p.safetensors holds prototypes of another bank"):
        Prototypes.load(path, made.bank.truncate(0.25))
    fewer = {task: tiny.experts[task] for task in ("beta", "gamma")}
    with pytest.warns(UserWarning, match="two experts"):
        small = build_bank(fewer, method=CART(rank_ratio=0.5))
    Prototypes.collect(small, tiny.encoder(), tiny.data(tasks=["beta", "gamma"])).save(tmp_path / "two.safetensors")
    with pytest.raises(MergeError, match="has no prototype of the bank's task alpha"):
        Prototypes.load(tmp_path / "two.safetensors", made.bank)
    with pytest.raises(MergeError, match="holds no prototypes of lit_merge"):
        Prototypes.load(tiny.base, made.bank)
    parts = load_file(path)
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        about = file.metadata()
    save_file(parts | {"centre": parts["centre"] + 1e-3}, path, about)
    with pytest.raises(MergeError, match="centre is not as it was saved"):
        Prototypes.load(path, made.bank)
    del about["lit_merge_checksums"]
    for wrong, said in (
        ({"means": parts["means"][:, :1].clone()}, {}),
        ({"roots": -parts["roots"]}, {}),
        ({f"layer/{C_PROJ}": torch.full_like(parts[f"layer/{C_PROJ}"], torch.nan)}, {}),
        ({}, {"tokens_first": "[" * 9999}),
        ({}, {"tasks": "3"}),
    ):
        save_file(parts | wrong, path, about | said)
        with pytest.raises(MergeError, match="is damaged"):
            Prototypes.load(path, made.bank)


def test_what_cannot_be_routed(made: SimpleNamespace, tiny: Any) -> None:
    shared = build_bank(tiny.experts, tiny.base, method=IsoC())
    with pytest.raises(MergeError, match="IsoC has no delta of every task by itself"):
        Prototypes.collect(shared, made.network, tiny.data())
    with pytest.raises(MergeError, match="and the data mixes them"):
        Prototypes.collect(made.bank, made.network, tiny.data(mixed=True))
    with pytest.raises(MergeError, match="'gamma' without data"):
        Prototypes.collect(made.bank, made.network, tiny.data(tasks=["alpha", "beta"]))
    with pytest.raises(MergeError, match="give a TaskBank"):
        evaluate(made.bank.merge(), made.network, tiny.data(), route="prototypes")


def test_the_verbs(made: SimpleNamespace, tiny: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made.bank.save(tmp_path / "bank")
    network = ["--model.network", "OpenClipImageEncoder", "--model.network.config", tiny.network]
    start = [*network, "--model.network.heads", tiny.heads, "--model.bank", f"{tmp_path}/bank"]
    start += ["--trainer.enable_progress_bar", "false", "--trainer.accelerator", "cpu"]
    data = ["--data", "Suite", "--data.path", tiny.suite]
    file, scores = ["--prototypes", f"{tmp_path}/p.safetensors"], tmp_path / "scores.json"
    assert main(["test", *start, *data, "--route", "entropy", *file, "--output", str(scores)]) == 0
    assert "routed to" in capsys.readouterr().out
    report = json.loads(scores.read_text())
    expected = evaluate(made.bank, tiny.encoder(), tiny.data(), route="entropy")
    assert report["tasks"]["beta"]["routed_accuracy"] == pytest.approx(expected["beta"].accuracy)
    assert 0 < report["mean"]["routing"] <= 1
    # One folder of all tasks, whose images are named by task and class: by the file that is there now.
    everything = tmp_path / "all"
    everything.mkdir()
    for task, folder in tiny.adapt_folders.items():
        for path in Path(folder).iterdir():
            (everything / f"{task}-{path.name}").write_bytes(path.read_bytes())
    mixed = ["--data", "ImageFolders", "--data.adapt", json.dumps({"mixed": str(everything)})]
    output, left = tmp_path / "p.csv", tmp_path / ".p.safetensors.abc.writing"
    left.mkdir()  # of a killed command
    assert main(["predict", *start, *mixed, "--route", "prototypes", *file, "--output", str(output)]) == 0
    assert not left.exists()
    rows = list(csv.DictReader(output.read_text().splitlines()))
    assert len(rows) == 21 + 34 + 13
    first = {"alpha": range(3), "beta": range(3, 7), "gamma": range(7, 12)}
    right = [int(row["class_1"]) in first[row["file"].partition("-")[0]] for row in rows]
    assert sum(right) / len(right) > 0.9  # these very images made the prototypes
    # Weights and head are those of one task.
    assert all(int(row["class_1"]) in first[row["routed"]] for row in rows)
    for route in ("entropy", "layers"):
        over = ["--route", route, *file, "--output", str(output), "--overwrite"]
        assert main(["predict", *start, *data, *over]) == 0
        rows = list(csv.DictReader(output.read_text().splitlines()))
        probe = RoutedModel(made.bank, tiny.encoder(), Prototypes.load(tmp_path / "p.safetensors", made.bank), route)
        seen = dict[str, list[str]]()
        for row in rows:
            seen.setdefault(row["task"], []).append(row["routed"])
        for task, (images, _) in tiny.data().labelled("test").items():
            scores = probe.router(images.read(range(len(images))), task)[1]
            assert seen[task] == [made.bank.tasks[place] for place in scores.argmax(1).tolist()]
    for arguments, message in (
        (["test", *start, *data, *file], "--prototypes is of --route"),
        (["test", *start, *mixed, "--route", "layers"], "and the data mixes them"),
        (["test", *start, *data, "--route", "nearest"], "route"),
        (["test", *start, *data, "--route", "layers", "--model.compile", "true"], "leave out model.compile"),
        (["fit", *start, *data, "--route", "layers", "--run", f"{tmp_path}/run"], "route"),
    ):
        assert main(arguments) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.strip().count("\n") == 0


def test_texts_with_padding(texts: Any, make_trainer: MakeTrainer) -> None:
    """Padding counts for nothing: a text's mean tokens are the same alone and next to a longer one."""
    network = HuggingFaceTextEncoder(texts.folder("bert"), texts.experts("bert"))
    bank = build_bank(
        Experts(texts.experts("bert"), exclude=["classifier.*"]), method=CART(rank_ratio=0.5, scaling=1.0)
    )
    data = TextFiles(texts.tables("adapt"), test=texts.tables("test"), tokenizer=texts.folder("bert"), max_length=16)
    prototypes = Prototypes.collect(bank, network, data)
    weights = placed(bank.origin, network, torch.float32)
    inputs = data.labelled("test")["mood"][0].read(range(6))
    lengths = network.token_mask(inputs).sum(1)
    assert lengths.min() < lengths.max()
    together = mean_tokens(network, weights, prototypes.order, inputs)
    for i, length in enumerate(lengths.tolist()):
        alone = mean_tokens(network, weights, prototypes.order, inputs[i : i + 1, :length])
        for name, value in alone.items():
            torch.testing.assert_close(together[name][i], value[0], rtol=1e-3, atol=1e-4)
    for route in ("entropy", "layers"):
        model = RoutedModel(bank, network, prototypes, route)
        make_trainer().test(model, datamodule=data, verbose=False)
        assert {task: score.images for task, score in model.scores.items()} == dict.fromkeys(texts.tasks, 13)
