"""A Trainer with the verbs that Lightning has not."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager

import lightning.pytorch as pl

from lit_merge.checkpoints import write_safetensors
from lit_merge.export import DType, Format, export_bank
from lit_merge.merged_model import MergedModel


class Trainer(pl.Trainer):
    """Lightning's Trainer, and `merge` and `export`."""

    def merge(self, model: MergedModel, output: str, overwrite: bool = False) -> None:
        """Writes the merge at the bank's coefficients as one safetensors file; nothing is trained.

        Args:
            model: what to merge.
            output: a .safetensors file.
            overwrite: replace what stands there.
        """
        if self.is_global_zero:
            write_safetensors(output, model.to_bank().merge(), {"format": "pt", "lit_merge": "merged"}, overwrite)

    def export(
        self,
        model: MergedModel,
        output: str,
        format: Format = "bank",
        task: str | None = None,
        rank_ratio: float | None = None,
        dtype: DType | None = None,
        overwrite: bool = False,
    ) -> None:
        """Writes the bank, the merged weights, or one task's weights.

        Args:
            model: whose bank is exported.
            output: a folder for `bank`, a .safetensors file for `merged` and `task`.
            format: `bank` (compressed, all tasks), `merged` (one model), or `task` (one task's model from the bank).
            task: which task, for `task`.
            rank_ratio: cut every matrix to this share of min(m, n) first.
            dtype: precision of what is written; the bank's own by default.
            overwrite: replace what stands there.
        """
        if self.is_global_zero:
            export_bank(model.to_bank(), output, format, task, rank_ratio, dtype, overwrite)


@contextmanager
def passing_interrupts() -> Iterator[None]:
    """Around Lightning's verbs: Ctrl-C stays a KeyboardInterrupt. Lightning makes it an exit with code 1 and without a
    word, and ignores every later one."""
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit as error:
        if isinstance(error.__context__, KeyboardInterrupt):
            signal.signal(signal.SIGINT, handler)
            raise KeyboardInterrupt from error
        raise
