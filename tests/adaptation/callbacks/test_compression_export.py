"""CompressionExport: the adapted bank on disk when a fit ends."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lit_merge import CompressionExport, MergedModel, MergeError, Stage, TaskBank
from lit_merge.adaptation.trainer import Trainer

Make = Callable[..., MergedModel]
MakeTrainer = Callable[..., Trainer]


def test_uncompressed_bank_predicts_what_the_model_does(
    make_model: Make, make_trainer: MakeTrainer, tiny: Any, tmp_path: Path
) -> None:
    model = make_model(stages=(Stage("layer", 3, 0.05),))
    make_trainer(max_steps=3, callbacks=[CompressionExport(str(tmp_path / "bank"))]).fit(model, datamodule=tiny.data())
    loaded = TaskBank.load(tmp_path / "bank")
    assert torch.equal(loaded.coefficients, model.coefficients())
    loaded_merged = loaded.merge(dtype=torch.float32)
    for name, value in model.merged_weights().items():
        assert torch.equal(loaded_merged[name], value)
    again = MergedModel(loaded, tiny.encoder())
    for one in (model, again):
        make_trainer().test(one, datamodule=tiny.data(), verbose=False)
    assert again.scores == model.scores


def test_compressed(make_model: Make, make_trainer: MakeTrainer, tiny: Any, tmp_path: Path) -> None:
    exports = [
        CompressionExport(str(tmp_path / "full")),
        CompressionExport(str(tmp_path / "small"), rank_ratio=0.1, dtype="float16"),
    ]
    make_trainer(max_steps=2, callbacks=exports).fit(make_model(), datamodule=tiny.data())
    full, small = TaskBank.load(tmp_path / "full"), TaskBank.load(tmp_path / "small")
    assert set(small.ranks.values()) == {3}
    assert small.nbytes < 0.6 * full.nbytes
    assert torch.equal(small.coefficients, full.coefficients)


def test_refuses_before_the_fit(make_model: Make, make_trainer: MakeTrainer, tiny: Any, tmp_path: Path) -> None:
    (tmp_path / "there").touch()
    model = make_model()
    before = model.coefficients().detach().clone()
    with pytest.raises(MergeError, match="set overwrite of CompressionExport"):
        make_trainer(max_steps=2, callbacks=[CompressionExport(str(tmp_path / "there"))]).fit(
            model, datamodule=tiny.data()
        )
    assert torch.equal(model.coefficients(), before)
    with pytest.raises(MergeError, match="outside"):
        CompressionExport("anywhere", rank_ratio=1.5)
