"""What makes two fits the same: everything that changes a bit of the coefficients that they end at."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import Checkpoint

from lit_merge.adaptation.merged_model import MergedModel
from lit_merge.adaptation.training_checkpoint import digest
from lit_merge.bank.task_bank import TaskBank
from lit_merge.checkpoints.locations import resolve
from lit_merge.data import TaskData
from lit_merge.experts.experts import Experts

TRAINER = (
    "max_steps",
    "max_epochs",
    "accumulate_grad_batches",
    "limit_train_batches",
    "gradient_clip_val",
    "precision",
)


def fit_plan(
    trainer: Trainer,
    model: MergedModel,
    start: TaskBank,
    data: TaskData,
    experts: Experts | None = None,
    ckpt_path: str | Path | None = None,
) -> dict[str, Any]:
    """name for people → value or digest, for JSON. `start` is the model's bank before the fit.

    Options that change no coefficient (bars, loggers, reading processes, the accelerator) are not in it.
    """
    return {
        "bank": start.fingerprint,
        "coefficients": digest([start.coefficients, *start.learnt.values()]),
        "heads": digest(list(model.network.heads.values())),
        "experts": None if experts is None else [experts.nbytes, experts.base is not None],
        **model.options.plan(),
        "data": data.fingerprint,
        "test data": hashlib.blake2b(json.dumps(data.identity("test"), default=str).encode()).hexdigest(),
        "batch size": data.batch_size,
        "data seed": data.seed,
        **{name: getattr(trainer, name) for name in TRAINER},
        "number of processes": trainer.world_size,
        "seed": os.environ.get("PL_GLOBAL_SEED"),
        "callbacks": sorted(one.state_key for one in trainer.callbacks if _changes_a_fit(one)),  # type: ignore[attr-defined]
        "checkpoint": None if ckpt_path is None else hashlib.blake2b(resolve(ckpt_path).read_bytes()).hexdigest(),
    }


def _changes_a_fit(callback: Callback) -> bool:
    """Those that name their options in `state_key`, as RankSchedule and EarlyStopping do."""
    return type(callback).state_key is not Callback.state_key and not isinstance(callback, Checkpoint)
