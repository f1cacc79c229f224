"""`explain` says what the docstrings say, of everything that a configuration can name."""

import dataclasses
import inspect
from typing import Any

import pytest

import lit_merge
from lit_merge.cli.catalogue import catalogue, sections
from lit_merge.cli.main import main
from lit_merge.methods.base import MergeMethod, Transform
from lit_merge.objectives import Objective


def said(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    capsys.readouterr()
    assert main(["explain", *arguments]) == 0
    return capsys.readouterr().out


def public(base: type) -> dict[str, Any]:
    found, queue = {}, [base]
    while queue:
        for child in queue.pop().__subclasses__():
            queue.append(child)
            named = child.__name__ in lit_merge.__all__ or child.__module__ == "lit_merge.objectives"
            if child.__module__.startswith("lit_merge.") and named:
                found[child.__name__] = child
    return found


@pytest.mark.parametrize("base", [MergeMethod, Transform, Objective])
def test_options_are_those_of_the_classes(base: type) -> None:
    """Names and defaults that are read off the source are those that Python has."""
    for name, cls in public(base).items():
        entry = catalogue()[name]
        fields = {one.name: one for one in dataclasses.fields(cls)}
        assert [one.name for one in entry.options] == list(fields)
        for option in entry.options:
            default = fields[option.name].default
            needed = default is dataclasses.MISSING and fields[option.name].default_factory is dataclasses.MISSING
            assert (option.default == "") == needed
            if isinstance(default, int | float | str | None):
                assert eval(option.default) == default
            assert option.text, f"{name}.{option.name} has no text"
        assert "Use it" in entry.text, name
        assert entry.text.split("\n")[0] in inspect.getdoc(cls)
    assert public(base)


def test_every_method_names_its_paper() -> None:
    papers = {name: catalogue()[name].papers for name in public(MergeMethod)}
    assert all(papers.values()), papers
    assert papers["CART"] == ("2412.12153",)
    assert papers["TIES"] == ("2306.01708",)


def test_a_method(capsys: pytest.CaptureFixture[str]) -> None:
    shown = said(capsys, "cart")
    assert shown.startswith("CART, a merging method: centred arithmetic with rank-reduced task vectors")
    assert "Paper: https://arxiv.org/abs/2412.12153" in shown
    assert "In a configuration: model.method: {class_path: CART}" in shown
    assert "  rank_ratio: float" in shown
    assert "Use it for three tasks or more" in " ".join(shown.split())


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("Entropy", "Entropy, an objective: Mean entropy of the predictions"),
        ("AWD", "AWD, a transform of task vectors: adaptive weight disentanglement"),
        ("RankSchedule", "In a configuration: trainer.callbacks: {class_path: RankSchedule}"),
        ("CollapseGuard", "CollapseGuard, a callback: sees without labels when adaptation does harm"),
        ("Suite", "In a configuration: data: {class_path: Suite}"),
        ("OpenClipImageEncoder", "heads: str | ZeroShotHeads | ReleasedHeads"),
        ("Stage", "  granularity: 'tied' | 'task' | 'block' | 'layer' | 'direction' = 'layer'"),
        ("TSVM", "  scaling: float | 'entropy' | 'self_consistent' = 1.0"),
        ("rank_ratio", "--model.method.rank_ratio: float"),
        ("--model.svd", "--model.svd: an option of fit, export, sweep"),
        ("rest", "--rest: an option of export"),
    ],
)
def test_other_names(name: str, shown: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert shown in said(capsys, name)


def test_points_of_a_list_stand_in_lines_of_their_own(capsys: pytest.CaptureFixture[str]) -> None:
    points = [line for line in said(capsys, "CollapseGuard").splitlines() if line.startswith("- ")]
    assert [line.split("**")[1] for line in points] == ["balance", "churn", "entropy", "agreement"]


def test_all_of_them_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    shown = said(capsys)
    for name in (*public(MergeMethod), *public(Objective), "AWD", "RankSchedule", "ImageFolders", "Stage"):
        assert f"\n  {name} " in shown
    assert "_Trimming" not in shown
    assert "SquareImages" not in shown


@pytest.mark.parametrize(("name", "nearest"), [("CARTT", "CART"), ("Entropi", "Entropy"), ("rank_rato", "rank_ratio")])
def test_what_is_misspelt(name: str, nearest: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", name]) == 2
    assert f"nothing is called {name!r}; the nearest is {nearest};" in capsys.readouterr().err


def test_sections_of_a_docstring() -> None:
    text = (
        "Adds.\n\nIt adds two.\n\nArgs:\n    a, b: what is\n        added: both.\n    c: more.\n\nRaises:\n    X: no.\n"
    )
    shown = {"a": "what is added: both.", "b": "what is added: both.", "c": "more."}
    assert sections(text) == ("Adds.\n\nIt adds two.", shown)
