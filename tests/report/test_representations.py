"""What prints: a few readable lines, whatever the size of what is printed."""

from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from lit_merge import CART, Experts, TaskBank, build_bank
from lit_merge.report.scores import Scores, TaskScore


class Cells(HTMLParser):
    """The texts of a table's cells."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.feed(text)

    def handle_data(self, data: str) -> None:
        self.found.append(data)


def test_banks_experts_data_and_scores(tiny: Any, tmp_path: Path) -> None:
    experts = Experts(tiny.experts, tiny.base)
    bank = build_bank(experts, method=CART(rank_ratio=0.5, scaling=1.5))
    bank.save(tmp_path / "bank")
    assert repr(TaskBank.load(tmp_path / "bank")) == repr(bank)
    scores = Scores(alpha=TaskScore(0.5, 1.25, 10), beta=TaskScore(1.0, 0.25, 30))
    shown = {
        "bank": (bank, ["CART(rank_ratio=0.5, scaling=1.5, matrices=block), 3 tasks (alpha, beta, gamma)"]),
        "deltas": (bank.low_rank(next(iter(bank.ranks))), ["3 matrices of", "rank 16"]),
        "origin": (TaskBank.load(tmp_path / "bank").origin, ["values, made when they are asked for"]),
        "experts": (experts, ["3 tasks (alpha, beta, gamma)", "base.safetensors"]),
        "data": (tiny.data(), ["Suite: 3 tasks (alpha, beta, gamma)"]),
        "scores": (scores, ["alpha   50.0 %  1.250 nats  10 images", "mean    75.0 %  0.750 nats  40 images"]),
    }
    for name, (one, texts) in shown.items():
        text = repr(one)
        assert len(text) < 400, name
        assert text.count("\n") < 8
        for part in texts:
            assert part in text, (name, text)
    assert Cells(bank._repr_html_()).found[-4:] == ["gamma", "1.5", "1.5", "1.5"]
    assert Cells(scores._repr_html_()).found[-4:] == ["mean", "75.0", "0.750", "40"]
    assert Cells(experts._repr_html_()).found[-3] == "gamma"
    odd = Scores({"<b>&": TaskScore(0.0, 0.0, 1)})
    assert "<b>" not in odd._repr_html_()


def test_a_bank_says_what_it_was_made_of(tiny: Any, tmp_path: Path) -> None:
    bank = build_bank(tiny.experts, tiny.base, method=CART(rank_ratio=0.5))
    bank.save(tmp_path / "bank")
    recipe: Any = TaskBank.load(tmp_path / "bank").recipe
    assert recipe == bank.recipe
    assert {task: one["file"] for task, one in recipe["inputs"].items()} == {
        task: f"{task}.safetensors" for task in bank.tasks
    }
    digests = {one["digest"] for one in (*recipe["inputs"].values(), recipe["base"])}
    assert len(digests) == 4
    assert all(len(digest) == 32 for digest in digests)
