"""The analysis against literal loops in float64, and the verb on real files."""

import csv
import json
import re
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from lit_merge import Experts, MergeError, analyze
from lit_merge.bank.linalg import truncated_svd
from lit_merge.cli.analyze import method_matrices
from lit_merge.cli.main import main
from lit_merge.report.analysis import cosines, interference, kept_energy, reconstruction_error
from lit_merge.report.analysis.build import RATIOS, kinds_of
from lit_merge.report.analysis.curves import rank_keeping
from lit_merge.report.analysis.figures import cosines_figure, energy_figure, interference_figure, spectra_figure

ROOT = Path(__file__).parents[2]


def literal_interference(matrices: Tensor, k: int, normalise: str) -> float:
    """Σ_{i≠j} ‖(S_i V_iᵀ)(S_j V_jᵀ)ᵀ‖_F, one pair and one rank at a time."""
    total = 0.0
    for i, one in enumerate(matrices.double().numpy()):
        for j, other in enumerate(matrices.double().numpy()):
            if i == j:
                continue
            halves = []
            for matrix in (one, other):
                _, s, vh = np.linalg.svd(matrix, full_matrices=False)
                divisor = s.sum() if normalise == "whole" else s[:k].sum()
                halves.append(np.diag(s[:k] / divisor) @ vh[:k] if divisor else np.zeros_like(vh[:k]))
            total += np.linalg.norm(halves[0] @ halves[1].T)
    return total


def literal_error(matrices: Tensor, k: int) -> float:
    """Σ_t ‖A_t − SVD_k(A_t)‖²_F."""
    total = 0.0
    for matrix in matrices.double().numpy():
        u, s, vh = np.linalg.svd(matrix, full_matrices=False)
        total += np.linalg.norm(matrix - u[:, :k] @ np.diag(s[:k]) @ vh[:k]) ** 2
    return total


