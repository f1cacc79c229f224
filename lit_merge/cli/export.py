"""The verb `export`: a bank, its merge, or one task's model."""

import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal, get_args

from lit_merge.bank.files import BANK
from lit_merge.bank.task_bank import TaskBank
from lit_merge.checkpoints import NamingName
from lit_merge.checkpoints.inputs import one_command
from lit_merge.choose.compressed_tasks import moments_of, tasks_kept
from lit_merge.choose.sources import Sources
from lit_merge.choose.unlabelled import built
from lit_merge.choose.write import write_bank
from lit_merge.cli.compression_table import compression_table, kept_table
from lit_merge.cli.configuration import Configuration
from lit_merge.cli.workers import reports, working_together
from lit_merge.cli.written_output import say_copied, say_written
from lit_merge.console import terminal
from lit_merge.errors import MergeError, MergeWarning
from lit_merge.merge.adapters.parts import Rest
from lit_merge.merge.compressed_bank import Origin, StoredAs, compress_bank, is_compressed, model_bytes
from lit_merge.merge.export import Format, check_export, compress, export_bank
from lit_merge.merge.processes import Accelerator
from lit_merge.merge.programs import Program
from lit_merge.networks import Network
from lit_merge.report.weight_tree import megabytes

Metric = Literal["frobenius", "features"]
SWITCHES = {"dry_run": "say what the bank would hold, and its size to the byte: writes nothing"}
ABOUT = "Writes a task bank, compressed if asked; or the merged weights; or the weights of one task."


def options(
    format: Format = "bank",
    task: str | None = None,
    rank_ratio: float = 1.0,
    energy: float = 1.0,
    dtype: StoredAs | None = None,
    budget: str | None = None,
    max_size: str | None = None,
    origin: Origin = "own",
    metric: Metric = "frobenius",
    naming: NamingName | None = None,
    max_shard_size: str | None = None,
    rest: Rest = "adapter",
    devices: int = 1,
    accelerator: Accelerator = "cpu",
) -> None:
    """Options of export.

    Args:
        format: `bank` (compressed, all tasks), `merged` (one model), `task` (one task's model from the bank), `lora` (a
            PEFT adapter for every task, in a folder with the base that they are for), `open_clip` or `hugging_face` (a
            CLIP's folder with its configuration), `torch_export` or `onnx` (a program with heads, one output for each
            task). A name that ends in .pt is a plain state dict, of `merged` and `task`.
        task: which task, for `task`; for `lora` one task, or `merged`, in place of all tasks; for the formats after it
            one task's own weights in place of the merge.
        rank_ratio: cut every matrix to this share of min(m, n) first.
        energy: cut every matrix to as many directions as keep this share of its squared singular values.
        dtype: precision of what is written; the bank's own by default. With int8 or int4, a budget or a size, a bank is
            compressed: every task and weight keeps the directions that leave least error, by default in what pays of
            float16, int8 and int4.
        budget: of the compressed bank's files, in times one model, as 1.5x.
        max_size: of the compressed bank's files, as 50MB.
        origin: of the compressed bank; `base` stores what it differs from --model.base, which opening the bank needs.
        metric: of the compressed bank's error: `frobenius`, of the weights; or `features`, of what weights make of
            unlabelled inputs of their tasks, which needs --model.network and --data.
        naming: whose names a CLIP's weights get; those of the experts' files by default.
        max_shard_size: of one file in a folder of `merged` or `task`, as 2GB; 5GB by default.
        rest: what LoRA cannot hold, as norms and embeddings: whole in each `adapter`, or left to the `base`.
        devices: number of processes that share the work of building a bank.
        accelerator: where matrices are decomposed.
    """


