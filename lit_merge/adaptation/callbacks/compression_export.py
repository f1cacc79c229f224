"""CompressionExport: the adapted task bank, compressed, at the end of a fit."""

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from lightning.pytorch import Callback, LightningModule, Trainer

from lit_merge.adaptation.merged_model import MergedModel
from lit_merge.bank.files import BANK
from lit_merge.bank.low_rank import check_energy, check_rank_ratio
from lit_merge.checkpoints import check_output
from lit_merge.checkpoints.kinds import Kind
from lit_merge.errors import MergeError
from lit_merge.merge.export import DType, compress


class Outputs(Protocol):
    """Of `UnfinishedFit`, what a callback needs that writes outside of the run's folder."""

    def owns(self, path: str | Path) -> bool: ...

    def putting(
        self, path: str | Path, overwrite: bool = False, kind: Kind | None = None
    ) -> AbstractContextManager[Path]: ...


class CompressionExport(Callback):
    """Writes the bank with its adapted coefficients when a fit ends.

    Args:
        path: folder of the bank.
        rank_ratio: cut every matrix to this share of min(m, n).
        energy: cut every matrix to as many directions as keep this share of its squared singular values.
        dtype: precision of the stored factors; None keeps the bank's.
        overwrite: replace what stands there.

    Raises:
        MergeError: a share outside (0, 1]; before the fit starts: a path that exists or cannot be written.
    """

    def __init__(
        self,
        path: str,
        rank_ratio: float = 1.0,
        energy: float = 1.0,
        dtype: DType | None = None,
        overwrite: bool = False,
    ) -> None:
        self.path, self.dtype, self.overwrite = path, dtype, overwrite
        self.rank_ratio, self.energy = check_rank_ratio(rank_ratio), check_energy(energy)
        self.outputs: Outputs | None = None
        """Set by a run, which knows what it has written before a kill."""

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not isinstance(pl_module, MergedModel):
            raise MergeError(f"CompressionExport works on a MergedModel, not on {type(pl_module).__name__}")
        if sum(isinstance(one, CompressionExport) and one.path == self.path for one in trainer.callbacks) > 1:  # type: ignore[attr-defined]
            raise MergeError(f"two CompressionExports write to {self.path}: give each a path of its own")
        if self.outputs is None or not self.outputs.owns(self.path):
            check_output(self.path, self.overwrite, BANK, how="set overwrite of CompressionExport")

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, MergedModel)
        if not trainer.is_global_zero or trainer.interrupted:
            return
        bank = compress(pl_module.to_bank(), self.rank_ratio, self.energy, self.dtype)
        if self.outputs is None:
            bank.save(self.path, self.overwrite)
        else:
            with self.outputs.putting(self.path, self.overwrite, BANK) as draft:
                bank.save(draft)
