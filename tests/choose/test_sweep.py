"""Sweeps: one decomposition, every point as a merge of its own would read, resumed where it was cut off, chosen."""

import csv
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image

from lit_merge import CART, ESM, TIES, TSVM, IsoC, MergeError, MergeWarning, TaskArithmetic, WeightAveraging, build_bank
from lit_merge.choose.sweep import Grid, Point, choose, run_sweep
from lit_merge.choose.sweep.folder import SweepFolder, sweep_figures, to_csv
from lit_merge.choose.sweep.points import at_edge
from lit_merge.choose.sweep.progress import SweepProgress
from lit_merge.cli.lightning_cli import MergeRecipe
from lit_merge.cli.main import main
from lit_merge.console import Manner, use_manner

pytestmark = pytest.mark.filterwarnings("ignore:select=")
GRID = Grid((CART(), TSVM(), TaskArithmetic()), rank_ratios=(0.25, 0.5), scalings=(0.5, 1.0))


def rows_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "results.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def recipe(tiny: Any) -> Callable[..., MergeRecipe]:
    def make(**options: Any) -> MergeRecipe:
        given = {"experts": tiny.experts, "base": tiny.base, "method": CART(0.5, 1.0), "decompositions": "memory"}
        return MergeRecipe(tiny.encoder(), **given | options)

    return make


@pytest.mark.pictures
def test_points_are_those_of_merges_of_their_own(recipe: Any, make_trainer: Any, tiny: Any, tmp_path: Path) -> None:
    run_sweep(recipe().sources, tiny.data(), GRID, tmp_path / "sweep", images=8)
    rows = {
        (row["method"], row["rank_ratio"], row["scaling"]): float(row["accuracy"])
        for row in rows_of(tmp_path / "sweep")
        if row["rule"] == "grid"
    }
    assert len(rows) == len(GRID) == 2 * 2 + 2 + 2
    for method, place in ((CART(0.25, 0.5), ("CART", "0.25", "0.5")), (TSVM(scaling=1.0), ("TSVM", "", "1.0"))):
        model = recipe(method=method)
        make_trainer(limit_val_batches=1.0).validate(model, datamodule=tiny.data(), verbose=False)
        mean = sum(score.accuracy for score in model.scores.values()) / len(model.scores)
        assert rows[place] == pytest.approx(mean, abs=1e-6)
    for name in ("heatmap", "curves"):
        with Image.open(tmp_path / "sweep" / f"{name}.png") as picture:
            assert len(picture.getcolors(10**7) or ()) > 20


