"""The heat map shows the bank's coefficients, every one where its labels say."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from lit_merge import TaskBank, coefficient_figure
from lit_merge.report.figure_files import save_figure

pytestmark = pytest.mark.pictures
KINDS = ("attn.in_proj_weight", "attn.out_proj.weight", "ln_1.bias", "mlp.c_fc.weight", "mlp.c_proj.weight")


def make_bank(tasks: int, blocks: int, rows: int | None = None) -> TaskBank:
    # As files sort them: 10 before 2.
    layers = sorted(["conv1.weight", *(f"trunk.{b}.{kind}" for b in range(blocks) for kind in KINDS)])
    values = torch.linspace(0.5, 1.5, (rows or tasks) * len(layers)).reshape(-1, len(layers))
    names = tuple(f"stanford_cars_{i}" for i in range(tasks))
    return TaskBank(names, {}, dict.fromkeys(layers, torch.zeros(0)), values, {}, {"class_path": "CART"})


def panels(figure: Figure) -> list:
    return [axes for axes in figure.axes if axes.get_yticklabels() and axes.images]


@pytest.mark.parametrize(("tasks", "blocks"), [(3, 2), (8, 20), (20, 10), (2, 60)])
def test_every_coefficient_stands_under_its_labels(tasks: int, blocks: int) -> None:
    bank = make_bank(tasks, blocks)
    shown: dict[tuple[str, str, str], float] = {}
    columns: list[tuple[str, str]] = []
    for axes in panels(coefficient_figure(bank)):
        values = axes.images[0].get_array()
        names = [label.get_text() for label in axes.get_xticklabels()]
        above = {text.xy[0]: text.get_text() for text in axes.texts if text.get_text().isdigit()}
        blocks_here = ["" if "." not in n or n == "conv1.weight" else _nearest(above, i) for i, n in enumerate(names)]
        columns += zip(blocks_here, names, strict=True)
        for r, task in enumerate(label.get_text() for label in axes.get_yticklabels()):
            shown |= {(task, b, n): v for b, n, v in zip(blocks_here, names, values[r], strict=True)}
    assert len(shown) == bank.coefficients.numel()
    for t, task in enumerate(bank.tasks):
        for name, value in zip(bank.layers, bank.coefficients[t].tolist(), strict=True):
            place = ("", name) if name == "conv1.weight" else tuple(name.split(".", 2)[1:])
            assert shown[(task, *place)] == pytest.approx(value)
    numbers = [int(block) for block, _ in columns if block]
    assert numbers == sorted(numbers)


def _nearest(above: dict[float, str], i: int) -> str:
    return above[min(above, key=lambda x: abs(x - i))]


@pytest.mark.parametrize(("tasks", "blocks"), [(8, 20), (20, 10)])
def test_labels_do_not_overlap(tasks: int, blocks: int, tmp_path: Path) -> None:
    figure = coefficient_figure(make_bank(tasks, blocks))
    renderer = FigureCanvasAgg(figure).get_renderer()
    for axes in panels(figure):
        below, beside = axes.get_xticklabels(), axes.get_yticklabels()
        for labels, low, high in ((below, "x0", "x1"), (beside, "y0", "y1")):
            boxes = sorted((label.get_window_extent(renderer) for label in labels), key=lambda b: getattr(b, low))
            assert all(getattr(one, high) <= getattr(other, low) for one, other in pairwise(boxes))
        for label in (*below, *beside):
            box = label.get_window_extent(renderer)
            assert box.x0 >= 0
            assert box.y0 >= 0
    save_figure(figure, tmp_path / "map.png")
    with Image.open(tmp_path / "map.png") as picture:
        assert max(picture.size) < 2600
    save_figure(figure, tmp_path / "map.svg")
    assert "<svg" in (tmp_path / "map.svg").read_text(encoding="utf-8")[:500]


def colours_of(bank: TaskBank, start: torch.Tensor | None) -> tuple[str, float, float]:
    image = panels(coefficient_figure(bank, start))[0].images[0]
    return image.get_cmap().name, *image.get_clim()


def test_colours() -> None:
    bank = make_bank(2, 2)
    # White is where it started, if coefficients lie on both sides of it; else colours are for the differences.
    assert colours_of(bank, torch.full((1, 1), 0.9)) == ("RdBu_r", pytest.approx(0.3), pytest.approx(1.5))
    for start in (None, torch.full((2, 11), 0.4), bank.coefficients):
        assert colours_of(bank, start) == ("viridis", pytest.approx(0.5), pytest.approx(1.5))
    bank.coefficients.fill_(2.0)
    assert colours_of(bank, bank.coefficients)[1:] == (pytest.approx(1.9), pytest.approx(2.1))


def test_title() -> None:
    bank = make_bank(2, 2)
    title = coefficient_figure(bank, torch.ones(2, 11), "step 7").get_suptitle()
    assert title == "CART() of 2 experts\nstep 7: mean 1, from 0.5 to 1.5, started at 1"
    bank.coefficients[0, 0] = np.nan
    assert "1 not finite" in coefficient_figure(bank).get_suptitle()


def test_a_shared_delta_has_one_row() -> None:
    (axes,) = panels(coefficient_figure(make_bank(3, 2, rows=1)))
    assert [label.get_text() for label in axes.get_yticklabels()] == ["all tasks"]
    assert axes.images[0].get_array().shape == (1, 11)


def test_towers_are_named() -> None:
    layers = [f"{tower}.{b}.w" for tower in ("text.blocks", "visual.blocks") for b in range(2)]
    bank = TaskBank(("a",), {}, dict.fromkeys(layers, torch.zeros(0)), torch.ones(1, 4), {}, {})
    (axes,) = panels(coefficient_figure(bank))
    said = [text.get_text() for text in axes.texts]
    assert [text for text in said if text.isdigit()] == ["0", "1", "0", "1"]
    # As much of a name as its columns have room for.
    assert [text[-2:] for text in said if text.startswith("…")] == ["ks", "ks"]
