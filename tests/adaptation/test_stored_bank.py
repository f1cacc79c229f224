"""A bank that stays on the CPU while its model computes elsewhere, or in its file."""

import pickle
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lit_merge import AdaRank, MergedModel, Stage, TaskArithmetic, TaskBank
from lit_merge.adaptation import stored_bank
from lit_merge.adaptation.callbacks import RankSchedule
from lit_merge.adaptation.stored_bank import StoredBank
from lit_merge.bank.files import BankFile
from lit_merge.objectives import ExpertAgreement

Make = Callable[..., MergedModel]


@pytest.mark.parametrize(
    "options", [{}, {"method": TaskArithmetic(0.3), "objective": ExpertAgreement()}, {"ranks": AdaRank(0.3)}]
)
def test_a_fit_from_a_streamed_bank_is_the_same(
    options: dict[str, Any], make_model: Make, make_trainer: Any, tiny: Any
) -> None:
    ends = []
    for place in ("auto", "cpu"):
        model = make_model(**options, bank_device=place, stages=[Stage("layer", 3, 0.01)], microbatch="task")
        make_trainer(max_steps=3).fit(model, datamodule=tiny.data())
        ends.append(model.to_bank())
        names = [name for name, _ in model.named_parameters() if name.startswith("stored.")]
        assert bool(names) is (place == "auto")
    assert torch.equal(ends[0].coefficients, ends[1].coefficients)
    assert all(torch.equal(one, ends[1].tensors()[name]) for name, one in ends[0].tensors().items())


def test_a_model_moves_without_its_streamed_bank(make_model: Make) -> None:
    model = make_model(bank_device="cpu", ranks=AdaRank(0.3)).to("meta")
    weights = model.bank.merge(model.coefficients(), None, model.masks())
    assert all(value.is_meta for value in weights.values())
    assert not any(value.is_meta for value in (*model.bank.origin.values(), model.bank.deltas["conv1.weight"]))
    assert all(value.is_meta for value in model.expert_weights("beta").values())
    torch.stack([value.sum() for value in weights.values()]).sum().backward()
    assert model.coefficients.offset.grad.is_meta
    assert all(value.is_meta for value in make_model().to("meta").bank.origin.values())


def test_what_does_not_fit_stays(make_model: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    bank = make_model().to_bank()
    stored, meta = StoredBank(bank), torch.device("meta")
    stored.settle(meta)
    assert list(stored.parameters())
    monkeypatch.setattr(stored_bank, "fits", lambda nbytes, device: nbytes < bank.nbytes)
    stored.settle(torch.device("cpu"))
    assert list(stored.parameters())
    stored.settle(meta)
    assert not list(stored.parameters())
    found = stored.open(torch.device("cpu"))
    assert all(torch.equal(one, found.tensors()[name]) for name, one in bank.tensors().items())


@pytest.mark.parametrize(
    "options", [{}, {"method": TaskArithmetic(0.3), "objective": ExpertAgreement()}, {"ranks": AdaRank(0.3)}]
)
def test_a_fit_from_a_file_is_the_same(
    options: dict[str, Any],
    make_model: Make,
    make_trainer: Any,
    tiny: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(stored_bank, "SMALL", 0)
    options |= {"stages": [Stage("layer", 3, 0.01)], "microbatch": "task"}
    method = options.pop("method", None)
    in_memory = make_model(method=method, **options)
    bank = in_memory.to_bank()
    bank.save(tmp_path / "bank")
    in_file = MergedModel(TaskBank.load(tmp_path / "bank"), tiny.encoder(), **options)
    assert not [name for name, _ in in_file.named_parameters() if name.startswith("stored.")]
    ends = []
    for model in (in_memory, in_file):
        callbacks = [] if "ranks" in options or method else [RankSchedule({0: 0.2, 2: 0.4})]
        make_trainer(max_steps=3, callbacks=callbacks).fit(model, datamodule=tiny.data())
        ends.append(model.to_bank())
    assert not torch.equal(ends[0].coefficients, bank.coefficients)
    assert ends[0].ranks == ends[1].ranks
    assert all(torch.equal(one, ends[1].tensors()[name]) for name, one in ends[0].tensors().items())
    ends[1].save(tmp_path / "bank", overwrite=True)
    again, gone = TaskBank.load(tmp_path / "bank").merge(), ends[1].merge()
    for name, value in ends[0].merge().items():
        assert torch.equal(again[name], value)
        assert torch.equal(gone[name], value), "the file that was opened is there no more"


def test_a_bank_in_a_file_moves_where_it_fits(
    make_model: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    make_model().to_bank().save(tmp_path / "bank")
    assert list(StoredBank(TaskBank.load(tmp_path / "bank")).parameters())
    monkeypatch.setattr(stored_bank, "SMALL", 0)
    stored, meta = StoredBank(TaskBank.load(tmp_path / "bank")), torch.device("meta")
    assert not list(stored.parameters())
    for _ in range(2):
        stored.settle(meta)
        assert all(value.is_meta for value in stored.to(meta).open(meta).tensors().values())
    monkeypatch.setattr(stored_bank, "fits", lambda nbytes, device: False)
    stored.settle(meta)
    assert not any(v.is_meta for name, v in stored.open(meta).tensors().items() if name != "coefficients")


@pytest.mark.parametrize("method", [None, TaskArithmetic(0.3)])
def test_a_graph_holds_nothing_of_a_file(
    method: Any, make_model: Make, tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stored_bank, "SMALL", 0)
    read, given = BankFile.read, []

    def watched(file: BankFile, name: str) -> Tensor:
        values = read(file, name).numpy().copy()
        given.append(weakref.ref(values))
        return torch.from_numpy(values)

    path = tmp_path / "bank"
    make_model(method=method).to_bank().save(path)
    monkeypatch.setattr(BankFile, "read", watched)
    model = MergedModel(TaskBank.load(path), tiny.encoder())
    given.clear()
    weights = model.merged_weights()
    held = sum(one() is not None for one in given)
    whole = sum(not value.requires_grad for value in weights.values())
    assert held == whole < len(given), "weights that are the pretrained ones are in memory, and nothing else"
    torch.stack([value.square().sum() for value in weights.values() if value.requires_grad]).sum().backward()
    again = MergedModel(pickle.loads(pickle.dumps(TaskBank.load(path))), tiny.encoder())
    torch.stack([v.square().sum() for v in again.merged_weights().values() if v.requires_grad]).sum().backward()
    assert torch.equal(model.coefficients.offset.grad, again.coefficients.offset.grad)
    assert model.coefficients.offset.grad.abs().sum() > 0