def test_without_labels_nothing_reads_them(
    recipe: Any, tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tiny.data()
    monkeypatch.setattr(data, "labelled", lambda split: pytest.fail("labels were asked for"))
    chosen = run_sweep(recipe().sources, data, GRID, tmp_path / "sweep", "agreement", "unlabelled", images=8)
    assert chosen.accuracy is None
    with pytest.raises(MergeError, match="needs labelled validation data"):
        run_sweep(recipe().sources, data, GRID, tmp_path / "sweep", "accuracy", "unlabelled", images=8)


def test_one_decomposition_serves_all_ranks_and_scales(recipe: Any, tiny: Any, tmp_path: Path) -> None:
    model = recipe()
    matrices = model.sources.decompositions.computed
    assert matrices == len(model.bank.ranks)
    run_sweep(model.sources, tiny.data(), replace(GRID, methods=(CART(),)), tmp_path / "sweep", images=8)
    assert model.sources.decompositions.computed == matrices


def test_goes_on_where_it_was_cut_off(recipe: Any, tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lit_merge.choose.sample import Probe

    run_sweep(recipe().sources, tiny.data(), GRID, tmp_path / "whole", images=8)
    wanted = (tmp_path / "whole" / "results.csv").read_text()
    lines = wanted.splitlines(keepends=True)
    read, reads, most = Probe.read, 0, len(lines) - 1 - 3

    def counted(self: Probe, weights: Any) -> Any:
        nonlocal reads
        if reads == most:
            raise KeyboardInterrupt
        reads += 1
        return read(self, weights)

    monkeypatch.setattr(Probe, "read", counted)
    with pytest.raises(KeyboardInterrupt):
        run_sweep(recipe().sources, tiny.data(), GRID, tmp_path / "cut", images=8)
    # A digit that is changed is seen, and the sweep goes on from what it was.
    kept = tmp_path / ".cut.unfinished" / "points.jsonl"
    whole = kept.read_text()
    kept.write_text(whole.replace('"scaling": 1.0', '"scaling": 2.0', 1))
    with pytest.raises(MergeError, match=r"points\.jsonl is damaged: remove .*unfinished to start afresh"):
        run_sweep(recipe().sources, tiny.data(), GRID, tmp_path / "cut", images=8)
    kept.write_text(whole)
    reads, most = 0, 99
    run_sweep(recipe().sources, tiny.data(), GRID, tmp_path / "cut", images=8)
    assert reads == 3
    assert (tmp_path / "cut" / "results.csv").read_text() == wanted


def test_another_sweep_is_not_overwritten(recipe: Any, tiny: Any, tmp_path: Path) -> None:
    small = replace(GRID, methods=(TaskArithmetic(),), rank_ratios=None)
    run_sweep(recipe().sources, tiny.data(), small, tmp_path / "sweep", images=8)
    before = (tmp_path / "sweep" / "results.csv").read_text()
    with pytest.raises(MergeError, match="other scalings"):
        run_sweep(recipe().sources, tiny.data(), replace(small, scalings=(0.1,)), tmp_path / "sweep", images=8)
    assert (tmp_path / "sweep" / "results.csv").read_text() == before
    run_sweep(
        recipe().sources, tiny.data(), replace(small, scalings=(0.1,)), tmp_path / "sweep", images=8, overwrite=True
    )
    (tmp_path / "other").mkdir()
    with pytest.raises(MergeError, match="is no sweep"):
        run_sweep(recipe().sources, tiny.data(), small, tmp_path / "other", images=8)
    before = (tmp_path / "sweep" / "results.csv").read_text()
    (tmp_path / "sweep" / "results.csv").write_text(before.replace("1", "2", 1))
    with pytest.raises(MergeError, match=r"results\.csv is not as it was written: its digest in digests\.json"):
        run_sweep(recipe().sources, tiny.data(), replace(small, scalings=(0.1,)), tmp_path / "sweep", images=8)
    (tmp_path / "sweep" / "digests.json").unlink()
    (tmp_path / "sweep" / "results.csv").write_text("method,rank_ratio\nCART,x\n")
    with pytest.raises(MergeError, match="is damaged"):
        run_sweep(recipe().sources, tiny.data(), replace(small, scalings=(0.1,)), tmp_path / "sweep", images=8)


def test_two_commands_do_not_fill_one_folder(recipe: Any, tiny: Any, tmp_path: Path) -> None:
    busy = pytest.raises(MergeError, match=r"another process is at work on .*sweep: wait")
    with SweepFolder(tmp_path / "sweep", {"some": "plan"}), busy:
        run_sweep(recipe().sources, tiny.data(), GRID, tmp_path / "sweep", images=8, overwrite=True)
    assert not list(tmp_path.iterdir())


def point(ratio: float, scaling: float, rule: str = "grid", **seen: float) -> Point:
    return Point("CART", ratio, scaling, rule, seen.get("accuracy"), seen["entropy"], seen["agreement"], 0.9)


POINTS = [
    point(0.1, 1.0, accuracy=0.7, entropy=0.5, agreement=0.6),
    point(0.1, 2.0, accuracy=0.6, entropy=0.3, agreement=0.5),
    point(0.2, 1.0, accuracy=0.8, entropy=0.9, agreement=0.75),
    point(0.2, 2.0, accuracy=0.75, entropy=0.6, agreement=0.7),
    point(0.2, 1.5, "self_consistent", accuracy=0.78, entropy=0.7, agreement=0.72),
]


def test_choices() -> None:
    assert choose(POINTS, "accuracy") == POINTS[2]
    assert choose(POINTS, "agreement") == POINTS[2]
    assert choose(POINTS, "entropy") == POINTS[3], "scale by entropy at each rank, then rank by agreement"
    assert choose(POINTS, "self_consistent") == POINTS[4]
    unlabelled = [replace(one, accuracy=None) for one in POINTS[:4]]
    with pytest.raises(MergeError, match="no labelled"):
        choose(unlabelled, "accuracy")
    with pytest.raises(MergeError, match="no merge of this grid has a self-consistent scale"):
        choose(unlabelled, "self_consistent")


def test_curves_of_every_method_and_a_legend(tmp_path: Path) -> None:
    other = [replace(one, method="TIES", rank_ratio=None) for one in POINTS[:2]]
    plain = replace(POINTS[0], method="WeightAveraging", rank_ratio=None, scaling=None)
    points = [*other, plain, *POINTS]
    (tmp_path / "results.csv").write_text(to_csv(points))
    figures = sweep_figures(tmp_path)
    axes = figures["curves"].axes
    # The chosen method comes first; what has no scale has no curve.
    scaled = [f"scaling of {POINTS[0].method}"] * 3 + ["scaling of TIES"] * 3
    assert [one.get_xlabel() for one in axes] == scaled
    assert list(axes[3].get_lines()[0].get_ydata()) == [100 * one.accuracy for one in other]
    (legend,) = figures["curves"].legends
    shown = [text.get_text() for text in legend.get_texts()]
    assert shown[-3:] == ["best of its line", "chosen", "self-consistent scale"]
    stars = [line for one in axes for line in one.get_lines() if line.get_marker() == "*"]
    assert [line.get_xdata()[0] for line in stars] == [choose(POINTS, "accuracy").scaling] * 3
    titles = [one.get_title(loc="left") for one in figures["heatmap"].axes]
    assert {"TIES", "WeightAveraging", POINTS[0].method} <= set(titles)


def test_progress_is_a_line_or_an_event_per_point(capsys: pytest.CaptureFixture[str]) -> None:
    shown = []
    for manner in (Manner(), Manner(json=True), Manner(quiet=True)):
        use_manner(manner)
        with SweepProgress(4, "agreement") as progress:
            for i in range(1, len(POINTS) + 1):
                progress.update(POINTS[:i])
        shown.append(capsys.readouterr())
    use_manner(Manner())
    lines, events, nothing = shown
    assert lines.out == ""
    assert re.fullmatch(r"point 1 of 4, 0:0\d left: CART, rank ratio 0.1, scaling 1: .*", lines.err.splitlines()[0])
    assert lines.err.splitlines()[-1].endswith("agreement 72.0 % (self-consistent)")
    assert events.err == ""
    found = [json.loads(line) for line in events.out.splitlines()]
    assert [(one["event"], one["done"], one["agreement"]) for one in found] == [
        ("point", min(i, 4), point.agreement) for i, point in enumerate(POINTS, 1)
    ]
    assert nothing == ("", "")


def test_doubts_are_warnings(recipe: Any, tiny: Any, tmp_path: Path) -> None:
    for select in ("agreement", "entropy"):
        with pytest.warns(MergeWarning) as shown:
            run_sweep(recipe().sources, tiny.data(), GRID, tmp_path / "sweep", select, "unlabelled", images=8)
        said = " ".join(str(one.message) for one in shown)
        assert "fewer than 16 inputs of alpha, beta, gamma" in said
        # Only entropy has a minimum that can lie elsewhere than the best scale.
        assert ("with 3 tasks the minimum of the entropy" in said) == (select == "entropy")
    assert at_edge(POINTS, POINTS[2])
    assert not at_edge(POINTS, POINTS[4])
    middle = replace(POINTS[2], scaling=1.7)
    assert not at_edge([*POINTS, middle], middle)


def test_methods_without_rank_or_scale(recipe: Any, tiny: Any, tmp_path: Path) -> None:
    grid = Grid((WeightAveraging(), IsoC()), scalings=(1.0,))
    run_sweep(recipe().sources, tiny.data(), grid, tmp_path / "sweep", images=8)
    rows = rows_of(tmp_path / "sweep")
    assert [(row["method"], row["rule"]) for row in rows] == [
        ("WeightAveraging", "grid"),
        ("IsoC", "grid"),
        ("IsoC", "self_consistent"),
    ]


@pytest.mark.filterwarnings("ignore::lit_merge.MergeWarning")
def test_the_chosen_configuration_holds_no_collected_moments(recipe: Any, tiny: Any, tmp_path: Path) -> None:
    model = recipe(method=ESM(samples=8), data=tiny.data(), accelerator="cpu")
    grid = Grid((model.sources.method,), scalings=(0.3, 0.5))
    run_sweep(model.sources, tiny.data(), grid, tmp_path / "sweep", images=8)
    chosen = yaml.safe_load((tmp_path / "sweep" / "chosen.yaml").read_text())["model"]["method"]
    assert chosen["class_path"] == "ESM"
    assert chosen["init_args"]["moments"] is None


def test_grids_that_cannot_be_walked() -> None:
    with pytest.raises(MergeError, match="named twice"):
        Grid((CART(0.1), CART(0.2)))
    for wrong in ({"rank_ratios": ()}, {"scalings": ()}):
        with pytest.raises(MergeError, match="at least one"):
            Grid((CART(),), **wrong)
    with pytest.raises(MergeError, match=r"rank_ratios has nothing to choose for TIES, TSVM: leave it out"):
        Grid((TIES(), TSVM()), rank_ratios=(0.1,))
    with pytest.raises(MergeError, match=r"scalings has nothing to choose for WeightAveraging"):
        Grid((WeightAveraging(),), scalings=(1.0,))
    assert len(Grid((TIES(), CART()), rank_ratios=(0.1, 0.2), scalings=(1.0,))) == 3


def test_killed_at_its_start_or_overwriting(forks: Any, tiny: Any, tmp_path: Path) -> None:
    content = configuration(tiny)
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(content))
    command = ["sweep", "--config", str(tmp_path / "c.yaml"), "--output", "sweep", "--inputs", "unlabelled"]
    command += ["--images", "4", "--select", "entropy", "--rank_ratios", "[0.5]"]
    one, two = ([*command, "--scalings", scalings] for scalings in ("[0.5]", "[0.5,1.0]"))
    assert forks.kill_and_repeat(*one, moments=["mkdir .sweep.unfinished"], folder=tmp_path / "before") == []
    over = {"folder": tmp_path / "over", "before": tmp_path / "before"}
    assert forks.kill_and_repeat(*two, "--overwrite", moments=["rename results.csv to"], **over) == []
    assert {path.name for path in (tmp_path / "over").iterdir()} == {"sweep"}


def configuration(tiny: Any) -> dict[str, Any]:
    return {
        "trainer": {"accelerator": "cpu"},
        "model": {
            "experts": str(tiny.root / "experts"),
            "base": tiny.base,
            "network": {
                "class_path": "OpenClipImageEncoder",
                "init_args": {"config": tiny.network, "heads": tiny.heads},
            },
            "method": {"class_path": "CART"},
        },
        "data": {"class_path": "Suite", "init_args": {"path": tiny.suite}},
    }


def test_command_line(tiny: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = configuration(tiny)
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(content))
    output = str(tmp_path / "sweep")
    command = ["sweep", "--config", str(tmp_path / "c.yaml"), "--output", output, "--images", "8"]
    grid = ["--rank_ratios", "[0.25,0.5]", "--scalings", "[0.5,1.0,2.0]"]
    for select in ("accuracy", "entropy", "agreement", "self_consistent"):
        assert main([*command, *grid, "--select", select]) == 0
        shown = capsys.readouterr().out
        assert f"Chosen by {select}: CART, rank ratio" in shown
    assert {path.name for path in Path(output).iterdir()} == {
        "sweep.json", "results.csv", "table.txt", "chosen.yaml",
        "heatmap.png", "heatmap.svg", "curves.png", "curves.svg", "digests.json",
    }  # fmt: skip
    several = ["--methods", '[{"class_path": "CART"}, {"class_path": "IsoC"}]', *grid]
    assert main([*command[:-4], "--output", str(tmp_path / "several"), *several]) == 0
    assert "IsoC" in capsys.readouterr().out
    # The choice goes over the configuration that was swept.
    merged = ["merge", "--config", str(tmp_path / "c.yaml"), "--config", f"{output}/chosen.yaml"]
    assert main([*merged, "--output", str(tmp_path / "m.safetensors")]) == 0
    assert main([*command, "--rank_ratios", "[0.25]"]) == 2
    shown = capsys.readouterr()
    assert shown.err.count("\n") == 1
    assert "other rank_ratios" in shown.err


def test_decompositions_in_files_are_read_again(tiny: Any, tmp_path: Path) -> None:
    from lit_merge.experts.decompositions import Decompositions

    def bank(ratio: float) -> tuple[int, Any]:
        kept = Decompositions(tmp_path / "kept", "tiny")
        return build_bank(tiny.experts, method=CART(ratio, 1.0), decompositions=kept), kept.computed

    first, computed = bank(0.25)
    again, none = bank(0.5)
    assert computed == len(first.ranks)
    assert none == 0
    again_merged = again.merge()
    for name, value in build_bank(tiny.experts, method=CART(0.5, 1.0)).merge().items():
        torch.testing.assert_close(again_merged[name], value)
    others = Decompositions(tmp_path / "kept", "others")
    build_bank(tiny.experts, method=CART(0.25, 1.0), decompositions=others)
    assert others.computed == len(first.ranks)
