"""The verb `merge`: weights written as they are merged, or what would be done."""

from collections.abc import Sequence

import torch

from lit_merge.checkpoints import NamingName
from lit_merge.checkpoints.conversion import DType, shard_size
from lit_merge.choose.write import write_merge
from lit_merge.cli.configuration import Configuration
from lit_merge.cli.dry_run import dry_run, selected_weights, selection
from lit_merge.cli.workers import reports, working_together
from lit_merge.cli.written_output import say_copied, say_written
from lit_merge.console import note
from lit_merge.merge.processes import Accelerator

ABOUT = "Merges experts without adapting, as one safetensors file or as the folder of a model. Reads no label."
SWITCHES = {"dry_run": "say what would be done: reads headers"}


def options(
    naming: NamingName | None = None,
    max_shard_size: str | None = None,
    dtype: DType | None = None,
    devices: int = 1,
    accelerator: Accelerator = "cpu",
) -> None:
    """Options of merge.

    Args:
        naming: whose names a CLIP's weights get; those of the experts' files by default.
        max_shard_size: of one file in a folder, as 2GB; 5GB by default.
        dtype: of the floating-point weights; the experts' by default.
        devices: number of processes that share the work.
        accelerator: where matrices are decomposed.
    """


def merge(arguments: Sequence[str]) -> None:
    """Merges, writes, and says which matrices were decomposed and which files were copied.

    Raises:
        MergeError: anything that the user can mend.
    """
    config = Configuration("merge", arguments, options, ABOUT, SWITCHES)
    if config["dry_run"]:
        dry_run(config.sources, config["naming"])
        return
    output = config.check_output("output")
    size = shard_size(config["max_shard_size"], output)
    dtype = None if config["dtype"] is None else getattr(torch, config["dtype"])

    with working_together(config["devices"], config["accelerator"], output, ["merge", *arguments]) as processes:
        if processes is not None:
            sources = config.sources()
            copied = write_merge(sources, output, config["naming"], size, config["overwrite"], processes, dtype)
            if processes.first and sources.experts is not None and sources.method is not None and sources.saved is None:
                merged = sources.experts, sources.method
                note(selection(*merged), "selected", selected_weights(*merged))
            say_copied(copied)
    if reports(processes):
        say_written(output)
