"""Views of checkpoints: some weights, under other files' names."""

import pytest
import torch

from lit_merge import MergeError
from lit_merge.checkpoints import StateDict, named_like, without
from lit_merge.experts.experts import Experts

WEIGHTS = {"bert.a.weight": torch.arange(6.0).view(2, 3), "bert.LayerNorm.weight": torch.ones(3)}
SHAPES = StateDict(WEIGHTS).shapes


@pytest.mark.parametrize("added", ["", "bert."])
@pytest.mark.parametrize("old", [False, True])
def test_a_base_of_other_names(added: str, old: bool) -> None:
    names = {name: added + name.removeprefix("bert.") for name in WEIGHTS}
    if old:
        names = {name: other.replace("LayerNorm.weight", "LayerNorm.gamma") for name, other in names.items()}
    base = StateDict({names[name]: value for name, value in WEIGHTS.items()})
    view = named_like(base, SHAPES)
    assert (view is base) == (list(names.values()) == list(WEIGHTS))
    assert view.shapes == StateDict(WEIGHTS).shapes
    assert all(torch.equal(view.read(name), value) for name, value in WEIGHTS.items())
    # Experts that were saved without what comes before the names.
    bare = {name.removeprefix("bert."): value for name, value in WEIGHTS.items()}
    assert torch.equal(named_like(base, StateDict(bare).shapes).read("a.weight"), WEIGHTS["bert.a.weight"])


def test_other_weights_stay_as_they_are() -> None:
    base = StateDict({"bert.b.weight": torch.ones(2)})
    assert named_like(base, SHAPES) is base
    assert without(base, {"bert.a.weight"}) is base


@pytest.mark.parametrize(
    ("here", "there"), [("", "bert."), ("bert.", ""), ("model.", "base_model.model."), ("a.b.", "c.")]
)
def test_whatever_a_base_lacks_or_has_beside(here: str, there: str) -> None:
    """Experts with a head that the base has not, a base with a pooler that they have not."""
    inside = {f"encoder.layer.{i}.{k}.weight": torch.full((2, 2), float(i + k)) for i in range(12) for k in (1, 2)}
    experts = {here + name: value for name, value in inside.items()} | {"classifier.weight": torch.ones(3, 2)}
    base = StateDict({there + name: value for name, value in inside.items()} | {"pooler.weight": torch.ones(2, 2)})
    view = named_like(base, StateDict(experts).shapes)
    assert all(torch.equal(view.read(here + name), value) for name, value in inside.items())
    assert len(view.shapes) == len(inside) + 1


def test_blocks_of_other_numbers_are_others() -> None:
    blocks = {f"layers.{i}.mlp.weight": torch.full((2, 2), float(i)) for i in range(4)}
    base = StateDict({f"layers.{i + 1}.mlp.weight": value for i, value in enumerate(blocks.values())})
    assert named_like(base, StateDict(blocks).shapes) is base


def test_exclude() -> None:
    experts = {task: WEIGHTS | {"head.weight": torch.ones(n)} for task, n in {"x": 2, "y": 3}.items()}
    opened = Experts(experts, WEIGHTS, exclude=["head.*"])
    assert opened.shapes.keys() == WEIGHTS.keys()
    assert opened.whole["y"].shapes["head.weight"] == (3,)
    assert opened.nbytes == 2 * 9 * 4
    with pytest.raises(MergeError, match=r"what is each task's own, .* with exclude: \[head.weight\]"):
        Experts(experts)
    with pytest.raises(MergeError, match=r"'heads.\*' matches no weight of the experts; the nearest is head"):
        Experts(experts, exclude=["heads.*"])
    with pytest.raises(MergeError, match=r"exclude=\['\*'\] leaves no weight of expert x to merge"):
        Experts(experts, exclude=["*"])
