"""CompressionExport: the adapted task bank, compressed, at the end of a fit."""

from lightning.pytorch import Callback, LightningModule, Trainer

from lit_merge.checkpoints import check_output
from lit_merge.errors import MergeError
from lit_merge.export import DType, compress
from lit_merge.merged_model import MergedModel
from lit_merge.task_bank import check_rank_ratio


class CompressionExport(Callback):
    """Writes the bank with its adapted coefficients when a fit ends.

    Args:
        path: folder of the bank.
        rank_ratio: cut every matrix to this share of min(m, n); None keeps the active rank.
        dtype: precision of the stored factors; None keeps the bank's.
        overwrite: replace what stands there.

    Raises:
        MergeError: a ratio outside (0, 1]; before the fit starts: a path that exists or cannot be written.
    """

    def __init__(
        self,
        path: str,
        rank_ratio: float | None = None,
        dtype: DType | None = None,
        overwrite: bool = False,
    ) -> None:
        if rank_ratio is not None:
            check_rank_ratio(rank_ratio)
        self.path, self.rank_ratio, self.dtype, self.overwrite = path, rank_ratio, dtype, overwrite

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not isinstance(pl_module, MergedModel):
            raise MergeError(f"CompressionExport works on a MergedModel, not on {type(pl_module).__name__}")
        check_output(self.path, self.overwrite)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, MergedModel)
        if trainer.is_global_zero and not trainer.interrupted:
            compress(pl_module.to_bank(), self.rank_ratio, self.dtype).save(self.path, self.overwrite)
