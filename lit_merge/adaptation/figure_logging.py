"""Pictures and distributions for the loggers that take them: TensorBoard, Weights & Biases, MLflow."""

from collections.abc import Iterable, Mapping
from typing import Any

from lightning.pytorch.loggers import Logger, MLFlowLogger, TensorBoardLogger, WandbLogger
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy import asarray
from torch import Tensor


def log_figure(loggers: Iterable[Logger], name: str, figure: Figure, step: int) -> None:
    """Hands a figure to every logger that has a place for pictures. It stays open."""
    for logger in loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.add_figure(name, figure, step, close=False)
        elif isinstance(logger, WandbLogger):
            canvas = FigureCanvasAgg(figure)
            canvas.draw()
            logger.log_image(name, [asarray(canvas.buffer_rgba())[..., :3]], step)
        elif isinstance(logger, MLFlowLogger):
            assert logger.run_id is not None
            # A file of its own for every step: MLflow's artifacts have none.
            logger.experiment.log_figure(logger.run_id, figure, f"{name}_{step:05d}.png")


def log_histograms(loggers: Iterable[Logger], name: str, values: Mapping[str, Tensor], step: int) -> None:
    """Hands a distribution of values for each task to every logger that draws those."""
    for logger in loggers:
        if isinstance(logger, TensorBoardLogger):
            for task, one in values.items():
                logger.experiment.add_histogram(f"{name}/{task}", one, step)
        elif isinstance(logger, WandbLogger):
            import wandb

            # Lightning's type knows numbers only; its logger hands whatever it gets to wandb.
            found: dict[str, Any] = {
                f"{name}_histogram/{task}": wandb.Histogram(one.tolist()) for task, one in values.items()
            }
            logger.log_metrics(found, step)
