"""The verb `sweep`: a grid of merges, and the best of them."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from lit_merge.checkpoints.inputs import writes
from lit_merge.choose.sweep import Grid, Inputs, Select, run_sweep
from lit_merge.choose.unlabelled import device_of
from lit_merge.cli.configuration import Configuration
from lit_merge.cli.written_output import say_folder
from lit_merge.console import show
from lit_merge.errors import MergeError
from lit_merge.methods import MergeMethod

ABOUT = "Merges at every point of a grid, and chooses the best by labelled validation data or without labels."


def options(
    methods: list[MergeMethod] | None = None,
    rank_ratios: list[float] | None = None,
    scalings: list[float] | None = None,
    select: Select = "accuracy",
    inputs: Inputs | None = None,
    images: int = 256,
) -> None:
    """Options of sweep.

    Args:
        methods: what is swept; the configuration's method by default.
        rank_ratios: shares of min(m, n); .04 to .32 by default.
        scalings: 1/3 to 4 times every method's usual scale by default.
        select: `accuracy` looks at labels; `agreement` with the experts' own predictions, `entropy` and
            `self_consistent` do not.
        inputs: `validation`, whose labels only `accuracy` makes use of, or `unlabelled`, those that fit adapts on;
            validation inputs by default, where there are some.
        images: of every task, where they are unlabelled.
    """


def sweep(arguments: Sequence[str]) -> None:
    """Sweeps into the folder `output`, which the same command goes on with, and shows what was found.

    Raises:
        MergeError: anything that the user can mend.
    """
    config = Configuration("sweep", arguments, options, ABOUT)
    output, devices = config["output"], config["trainer"].devices
    if output is None:
        raise MergeError("sweep needs --output, the place to write to")
    writes(Path(output))
    if devices not in ("auto", 1, "1", [0]):
        raise MergeError("sweep runs in one process: pass --trainer.devices 1")
    # All banks of a sweep share one decomposition.
    config["model"].decompositions = config["model"].decompositions or "memory"
    sources, data = config.sources(), config.data()
    swept = config.built("methods") or [sources.method]
    if None in swept:
        raise MergeError("no method: give --model.method")
    given = (config["rank_ratios"], config["scalings"])
    grid = Grid(tuple(swept), *(None if one is None else tuple(one) for one in given))
    device = device_of(config["trainer"].accelerator)
    chosen = run_sweep(
        sources, data, grid, output, config["select"], config["inputs"], config["images"], config["overwrite"], device
    )
    table = (Path(output) / "table.txt").read_text(encoding="utf-8")
    show(table, "result", asdict(chosen), soft_wrap=True, highlight=False)
    say_folder(output)
