"""The logs of a run: they grow where a kill leaves them, and get their places when the run is whole."""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from torch import Tensor

from lit_merge.adaptation.callbacks import CoefficientLog
from lit_merge.adaptation.callbacks.coefficient_log import COEFFICIENTS
from lit_merge.adaptation.trainer import Trainer
from lit_merge.adaptation.unfinished_fit import UnfinishedFit
from lit_merge.checkpoints import check_output, write_text
from lit_merge.checkpoints.json_text import sealed
from lit_merge.checkpoints.locations import destination
from lit_merge.errors import MergeError


class LineLog(Logger):
    """Appends every call as a line of JSON with a digest, in one piece. None is written again, so that a kill costs
    none.

    Args:
        path: of the file.
    """

    name = "lines"
    version = "0"

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path

    @property
    def save_dir(self) -> str:
        return str(self.path.parent)

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        values = {name: value.item() if isinstance(value, Tensor) else value for name, value in metrics.items()}
        self.path.parent.mkdir(exist_ok=True)
        file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        try:
            os.write(file, (sealed(values | {"step": step or 0}) + "\n").encode())
        except OSError as error:
            raise MergeError(f"{self.path} could not be written: {error.strerror}") from error
        finally:
            os.close(file)

    def log_hyperparams(self, *_: Any, **__: Any) -> None:
        """A run's config.yaml has them."""


def log_into(trainer: Trainer, output: str | Path, unfinished: UnfinishedFit) -> None:
    """Logs what a run's own log is made of, and the coefficients. Loggers that name a place in the run's folder write
    next to it until it is whole, and those that number their folders keep the number of the first attempt.

    Args:
        trainer: whose loggers and callbacks are set up.
        output: the run's folder.
        unfinished: where all grows.

    Raises:
        MergeError: another kind of logger, or checkpoints, with a place in `output`; a folder for coefficients that
            exists.
    """
    for callback in trainer.callbacks:
        # Lightning's ModelCheckpoint, which writes while the fit runs.
        place = getattr(callback, "dirpath", None)
        if place is not None and Path(place).absolute().is_relative_to(destination(output).absolute()):
            raise MergeError(
                f"{type(callback).__name__} writes to {place}, in the folder that the run replaces: choose another"
            )
    loggers = list(trainer.loggers)
    for logger in loggers:
        _move(logger, destination(output).absolute(), unfinished.inside)
    if unfinished.first:
        _keep_numbers(loggers, unfinished)
    trainer.loggers = [*loggers, LineLog(unfinished.log)]
    if not any(isinstance(callback, CoefficientLog) for callback in trainer.callbacks):
        # Before checkpoints, which Lightning wants last.
        trainer.callbacks.insert(0, CoefficientLog())
    for log, folder in _coefficient_logs(trainer, unfinished):
        log.run_folder, log.goes_on = folder, unfinished.step is not None
        if log.folder is not None and unfinished.first and not unfinished.owns(log.folder):
            check_output(log.folder, log.overwrite, COEFFICIENTS)


def put_logs(trainer: Trainer, folder: Path, unfinished: UnfinishedFit) -> None:
    """Puts the logs of a fit that is over into their places: in the run's `folder`, and elsewhere."""
    csv, own = unfinished.whole_log(), True
    for logger in trainer.loggers:
        own = own and isinstance(logger, LineLog)
        if isinstance(logger, CSVLogger):
            # It has what was logged since the last kill.
            write_text(Path(logger.log_dir) / "metrics.csv", csv, overwrite=True)
    if own:
        write_text(folder / "log" / "metrics.csv", csv)
    if unfinished.inside.is_dir():
        shutil.copytree(unfinished.inside, folder, dirs_exist_ok=True)
    for log, kept in _coefficient_logs(trainer, unfinished):
        if not kept.is_dir():
            continue
        log.check_kept()
        if log.folder is None:
            shutil.copytree(kept, folder / "coefficients", dirs_exist_ok=True)
        else:
            with unfinished.putting(log.folder, log.overwrite, COEFFICIENTS) as draft:
                shutil.copytree(kept, draft)


def _coefficient_logs(trainer: Trainer, unfinished: UnfinishedFit) -> list[tuple[CoefficientLog, Path]]:
    """Those of the trainer, and where each writes until the run is whole."""
    logs = [callback for callback in trainer.callbacks if isinstance(callback, CoefficientLog)]
    return [(log, unfinished.coefficients / str(i)) for i, log in enumerate(logs)]


def _keep_numbers(loggers: list[Logger], unfinished: UnfinishedFit) -> None:
    numbered = [logger for logger in loggers if isinstance(logger, CSVLogger | TensorBoardLogger)]
    known = unfinished.read("loggers.json")
    if known is None:
        known = {str(i): logger.version for i, logger in enumerate(numbered)}
        unfinished.write("loggers.json", known)
    for i, logger in enumerate(numbered):
        logger._version = known.get(str(i), logger.version)
        if isinstance(logger, CSVLogger) and unfinished.goes_on_now:
            # Lightning warns of what it finds there.
            for name in ("metrics.csv", "hparams.yaml"):
                Path(logger.log_dir, name).unlink(missing_ok=True)


def _move(logger: Logger, output: Path, inside: Path) -> None:
    if isinstance(logger, CSVLogger):
        # Of Lightning's loggers this one makes a folder called ~.
        logger._root_dir = logger._save_dir = str(destination(logger._save_dir))
    if logger.save_dir is None or not (place := Path(logger.save_dir).absolute()).is_relative_to(output):
        return
    if not isinstance(logger, CSVLogger | TensorBoardLogger):
        raise MergeError(
            f"{type(logger).__name__} writes to {logger.save_dir}, in the folder that the run replaces: choose another"
        )
    # Lightning takes the place at construction only, when this folder is not there yet.
    logger._root_dir = str(inside / place.relative_to(output))
    if isinstance(logger, CSVLogger):
        logger._save_dir = logger._root_dir
