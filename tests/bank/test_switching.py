"""Live modules that move between the tasks of a bank: to the bit what the bank answers, in place."""

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from lit_merge import CART, MergeError, TaskArithmetic, TaskBank, build_bank
from lit_merge.checkpoints.input_file import InputFile


class Tied(nn.Module):
    """An embedding whose matrix is the last layer's too, a matrix, and a buffer that files do not hold."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(6, 4)
        self.inner = nn.Linear(4, 4)
        self.last = nn.Linear(4, 6, bias=False)
        self.last.weight = self.embed.weight
        self.register_buffer("mask", torch.ones(4), persistent=False)


def experts_of(model: nn.Module, *dropped: str) -> dict[str, dict[str, Tensor]]:
    """Three state dicts, the model's with noise; tied weights stay equal."""
    found = {}
    for task in ("a", "b", "c"):
        moved = copy.deepcopy(model)
        for value in moved.parameters():
            value.data += 0.1 * torch.randn_like(value)
        found[task] = {name: value for name, value in moved.state_dict().items() if name not in dropped}
    return found


def equal(module: nn.Module, weights: dict[str, Tensor]) -> bool:
    state = module.state_dict()
    return all(torch.equal(state[name], value.to(state[name].dtype)) for name, value in weights.items())


@pytest.fixture
def bank() -> TaskBank:
    torch.manual_seed(0)
    return build_bank(experts_of(Tied()), method=CART(rank_ratio=0.5, scaling=1.5, matrices="all"))


def test_many_switches_leave_the_weights_equal_to_the_bit(bank: TaskBank, tmp_path: Path) -> None:
    bank.save(tmp_path / "bank")
    loaded, module = TaskBank.load(tmp_path / "bank"), Tied()
    tasks = (*bank.tasks, None)
    wanted = {task: bank.merge() if task is None else bank.expert(task) for task in tasks}
    places = {name: value.data_ptr() for name, value in module.named_parameters()}
    order = torch.randint(len(tasks), (60,)).tolist()
    for step, i in enumerate(order):
        (loaded if step % 4 == 0 else bank).switch_(module, tasks[i])
        if step % 10 == 0:
            assert equal(module, wanted[tasks[i]])
    for task in tasks:
        assert equal(loaded.switch_(module, task), wanted[task])
        assert module.last.weight is module.embed.weight
    assert {name: value.data_ptr() for name, value in module.named_parameters()} == places


def test_inside_and_after(bank: TaskBank) -> None:
    module = Tied()
    with bank.switched(module, "a"), bank.switched(module, "b", after="a") as inner:
        assert inner is module
        assert equal(module, bank.expert("b"))
        with pytest.raises(RuntimeError), bank.switched(module, "c", after="b"):
            raise RuntimeError
        assert equal(module, bank.expert("b"))
    assert equal(module, bank.merge())
    before = copy.deepcopy(module.state_dict())
    copied = bank.module("c", module)
    assert equal(copied, bank.expert("c"))
    assert equal(module, before)
    assert copied.last.weight is copied.embed.weight
    # A module in another precision gets the values rounded once.
    assert equal(bank.switch_(module.half(), "c"), bank.expert("c"))


def test_one_name_of_a_tied_weight_is_enough() -> None:
    model = Tied()
    bank = build_bank(experts_of(model, "last.weight"), method=CART(rank_ratio=0.5, matrices="all"))
    assert torch.equal(bank.switch_(model, "b").last.weight, bank.expert("b")["embed.weight"])


def test_modules_that_do_not_fit_stay_as_they_are(bank: TaskBank) -> None:
    class Larger(Tied):
        def __init__(self, width: int = 4) -> None:
            super().__init__()
            self.inner = nn.Linear(width, width)
            self.head = nn.Linear(4, 2)

    apart = Tied()
    apart.last = nn.Linear(4, 6, bias=False)
    nowhere = Tied()
    del nowhere.inner
    differ = replace(bank, origin=dict(bank.origin) | {"last.weight": bank.origin["last.weight"] + 1})
    for module, source, said in (
        (nowhere, bank, "Tied has no weight inner.bias, which the bank has: it is another architecture"),
        (Larger(5), bank, r"Larger: inner.weight has shape \[5, 5\], in the bank \[4, 4\]: it is another"),
        (Larger(), bank, r"Larger has head.bias, which the bank lacks \(2 such in all\): with strict=False they stay"),
        (Tied().to("meta"), bank, "on the device meta"),
        (Tied(), differ, "embed.weight and last.weight are one weight in Tied, and two in the bank, which differ"),
    ):
        before = copy.deepcopy(module.state_dict())
        with pytest.raises(MergeError, match=said):
            source.switch_(module, "a")
        assert before.keys() == module.state_dict().keys()
        assert said.endswith("meta") or equal(module, before)
    with pytest.raises(MergeError, match="no task 'd'"):
        bank.switch_(Tied(), "d")
    with_head = Larger()
    head = with_head.head.weight.clone()
    assert equal(bank.switch_(with_head, "a", strict=False), bank.expert("a"))
    assert torch.equal(with_head.head.weight, head)
    assert equal(bank.switch_(apart, "a"), bank.expert("a"))  # untied in the module


def test_names_of_files_and_canonical_ones(tiny: Any, tmp_path: Path) -> None:
    bank = build_bank(tiny.experts, tiny.base, method=TaskArithmetic())
    network = tiny.encoder()
    tower = network.encoder.to_empty(device="cpu")
    assert equal(bank.switch_(tower, "beta", strict=False), bank.expert("beta"))

    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.visual = tower

    renamed = {t: {f"visual.{n}": v for n, v in load_file(path).items()} for t, path in tiny.experts.items()}
    other = build_bank(renamed, method=CART(rank_ratio=0.5))
    for module in (Wrapped(), tower):
        other.switch_(module, "alpha", strict=False)
        assert equal(tower, other.expert("alpha", naming="canonical"))


def test_an_expert_reads_its_own_slices_only(tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    values = InputFile.read_into
    monkeypatch.setattr(InputFile, "read_into", lambda *args: (sizes.append(args[2].nbytes), values(*args))[1])
    for method in (TaskArithmetic(), CART(rank_ratio=0.5)):
        bank = build_bank(tiny.experts, tiny.base, method=method)
        bank.save(tmp_path / type(method).__name__)
        loaded = TaskBank.load(tmp_path / type(method).__name__)
        sizes.clear()
        found = loaded.expert("beta")
        origin, deltas = (sum(value.nbytes for value in part.values()) for part in (bank.origin, bank.deltas))
        # In tests, the types of functions are checked by a first value, which is read once more.
        assert sum(sizes) <= 1.05 * (origin + deltas / 3)
        assert all(torch.equal(value, found[name]) for name, value in bank.expert("beta").items())
        cut = loaded.truncate(rank_ratio=0.25).expert("beta")
        assert all(torch.equal(value, cut[name]) for name, value in bank.truncate(0.25).expert("beta").items())
