"""Views of checkpoints: some weights, under other files' names."""

import pytest
import torch

from lit_merge import MergeError
from lit_merge.checkpoints import StateDict, named_like, without
from lit_merge.experts import Experts

WEIGHTS = {"bert.a.weight": torch.arange(6.0).view(2, 3), "bert.LayerNorm.weight": torch.ones(3)}


@pytest.mark.parametrize("added", ["", "bert."])
@pytest.mark.parametrize("old", [False, True])
def test_a_base_of_other_names(added: str, old: bool) -> None:
    names = {name: added + name.removeprefix("bert.") for name in WEIGHTS}
    if old:
        names = {name: other.replace("LayerNorm.weight", "LayerNorm.gamma") for name, other in names.items()}
    base = StateDict({names[name]: value for name, value in WEIGHTS.items()})
    view = named_like(base, WEIGHTS)
    assert (view is base) == (list(names.values()) == list(WEIGHTS))
    assert view.shapes == StateDict(WEIGHTS).shapes
    assert all(torch.equal(view.read(name), value) for name, value in WEIGHTS.items())
    # Experts that were saved without what comes before the names.
    bare = {name.removeprefix("bert."): value for name, value in WEIGHTS.items()}
    assert torch.equal(named_like(base, bare).read("a.weight"), WEIGHTS["bert.a.weight"])


def test_other_weights_stay_as_they_are() -> None:
    base = StateDict({"bert.b.weight": torch.ones(2)})
    assert named_like(base, WEIGHTS) is base
    assert without(base, {"bert.a.weight"}) is base


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