def random_matrices(tasks: int, m: int, n: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(tasks, m, n, generator=generator, dtype=torch.float64)


sizes = st.integers(1, 7)


@settings(max_examples=25, deadline=None)
@given(tasks=st.integers(1, 4), m=sizes, n=sizes, seed=st.integers(0, 99), normalise=st.sampled_from(["whole", "top"]))
def test_curves_are_the_literal_formulas(tasks: int, m: int, n: int, seed: int, normalise: Any) -> None:
    matrices = random_matrices(tasks, m, n, seed)
    _, S, V = truncated_svd(matrices, min(m, n))
    curve, error, kept = interference(S, V, normalise), reconstruction_error(S), kept_energy(S)
    whole = matrices.square().sum().item()
    for k in range(1, min(m, n) + 1):
        assert curve[k - 1].item() == pytest.approx(literal_interference(matrices, k, normalise), abs=1e-12)
        assert error[k - 1].item() == pytest.approx(literal_error(matrices, k), abs=1e-10)
        assert kept[k - 1].item() == pytest.approx(1 - literal_error(matrices, k) / whole, abs=1e-12)
    assert error[-1] == 0
    if normalise == "whole":
        assert (curve.diff() >= -1e-12).all()


def test_ordered_pairs_and_the_two_normalisations_by_hand() -> None:
    """Two tasks on the same axes, σ = (3, 1): whole at k = 1: 2·(3/4)², top at k = 1: 2·1."""
    S, V = torch.tensor([[3.0, 1.0], [3.0, 1.0]]), torch.eye(2).expand(2, 2, 2)
    assert interference(S, V).tolist() == pytest.approx([2 * 9 / 16, 2 * (81 + 1) ** 0.5 / 16])
    assert interference(S, V, "top").tolist() == pytest.approx([2.0, 2 * (81 + 1) ** 0.5 / 16])
    # Tasks on other axes do not meet; scales of tasks do not count.
    apart = torch.stack([torch.eye(4)[:, :2], torch.eye(4)[:, 2:]])
    assert interference(S, apart).tolist() == [0, 0]
    torch.testing.assert_close(interference(S * torch.tensor([[5.0], [0.1]]), V), interference(S, V))


def test_one_task_and_zeros_give_zeros_not_nan() -> None:
    _, S, V = truncated_svd(random_matrices(1, 4, 3), 3)
    assert interference(S, V).tolist() == [0, 0, 0]
    matrices = random_matrices(3, 4, 3)
    matrices[1] = 0
    _, S, V = truncated_svd(matrices, 3)
    for normalise in ("whole", "top"):
        values = interference(S, V, normalise)
        assert values.isfinite().all()
        assert values[-1].item() == pytest.approx(literal_interference(matrices, 3, normalise))
    nothing = torch.zeros(2, 3)
    assert interference(nothing, V[:2], "top").tolist() == [0, 0, 0]
    assert reconstruction_error(nothing).tolist() == [0, 0, 0]
    assert kept_energy(nothing).tolist() == [1, 1, 1]
    assert cosines(torch.tensor([[4.0, 0.0], [0.0, 0.0]])).tolist() == [[1, 0], [0, 0]]


def test_rank_deficient_matrices() -> None:
    low = random_matrices(3, 8, 2) @ random_matrices(3, 2, 6, seed=1)
    _, S, V = truncated_svd(low.float(), 6)
    assert reconstruction_error(S)[1:].max().item() < 1e-9 * S.square().sum().item()
    assert rank_keeping(S, 1 - 1e-6) == 2
    for k in (1, 2, 6):
        for normalise in ("whole", "top"):
            expected = literal_interference(low, k, normalise)
            assert interference(S, V, normalise)[k - 1].item() == pytest.approx(expected, rel=1e-5)


def test_errors_add_over_tasks() -> None:
    _, S, _ = truncated_svd(random_matrices(4, 6, 5), 5)
    alone = sum(reconstruction_error(one[None]) for one in S)
    torch.testing.assert_close(reconstruction_error(S), alone)


def test_kinds_are_what_follows_a_number() -> None:
    names = ["a.blocks.0.attn.in_proj_weight", "a.blocks.11.attn.in_proj_weight", "a.blocks.0.mlp.c_fc.weight", "proj"]
    assert kinds_of(names) == {"attn.in_proj": names[:2], "mlp.c_fc": [names[2]], "proj": ["proj"]}
    towers = ["text.layers.0.fc1.weight", "vision.layers.0.fc1.weight", "vision.layers.1.fc2.weight"]
    assert list(kinds_of(towers)) == ["text.layers.*.fc1", "vision.layers.*.fc1", "fc2"]


SHAPES = {"net.0.attn.w": (6, 4), "net.1.attn.w": (6, 4), "net.0.mlp.w": (3, 9), "net.0.mlp.bias": (9,)}


@pytest.fixture
def small() -> tuple[dict[str, dict[str, Tensor]], dict[str, Tensor]]:
    """Three experts and their base, in float64."""
    generator = torch.Generator().manual_seed(3)

    def draw(scale: float) -> dict[str, Tensor]:
        return {
            name: scale * torch.randn(*shape, generator=generator, dtype=torch.float64)
            for name, shape in SHAPES.items()
        }

    base = draw(1.0)
    experts = {task: {n: base[n] + w for n, w in draw(0.1 * scale).items()} for scale, task in enumerate("abc", 1)}
    return experts, base


def test_analysis_of_both_anchors(small: Any) -> None:
    experts, base = small
    found = analyze(Experts(experts, base), ratios=[1.0, 0.3, 0.5, 0.3])
    assert found.anchors == ("centred", "pretrained")
    assert found.ratios == (0.3, 0.5, 1.0)
    names = [name for name in SHAPES if not name.endswith("bias")]
    assert sorted(found.shapes) == sorted(names)
    assert {kind: len(of) for kind, of in found.kinds.items()} == {"attn.w": 2, "mlp.w": 1}
    origins = {"pretrained": base, "centred": {n: sum(experts[t][n] for t in "abc") / 3 for n in names}}
    for anchor in found.anchors:
        vectors = {n: torch.stack([experts[t][n] - origins[anchor][n] for t in "abc"]) for n in names}
        energy = sum(v.square().sum().item() for v in vectors.values())
        assert found.energy(anchor) == pytest.approx(energy)
        for ratio, ks in ((0.3, (1, 1, 1)), (0.5, (2, 2, 1)), (1.0, (4, 4, 3))):
            literal = [literal_interference(vectors[n], k, "whole") for n, k in zip(names, ks, strict=True)]
            assert found.interference(anchor, ratio) == pytest.approx(np.mean(literal))
            lost = [literal_error(vectors[n], k) for n, k in zip(names, ks, strict=True)]
            assert found.loss(anchor, ratio) == pytest.approx(sum(lost) / energy, abs=1e-12)
            assert found.loss(anchor, ratio, names[2:]) == pytest.approx(
                lost[2] / vectors[names[2]].square().sum().item(), abs=1e-12
            )
        flat = torch.stack([torch.cat([vectors[n][t].flatten() for n in names]) for t in range(3)])
        expected = torch.nn.functional.cosine_similarity(flat[:, None], flat[None], dim=-1)
        torch.testing.assert_close(found.cosines(anchor), expected)
        pairs = [abs(expected[i, j].item()) for i, j in ((0, 1), (0, 2), (1, 2))]
        assert found.mean_absolute_cosine(anchor) == pytest.approx(np.mean(pairs))
    assert found.notes == []


def test_other_weights_are_not_read(small: Any) -> None:
    """Only matrices are streamed: what stands elsewhere cannot stop an analysis."""
    experts, base = small
    experts["b"]["net.0.mlp.bias"][0] = float("nan")
    opened = Experts(experts, base)
    analyze(opened)
    assert list(opened.shapes) == list(SHAPES)
    experts["b"]["net.0.attn.w"][0, 0] = float("nan")
    with pytest.raises(MergeError, match=r"expert b: net\.0\.attn\.w holds NaN"):
        analyze(opened)


def test_identical_experts_have_nothing_centred(small: Any) -> None:
    experts, base = small
    same = {task: {n: w + 1 / 3 for n, w in experts["a"].items()} for task in "abc"}
    found = analyze(Experts(same, base))
    assert found.energy("centred") == 0
    assert found.energy("pretrained") > 0
    assert found.interference("centred", 0.5) == 0
    assert found.loss("centred", 0.5) == 0
    assert not found.cosines("centred").any()
    torch.testing.assert_close(found.cosines("pretrained"), torch.ones(3, 3, dtype=torch.float64))
    assert any("identical" in note for note in found.notes)
    for curves in found.curves["centred"].values():
        assert curves.interference.isfinite().all()
        assert curves.kept.tolist() == [1] * len(curves.kept)


def test_what_is_special_is_said(small: Any) -> None:
    experts, base = small
    assert "no pretrained checkpoint given: centred only" in analyze(Experts(experts)).notes
    one = analyze(Experts({"a": experts["a"]}, base))
    assert one.interference("pretrained", 1.0) == 0
    assert one.mean_absolute_cosine("pretrained") is None
    assert any("no pairs, so interference is 0" in note for note in one.notes)
    two = analyze(Experts({task: experts[task] for task in "ab"}, base))
    assert two.cosines("centred")[0, 1].item() == pytest.approx(-1)
    assert any("negatives" in note for note in two.notes)
    for task in "abc":
        experts[task]["net.1.attn.w"] = base["net.1.attn.w"]
    found = analyze(Experts(experts, base))
    assert found.unchanged == ["net.1.attn.w"]
    assert any("1 of 3 matrices differ nowhere" in note for note in found.notes)
    moved = analyze(Experts(experts, base), matrices=["net.0*w"])
    assert found.interference("centred", 0.5) == pytest.approx(moved.interference("centred", 0.5))


def test_bad_options(small: Any) -> None:
    opened = Experts(small[0])
    for ratios in ([0.0], [0.5, 1.5], []):
        with pytest.raises(MergeError, match=r"ratios=.*in \(0, 1\]"):
            analyze(opened, ratios=ratios)
    with pytest.raises(MergeError, match=r"'\*nothing\*' matches no 2-D weight"):
        analyze(opened, matrices=["*nothing*"])


def test_figures_show_the_numbers(small: Any) -> None:
    found = analyze(Experts(*small), normalise="top")
    left, right = interference_figure(found).axes
    assert "sum of the top k" in left.get_ylabel()
    assert "whole spectrum" in interference_figure(analyze(Experts(*small))).axes[0].get_ylabel()
    for line, anchor in zip(left.get_lines(), found.anchors, strict=True):
        assert line.get_ydata() == pytest.approx([found.interference(anchor, ratio) for ratio in RATIOS])
    for line, anchor in zip(right.get_lines(), found.anchors, strict=True):
        assert line.get_ydata() == pytest.approx([100 * found.loss(anchor, ratio) for ratio in RATIOS])
        # Ranks are whole: the smallest is 1 of 4, of 4 and of 3.
        assert line.get_xdata()[0] == pytest.approx(100 * (1 / 4 + 1 / 4 + 1 / 3) / 3)
    assert [axes.get_title(loc="left") for axes in energy_figure(found).axes] == ["attn.w  (×2)", "mlp.w"]
    assert len(spectra_figure(found).axes) == 2
    numbers = [text.get_text() for text in cosines_figure(found).axes[0].texts]
    expected = found.cosines("centred")
    assert numbers[0] == f"{expected[0, 1].item():.2f}".replace("-", "−")
    assert len(numbers) == 6


@pytest.mark.pictures
def test_panels_of_a_whole_clip(tmp_path: Path) -> None:
    """Kinds in which nothing differs have no panel, and titles stay in theirs."""
    kinds = ("attn.in_proj_weight", "attn.out_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")
    towers = ("visual.transformer.resblocks", "transformer.resblocks", "a.very.long.name.of.a.third.tower.blocks")
    names = [f"{tower}.{b}.{kind}" for tower in towers for b in range(2) for kind in kinds]
    generator = torch.Generator().manual_seed(0)
    base = {name: torch.randn(4, 4, generator=generator) for name in names}
    experts = {
        task: {
            n: w if n.startswith("transformer") else w + torch.randn(4, 4, generator=generator) for n, w in base.items()
        }
        for task in ("a", "b", "c")
    }
    found = analyze(Experts(experts, base), ratios=[0.5, 1.0])
    for draw in (energy_figure, spectra_figure):
        figure = draw(found)
        assert len(figure.axes) == 8
        (legend,) = figure.legends
        assert "no expert differs in them: transformer.resblocks.*.attn.in_proj" in " ".join(
            legend.get_title().get_text().split()
        )
        figure.savefig(tmp_path / "figure.png")
        for row in (figure.axes[:4], figure.axes[4:]):
            boxes = [axes._left_title.get_window_extent() for axes in row]
            assert all(one.x1 < other.x0 for one, other in pairwise(boxes))
            assert boxes[-1].x1 < figure.bbox.x1


@pytest.mark.pictures
@pytest.mark.parametrize(("tasks", "kind"), [(1, "no base"), (2, "identical"), (11, "whole")])
def test_figures_of_any_experts_can_be_drawn(tasks: int, kind: str, small: Any) -> None:
    experts, base = small
    many = {f"task_{i}": {n: w + i * experts["a"][n] for n, w in experts["b"].items()} for i in range(tasks)}
    if kind == "identical":
        many = dict.fromkeys(many, base)
    found = analyze(Experts(many, None if kind == "no base" else base), ratios=[0.3], normalise="top")
    for draw in (interference_figure, energy_figure, spectra_figure, cosines_figure):
        draw(found).draw_without_rendering()


Config = Callable[..., str]


@pytest.fixture
def config(tiny: Any, tmp_path: Path) -> Config:
    """config(**changes of model): path of a configuration with everything that fit takes."""

    def write(**changes: Any) -> str:
        network = {"class_path": "OpenClipImageEncoder", "init_args": {"config": tiny.network, "heads": tiny.heads}}
        model = {
            "experts": dict(tiny.experts),
            "base": tiny.base,
            "network": network,
            "method": {"class_path": "CART", "init_args": {"rank_ratio": 0.5}},
            "stages": [{"granularity": "tied", "steps": 2}],
        }
        content = {
            "seed_everything": 0,
            "run": "somewhere",
            "trainer": {"enable_progress_bar": False, "accelerator": "cpu"},
            "model": {name: value for name, value in (model | changes).items() if value is not None},
            "data": {"class_path": "Suite", "init_args": {"path": tiny.suite}},
        }
        path = tmp_path / "config.yaml"
        path.write_text(yaml.safe_dump(content))
        return str(path)

    return write


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Runs analyze, which must end with exit code 2 and one line; returns the line."""
    capsys.readouterr()
    assert main(["analyze", *arguments]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert re.fullmatch(r"lit_merge: error: [^\n]+\n", said.err), said.err
    return said.err


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.pictures
def test_the_folder(config: Config, tiny: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "deep" / "analysis"
    assert main(["analyze", "--config", config(), "--output", str(output), "--ratios", "[0.1, 0.5]"]) == 0
    said = capsys.readouterr().out
    for text in ("centred", "pretrained", "0.08", "0.16", "0.32", "mean |cosine|", "90 %", "3 experts, 8 matrices"):
        assert text in " ".join(said.split())
    figures = {f"{name}.{kind}" for name in ("interference", "energy", "spectra", "cosines") for kind in ("png", "svg")}
    assert {path.name for path in output.iterdir()} == figures | {
        "curves.csv", "spectra.csv", "cosines.csv", "summary.json",
    }  # fmt: skip
    with Image.open(output / "interference.png") as picture:
        assert picture.width > 1000
    found = analyze(Experts(tiny.experts, tiny.base), ratios=[0.1, 0.5])
    curves = rows(output / "curves.csv")
    assert len(curves) == 2 * 8 * 2
    for row in curves:
        name, k = row["weight"], found.rank(row["weight"], float(row["ratio"]))
        values = found.curves[row["anchor"]][name]  # type: ignore[index]
        assert int(row["k"]) == k
        for column, curve in (
            ("interference", values.interference),
            ("reconstruction_error", values.error),
            ("kept_energy", values.kept),
        ):
            assert float(row[column]) == pytest.approx(curve[k - 1].item(), rel=1e-6)
    spectra = rows(output / "spectra.csv")
    assert len(spectra) == 2 * 3 * sum(min(shape) for shape in found.shapes.values())
    assert list(spectra[0]) == ["anchor", "task", "weight", "index", "value"]
    assert spectra[0]["index"] == "1"
    assert len(rows(output / "cosines.csv")) == 2 * 3 * 3
    summary = json.loads((output / "summary.json").read_text())
    assert summary["tasks"] == list(tiny.tasks)
    assert [curve["ratio"] for curve in summary["anchors"]["centred"]["curves"]] == [0.1, 0.5]
    assert summary["anchors"]["pretrained"]["curves"][1]["relative_error"] == found.loss("pretrained", 0.5)


def test_no_base_no_network_no_method(config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "analysis"
    path = config(base=None, network=None, method=None, stages=None)
    assert main(["analyze", "--config", path, "--output", str(output)]) == 0
    assert "centred only" in " ".join(capsys.readouterr().out.split())
    assert {row["anchor"] for row in rows(output / "curves.csv")} == {"centred"}
    assert "centred only" in " ".join((output / "summary.json").read_text().split())


def test_options_without_a_file_and_over_it(config: Config, tiny: Any, tmp_path: Path) -> None:
    experts = [f"--model.experts.{task}={path}" for task, path in tiny.experts.items()]
    assert main(["analyze", *experts, "--output", str(tmp_path / "one"), "--matrices", '["*c_fc.weight"]']) == 0
    assert {row["weight"][-11:] for row in rows(tmp_path / "one" / "curves.csv")} == {"c_fc.weight"}
    path = config(method={"class_path": "TSVM", "init_args": {"matrices": ["*c_proj.weight"]}})
    over = ["--model.base", "null", "--trainer.enable_progress_bar", "false", "--model.method.scaling", "2"]
    assert main(["analyze", "--config", path, "--output", str(tmp_path / "two"), *over]) == 0
    found = rows(tmp_path / "two" / "curves.csv")
    assert {row["weight"][-13:] for row in found} == {"c_proj.weight"}
    assert {row["anchor"] for row in found} == {"centred"}


def test_whose_matrices() -> None:
    assert method_matrices(None) is None
    assert method_matrices("CART") is None
    assert method_matrices({"class_path": "CART", "init_args": {"rank_ratio": 0.1}}) is None
    assert method_matrices({"class_path": "CART", "init_args": {"matrices": "all"}}) == "all"
    assert method_matrices({"class_path": "CART", "init_args": {"matrices": "all"}, "matrices": ["x"]}) == ["x"]


@pytest.mark.pictures
def test_the_same_experts_give_the_same_files(config: Config, tmp_path: Path) -> None:
    options = ["--ratios", "[0.5]", "--matrices", '["*c_fc.weight"]']
    for name in ("one", "two"):
        assert main(["analyze", "--config", config(), "--output", str(tmp_path / name), *options]) == 0
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes(), path.name


def test_the_configuration_that_a_fit_leaves(config: Config, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert main(["fit", "--config", config(), "--run", str(run)]) == 0
    assert main(["analyze", "--config", str(run / "config.yaml"), "--output", str(tmp_path / "analysis")]) == 0
    assert (tmp_path / "analysis" / "interference.svg").is_file()


def test_an_existing_output(config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "analysis"
    output.mkdir()
    (output / "mine.txt").write_text("mine")
    line = refused(capsys, "--config", config(), "--output", str(output))
    assert f"{output} exists" in line
    assert "--overwrite" in line
    assert [path.name for path in output.iterdir()] == ["mine.txt"]
    again = ["--config", config(), "--output", str(output), "--overwrite", "--ratios", "[0.5]"]
    assert f"{output} was not written by `lit-merge analyze`" in refused(capsys, *again)
    (output / "mine.txt").rename(tmp_path / "mine.txt")
    for _ in range(2):
        assert main(["analyze", *again]) == 0
    (tmp_path / "mine.txt").rename(output / "mine.txt")
    assert f"{output} holds mine.txt, which `lit-merge analyze` did not write" in refused(capsys, *again)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], ["needs --output"]),
        (["--output", "OUT", "--model.experts", "null"], ["nothing to analyse", "model.experts"]),
        (["--output", "OUT", "--matrices", '["*nope*"]'], ["'*nope*'", "matches no 2-D weight"]),
        (["--output", "OUT", "--matrices", "blok"], ["'blok'", "block, all, every"]),
        (["--output", "OUT", "--model.method.matrices", "5"], ["model.method.matrices=5", "block, all, every"]),
        (["--output", "OUT", "--ratios", "[2]"], ["ratios=[2.0]", "(0, 1]"]),
        (["--output", "OUT", "--normalise", "topp"], ["whole or top", "nearest is top"]),
        (["--output", "OUT", "--model.bas", "x"], ["model.bas'", "nearest is model.base"]),
        (["--output", "OUT", "--model.base", "absent.safetensors"], ["absent.safetensors", "no such file"]),
        (["--output", "OUT", "--model.experts", "5"], ["5: no such folder of experts"]),
        (["--output", "OUT", "--config", "absent.yaml"], ["absent.yaml", "no such configuration file"]),
        (["--output", "/proc/analysis"], ["/proc/analysis cannot be written"]),
    ],
)
def test_bad_input(
    options: list[str], said: list[str], config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    placed = [str(tmp_path / "out") if option == "OUT" else option for option in options]
    line = refused(capsys, "--config", config(), *placed)
    for text in said:
        assert text in line
    assert {path.name for path in tmp_path.iterdir()} == {"config.yaml"}


def test_a_base_of_another_shape(config: Config, tiny: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = "transformer.resblocks.0.mlp.c_fc.weight"
    save_file(load_file(tiny.base) | {name: torch.zeros(3, 2)}, tmp_path / "other.safetensors")
    options = ["--model.base", str(tmp_path / "other.safetensors"), "--output", str(tmp_path / "out")]
    line = refused(capsys, "--config", config(), *options)
    for text in (name, "[3, 2]", "[64, 32]", "other.safetensors"):
        assert text in line


def test_the_examples_of_the_page_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (ROOT / "docs" / "analyze.md").read_text(encoding="utf-8")
    (command,) = re.findall(r"^lit-merge (.*)$", page, re.MULTILINE)
    (example,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    assert main(command.split()) == 0
    assert (tmp_path / "analysis" / "cosines.png").is_file()
    exec(compile(example, "analyze.md", "exec"), {})
