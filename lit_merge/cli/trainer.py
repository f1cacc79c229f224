"""A Trainer with the verbs that Lightning has not."""

import torch

import lit_merge.adaptation.trainer as adaptation
from lit_merge.adaptation.merged_model import MergedModel
from lit_merge.checkpoints import NamingName
from lit_merge.checkpoints.conversion import parse_size
from lit_merge.choose.sweep import RANK_RATIOS, Grid, Inputs, Select, run_sweep
from lit_merge.cli.recipe import MergeRecipe
from lit_merge.data import TaskData
from lit_merge.errors import MergeError
from lit_merge.merge.export import DType, Format, export_bank
from lit_merge.merge.layout import Layout, Rows
from lit_merge.methods import MergeMethod


class Trainer(adaptation.Trainer):
    """Lightning's Trainer, and `merge`, `export` and `sweep`."""

    def merge(
        self,
        model: MergedModel,
        output: str,
        naming: NamingName | None = None,
        max_shard_size: str | None = None,
        dtype: DType | None = None,
        overwrite: bool = False,
    ) -> None:
        """Writes the merge at the bank's coefficients; nothing is trained.

        Args:
            model: what to merge.
            output: a .safetensors file; or a folder of shards with an index, which gets the configuration and the
                tokenizer that lie beside the experts.
            naming: which library's names a CLIP's weights get; those of the experts' files by default.
            max_shard_size: of one file in a folder, as 2GB; 5GB by default.
            dtype: of the floating-point weights; the experts' by default.
            overwrite: replace what stands there.
        """
        if self.is_global_zero:
            bank, kind = model.to_bank(), None if dtype is None else getattr(torch, dtype)
            size = None if max_shard_size is None else parse_size(max_shard_size)
            layout = Layout.of_bank(bank, bank.naming_of(naming), model.experts, dtype=kind)
            weights = (Rows(name, bank.weight(name, kind)) for name in bank.origin)
            layout.write(output, lambda unfinished: weights, None, size, overwrite)

    def export(
        self,
        model: MergedModel,
        output: str,
        format: Format = "bank",
        task: str | None = None,
        rank_ratio: float = 1.0,
        energy: float = 1.0,
        dtype: DType | None = None,
        naming: NamingName | None = None,
        max_shard_size: str | None = None,
        overwrite: bool = False,
    ) -> None:
        """Writes the bank, the merged weights, or one task's weights.

        Args:
            model: whose bank is exported.
            output: a folder for `bank`; for `merged` and `task` what `merge` writes: a .safetensors file, or a folder.
            format: `bank` (compressed, all tasks), `merged` (one model), or `task` (one task's model from the bank).
            task: which task, for `task`.
            rank_ratio: cut every matrix to this share of min(m, n) first.
            energy: cut every matrix to as many directions as keep this share of its squared singular values.
            dtype: precision of what is written; the bank's own by default.
            naming: which library's names a CLIP's weights get; those of the experts' files by default.
            max_shard_size: of one file in a folder of `merged` or `task`, as 2GB; 5GB by default.
            overwrite: replace what stands there.
        """
        if self.is_global_zero:
            cut = (rank_ratio, energy, dtype)
            export_bank(model.to_bank(), output, format, task, *cut, overwrite, naming, max_shard_size, model.experts)

    def sweep(
        self,
        model: MergeRecipe,
        output: str,
        datamodule: TaskData,
        methods: list[MergeMethod] | None = None,
        rank_ratios: list[float] | None = None,
        scalings: list[float] | None = None,
        select: Select = "accuracy",
        inputs: Inputs | None = None,
        images: int = 256,
        overwrite: bool = False,
    ) -> None:
        """Merges at every point of a grid, and chooses the best by labelled validation data or without labels.

        Args:
            model: whose experts are merged.
            output: a folder; the same command goes on with one that is not finished.
            datamodule: where the inputs come from.
            methods: what is swept; the configuration's method by default.
            rank_ratios: shares of min(m, n); .04 to .32 by default.
            scalings: 1/3 to 4 times every method's usual scale by default.
            select: `accuracy` looks at labels; `agreement` with the experts' own predictions, `entropy` and
                `self_consistent` do not.
            inputs: `validation`, whose labels only `accuracy` makes use of, or `unlabelled`, those that fit adapts on;
                validation inputs by default, where there are some.
            images: of every task, where they are unlabelled.
            overwrite: start afresh where the folder holds another sweep.
        """
        if self.world_size > 1:
            raise MergeError("sweep runs in one process: pass --trainer.devices 1")
        swept = tuple(methods or ([] if model.sources.method is None else [model.sources.method]))
        if not swept:
            raise MergeError("no method: give --model.method")
        grid = Grid(swept, tuple(rank_ratios or RANK_RATIOS), tuple(scalings) if scalings else None)
        run_sweep(model.sources, datamodule, grid, output, select, inputs, images, overwrite, self.strategy.root_device)