def export(arguments: Sequence[str]) -> None:
    """Builds or loads a bank, and writes it in one of the formats.

    Raises:
        MergeError: anything that the user can mend.
    """
    config = Configuration("export", arguments, options, ABOUT, SWITCHES)
    compressed = is_compressed(*(config[name] for name in ("budget", "max_size", "dtype", "origin")))
    if config["metric"] != "frobenius" and not compressed:
        raise MergeError(
            f"metric={config['metric']} is of a bank of limited size: give --budget, --max_size, --dtype int8 or int4, "
            "or --origin base"
        )
    if compressed or config["dry_run"]:
        _export_compressed(config)
        return
    output = config.check_output("output")
    _check(config, output)
    cut = {name: config[name] for name in ("rank_ratio", "energy", "dtype", "naming", "overwrite")}

    with working_together(config["devices"], config["accelerator"], output, ["export", *arguments]) as processes:
        if processes is not None:
            sources = config.sources()
            if config["format"] == "bank" and sources.saved is None:
                write_bank(sources, output, **cut, processes=processes)
            elif processes.count > 1:
                raise MergeError(f"devices={processes.count}: several processes merge, or build a bank (format=bank)")
            else:
                form = {name: config[name] for name in ("format", "task", "max_shard_size", "rest")}
                copied = export_bank(
                    sources.bank(),
                    output,
                    **cut,
                    **form,
                    experts=sources.experts,
                    base=sources.base,
                    base_name=_name(config["model"].base),
                    network=_network(config, sources) if config["format"] in get_args(Program) else None,
                    config=_config_of_network(config),
                )
                say_copied(copied)
    if reports(processes):
        say_written(output)


def _check(config: Configuration, output: str) -> None:
    """Raises MergeError for options that do not go together, before a bank is built."""
    check_export(output, *(config[name] for name in ("format", "task", "max_shard_size", "rest", "naming")))


def _network(config: Configuration, sources: Sources) -> Network:
    """Encoder and heads, built.

    Raises:
        MergeError: none is named.
    """
    if (network := built(sources.unlabelled.network)) is None:
        raise MergeError(f"format={config['format']} has heads in it: name encoder and heads by --model.network")
    return network


def _config_of_network(config: Configuration) -> str | None:
    """The configuration of a CLIP that the network is named with."""
    options = getattr(config["model"].network, "init_args", None)
    found = None if options is None else options.get("config")
    return found if isinstance(found, str) else None


def _export_compressed(config: Configuration) -> None:
    """A bank in the compressed format, or what it would be."""
    if config["format"] != "bank":
        raise MergeError(
            f"budget, max_size, dry_run, origin=base and dtype=int8 or int4 are of format=bank: leave them out for "
            f"{config['format']}"
        )
    if config["devices"] > 1:
        raise MergeError(f"devices={config['devices']}: one process compresses a bank")
    _check(config, "")
    output = None if config["dry_run"] else config.check_output("output", BANK)
    sources = config.sources()
    bank = sources.bank()
    bank = replace(bank, naming=bank.naming_of(config["naming"])).truncate(config["rank_ratio"], config["energy"])
    options = {name: config[name] for name in ("budget", "max_size", "dtype", "origin")}
    if not is_compressed(*options.values()):
        nbytes = compress(bank, dtype=config["dtype"]).saved_bytes
        print(f"{nbytes:,} bytes ({megabytes(nbytes)}), {nbytes / model_bytes(bank):.3f} times one model")
        return
    with TemporaryDirectory() as folder:
        moments = None
        if config["metric"] == "features":
            network, data = built(sources.unlabelled.network), built(sources.unlabelled.data)
            if network is None or data is None:
                raise MergeError("metric=features looks at unlabelled inputs: give --model.network and --data")
            moments = moments_of(bank, network, data, Path(folder))
        found = compress_bank(
            bank, output, base=config["model"].base, overwrite=config["overwrite"], moments=moments, **options
        )
    console = terminal()
    console = console if console.is_terminal else terminal(width=200)
    console.print(compression_table(found, config["metric"]), highlight=False)
    if output is not None:
        _say_kept(config, sources, bank, output)
        say_written(output)


def _say_kept(config: Configuration, sources: Sources, bank: TaskBank, output: str) -> None:
    """What became of every task, where the configuration names a network and data. The bank is written: what cannot
    be measured is a warning."""
    try:
        network, data = built(sources.unlabelled.network), built(sources.unlabelled.data)
        if network is None or data is None:
            return
        with one_command():  # what was written is read back
            stored = TaskBank.load(output, config["model"].base if config["origin"] == "base" else None)
            terminal().print(kept_table(tasks_kept(bank, stored, network, data)), highlight=False)
    except MergeError as error:
        warnings.warn(f"what is kept of every task was not measured: {error}", MergeWarning, stacklevel=2)


def _name(base: str | None) -> str | None:
    """What adapters call a base: the hub's name of it, or its path as it was given."""
    return None if base is None else base.removeprefix("hf://")
