"""Groups, offsets and bounds of the coefficients."""

import pytest
import torch

from lit_merge import Coefficients, MergeError

LAYERS = ["conv1.weight", "blocks.0.a", "blocks.0.b", "blocks.1.a", "proj"]
START = torch.arange(10.0).view(2, 5)


@pytest.mark.parametrize(("granularity", "groups"), [("tied", 1), ("task", 2), ("block", 6), ("layer", 10)])
def test_number_of_free_parameters(granularity: str, groups: int) -> None:
    coefficients = Coefficients(START, LAYERS, granularity)  # type: ignore[arg-type]
    torch.testing.assert_close(coefficients(), START)
    jacobian = torch.autograd.functional.jacobian(
        lambda offset: torch.func.functional_call(coefficients, {"offset": offset}), coefficients.offset.detach()
    )
    assert torch.linalg.matrix_rank(jacobian.flatten(0, 1)) == groups
    assert (jacobian.flatten(0, 1).sum(1) == 1).all()


def test_blocks_are_a_tasks_weights_of_one_number() -> None:
    group = Coefficients(START, LAYERS, "block").group
    assert group[0, 1] == group[0, 2] != group[0, 3]
    assert group[0, 0] == group[0, 4]
    assert not set(group[0].tolist()) & set(group[1].tolist())


def test_changing_the_granularity_keeps_the_values() -> None:
    coefficients = Coefficients(START, LAYERS, "tied")
    with torch.no_grad():
        coefficients.offset[0] = 0.5
    for granularity in ("layer", "task", "block", "tied"):
        coefficients.set_granularity(granularity)  # type: ignore[arg-type]
        torch.testing.assert_close(coefficients(), START + 0.5)
        assert not coefficients.offset.any()


def test_bounds_clamp_and_stop_the_gradient_outside() -> None:
    coefficients = Coefficients(torch.tensor([[-0.5, 0.0, 0.5, 1.0, 1.5]]), LAYERS, "layer", (0.0, 1.0))
    values = coefficients()
    assert values.tolist() == [[0.0, 0.0, 0.5, 1.0, 1.0]]
    values.sum().backward()
    assert coefficients.offset.grad is not None
    assert coefficients.offset.grad.tolist() == [0.0, 1.0, 1.0, 1.0, 0.0]


def test_mistakes() -> None:
    with pytest.raises(MergeError, match="lower"):
        Coefficients(START, LAYERS, "tied", (1.0, 0.0))


def test_directions() -> None:
    directions = {LAYERS[1]: torch.arange(6.0).view(2, 3)}
    coefficients = Coefficients(START, LAYERS, "layer", directions=directions)
    expected = START.clone()
    expected[:, 1] = directions[LAYERS[1]].mean(1)
    torch.testing.assert_close(coefficients(), expected)
    groups = {"tied": 1, "task": 2, "block": 6, "layer": 10, "direction": 14}
    for granularity, free in groups.items():
        coefficients.set_granularity(granularity, relative=granularity == "direction")  # type: ignore[arg-type]
        assert len(coefficients.group.unique()) == free
        torch.testing.assert_close(coefficients.by_direction(coefficients.values())[LAYERS[1]], directions[LAYERS[1]])
    # In units of the mean of all coefficients.
    with torch.no_grad():
        coefficients.offset[: coefficients.offset.numel()] = 1.0
    mean = torch.cat([START[:, :1], directions[LAYERS[1]], START[:, 2:]], dim=1).abs().mean()
    torch.testing.assert_close(
        coefficients.by_direction(coefficients.values())[LAYERS[1]], directions[LAYERS[1]] + mean
    )
    with pytest.raises(MergeError, match="no low-rank deltas"):
        Coefficients(START, LAYERS, "direction")
