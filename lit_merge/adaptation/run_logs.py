"""Where the logs of a run go: into its folder, which has another name until the run is whole."""

from pathlib import Path

from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger

from lit_merge.adaptation.callbacks import CoefficientLog
from lit_merge.adaptation.trainer import Trainer
from lit_merge.checkpoints.locations import destination
from lit_merge.errors import MergeError


def log_into(trainer: Trainer, output: str | Path, folder: Path, kept: Path) -> None:
    """Takes the loggers that name a place in the run's folder there, and logs the coefficients.

    Args:
        trainer: whose loggers and callbacks are set up.
        output: the run's folder.
        folder: the same as long as it is being written. Loggers that name a place in `output` write into this.
        kept: a folder that outlives a kill, where the log of the coefficients grows.

    Raises:
        MergeError: another kind of logger with a place in `output`.
    """
    for logger in trainer.loggers:
        _move(logger, destination(output).absolute(), folder)
    logs = [callback for callback in trainer.callbacks if isinstance(callback, CoefficientLog)]
    if not logs:
        logs = [CoefficientLog()]
        # Before checkpoints, which Lightning wants last.
        trainer.callbacks[:0] = logs
    for log in logs:
        log.run_folder = kept


def _move(logger: Logger, output: Path, folder: Path) -> None:
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
    logger._root_dir = str(folder / place.relative_to(output))
    if isinstance(logger, CSVLogger):
        logger._save_dir = logger._root_dir
