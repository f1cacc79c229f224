"""The verbs that need a model: LightningCLI over MergeRecipe, TaskData and our Trainer."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch
import yaml
from jsonargparse import ActionYesNo
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from lit_merge import data, networks, objectives  # noqa: F401  short class names are found once imported
from lit_merge.adaptation import callbacks
from lit_merge.adaptation.run import run_fit
from lit_merge.adaptation.trainer import passing_interrupts
from lit_merge.checkpoints import check_output, write_text
from lit_merge.checkpoints.conversion import parse_size
from lit_merge.checkpoints.locations import destination, resolve
from lit_merge.choose.sources import Sources
from lit_merge.cli.export import write_bank
from lit_merge.cli.merge import dry_run, merge, say_copied
from lit_merge.cli.parsing import MODE, parsing
from lit_merge.cli.recipe import MergeRecipe
from lit_merge.cli.trainer import Trainer
from lit_merge.cli.workers import work_together
from lit_merge.console import quiet, terminal
from lit_merge.data import TaskData, check_tasks
from lit_merge.errors import MergeError, check_finite
from lit_merge.merge.export import check_export, export_bank
from lit_merge.merge.processes import Accelerator, Processes
from lit_merge.report.prediction_files import prediction_format
from lit_merge.report.report import Report, describe

# The sampler splits batches among processes itself; a run's log is a CSV file in its folder unless a logger is named.
TRAINER_DEFAULTS = {
    "num_sanity_val_steps": 0,
    "use_distributed_sampler": False,
    "log_every_n_steps": 10,
    "logger": False,
    "enable_checkpointing": False,
    "enable_model_summary": False,
}
PARSER = {"exit_on_error": False, "parser_mode": MODE, "allow_abbrev": False}
OWN_VERBS = {
    "merge": {"model", "output", "overwrite"},
    "export": {"model", "output", "overwrite"},
    "sweep": {"model", "datamodule", "output", "overwrite"},
}
WRITING = ("fit", "predict", *OWN_VERBS)
# Verbs that need neither a network nor a trainer.
LIGHT = ("merge", "export")
# What of a model says what is merged how.
MERGED = ("network", "experts", "base", "exclude", "crop", "method", "transform", "bank", "decompositions", "svd")


class MergeCLI(LightningCLI):
    """One YAML serves every verb: `run` says where fit writes, `output` where the others do."""

    model: MergeRecipe
    datamodule: TaskData | None
    trainer: Trainer

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        return LightningCLI.subcommands() | OWN_VERBS

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--run", type=str | None, default=None, help="fit: the folder that it leaves")
        parser.add_argument("--output", type=str | None, default=None, help="the other verbs: what they write")
        parser.add_argument("--overwrite", action=ActionYesNo, help="replace what stands there")
        # Methods may look at unlabelled inputs before there is a trainer.
        parser.link_arguments("data", "model.data", apply_on="instantiate")
        parser.link_arguments("trainer.accelerator", "model.accelerator")

    def add_core_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        # Lightning takes data for optional where no class was named: only what runs a network needs any.
        self.datamodule_class = None
        super().add_core_arguments_to_parser(parser)

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        self.arguments = list(args)
        with parsing(args, lambda: [action.dest for action in self._subcommand_parsers[args[0]]._actions]):
            super().parse_arguments(parser, args)
        check_finite(self.config[args[0]].as_dict())
        options = self.config[args[0]]
        for name in ("run", "output"):
            if options.get(name) is not None:
                options[name] = str(destination(options[name]))
        if options.get("ckpt_path"):
            options["ckpt_path"] = str(resolve(options["ckpt_path"]))
            _check_checkpoint(Path(options["ckpt_path"]))

    def _prepare_subcommand_parser(self, klass: Any, subcommand: str, **kwargs: Any) -> LightningArgumentParser:
        parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        if subcommand == "merge":
            parser.add_argument(
                "--dry_run", "--dry-run", action=ActionYesNo, help="say what would be done: reads headers"
            )
        if subcommand in LIGHT:
            parser.add_argument("--devices", type=int, default=1, help="number of processes that share the work")
            parser.add_argument("--accelerator", type=Accelerator, default="cpu", help="where matrices are decomposed")
        return parser

    def instantiate_classes(self) -> None:
        try:
            if self.subcommand in LIGHT:
                # Methods, networks and data, but neither a model nor a trainer.
                self.config_init = self.parser.instantiate_classes(self.config, instantiate_groups=False)
            else:
                super().instantiate_classes()
        except (ValueError, ModuleNotFoundError) as error:
            if (cause := _cause(error)) is None:
                raise
            raise cause from error

    def option(self, name: str) -> Any:
        """The value of an option of this verb."""
        return self._get(self.config_init, name)

    def before_instantiate_classes(self) -> None:
        options = self.config[self.subcommand]
        where = "run" if self.subcommand == "fit" else "output"
        if options[where] is None and self.subcommand in WRITING and not options.get("dry_run"):
            raise MergeError(f"{self.subcommand} needs --{where}, the place to write to")
        if self.subcommand == "fit" and options.output is not None:
            raise MergeError("fit leaves a folder: name it with --run; --output is for the other verbs")
        if self.subcommand == "sweep":
            # Goes on with a folder that it left; all banks of it share one decomposition.
            options.model.decompositions = options.model.decompositions or "memory"
        elif options[where] is not None:
            check_output(options[where], options.overwrite)
        if self.subcommand == "predict":
            prediction_format(options.output)
        if self.subcommand == "merge" and options.max_shard_size is not None:
            parse_size(options.max_shard_size)
        if self.subcommand == "export":
            check_export(options.output, options.format, options.task, options.max_shard_size)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        asked = self.option("trainer")
        if asked["max_steps"] == -1 and asked["max_epochs"] is None and asked["max_time"] is None:
            steps = None if self.datamodule is None else self.datamodule.steps
            kwargs["max_steps"] = self.model.total_steps if steps is None else steps
        if self.subcommand == "fit" and asked["limit_val_batches"] is None:
            # Adaptation has no use for labels; `--trainer.limit_val_batches 1.0` watches them nevertheless.
            kwargs["limit_val_batches"] = 0
        listed = asked["callbacks"] or []
        if asked["enable_progress_bar"] is not False and not any(isinstance(one, ProgressBar) for one in listed):
            kwargs["callbacks"] = [*listed, callbacks.MergeProgress()]
        try:
            return cast(Trainer, super().instantiate_trainer(**kwargs))
        except (ValueError, MisconfigurationException) as error:
            raise _cause(error) or MergeError(f"trainer: {error}") from error

    def after_instantiate_classes(self) -> None:
        if self.subcommand in LIGHT:
            return
        if self.datamodule is not None:
            check_tasks(self.datamodule, self.model.tasks)
        else:
            raise MergeError(f"{self.subcommand} needs --data: the class and options of the data, for example Suite")

    def fit(self, **kwargs: Any) -> None:
        config = yaml.safe_load(self.parser.dump(self.config, skip_none=False))[self.subcommand]
        assert self.datamodule is not None
        run, overwrite, ckpt_path = (self.option(name) for name in ("run", "overwrite", "ckpt_path"))
        report = run_fit(
            self.trainer, self.model, self.datamodule, run, self.model.experts, config, overwrite, ckpt_path
        )
        if self.trainer.is_global_zero:
            terminal().print(report)
            names = ", ".join(sorted(path.name for path in Path(run).iterdir()))
            terminal().print(f"Written to {run}: {names}", soft_wrap=True)

    def validate(self, **kwargs: Any) -> None:
        self._evaluate(self.trainer.validate, kwargs)

    def test(self, **kwargs: Any) -> None:
        self._evaluate(self.trainer.test, kwargs)

    def predict(self, **kwargs: Any) -> None:
        writer = callbacks.PredictionWriter(self.option("output"), self.option("overwrite"))
        writer.check(self.trainer)
        self.trainer.callbacks.append(writer)
        with passing_interrupts():
            self.trainer.predict(**kwargs | {"return_predictions": False})
        self._say()

    def _run_subcommand(self, subcommand: str) -> None:
        if subcommand in LIGHT:
            getattr(self, subcommand)()
        else:
            super()._run_subcommand(subcommand)

    def sources(self) -> Sources:
        """What the configuration merges, opened."""
        asked = self.option("model")
        options: dict[str, Any] = {name: asked[name] for name in MERGED}
        return Sources(**options, data=self.option("data"), accelerator=self.option("trainer")["accelerator"])

    def merge(self) -> None:
        if self.option("dry_run"):
            dry_run(self.sources, self.option("naming"))
            return
        names = ("output", "naming", "max_shard_size", "overwrite", "dtype")
        output, naming, size, overwrite, dtype = map(self.option, names)
        self._together(lambda processes: merge(self.sources(), output, naming, size, overwrite, processes, dtype))

    def export(self) -> None:
        names = ("output", "format", "task", "rank_ratio", "energy", "dtype", "overwrite", "naming", "max_shard_size")
        options: dict[str, Any] = {name: self.option(name) for name in names}

        def write(processes: Processes) -> None:
            sources = self.sources()
            if options["format"] == "bank" and sources.saved is None:
                cut = {name: options[name] for name in ("rank_ratio", "energy", "dtype", "naming", "overwrite")}
                write_bank(sources, options["output"], **cut, processes=processes)
            elif processes.count > 1:
                raise MergeError(f"devices={processes.count}: several processes merge, or build a bank (format=bank)")
            else:
                say_copied(export_bank(sources.bank(), **options, experts=sources.experts, base=sources.base))

        self._together(write)

    def _together(self, work: Callable[[Processes], None]) -> None:
        """Does the work of this verb, in as many processes as are asked for."""
        devices, accelerator, output = map(self.option, ("devices", "accelerator", "output"))
        if work_together(work, devices, accelerator, output, self.arguments):
            self._say()

    def sweep(self, **kwargs: Any) -> None:
        output, overwrite = self.option("output"), self.option("overwrite")
        self.trainer.sweep(output=output, overwrite=overwrite, **kwargs)
        terminal().print((Path(output) / "table.txt").read_text(encoding="utf-8"), soft_wrap=True, highlight=False)
        names = ", ".join(sorted(path.name for path in Path(output).iterdir()))
        terminal().print(f"Written to {output}: {names}", soft_wrap=True)

    def _say(self) -> None:
        path = Path(self.option("output"))
        size = sum(file.stat().st_size for file in [path, *path.rglob("*")] if file.is_file())
        terminal().print(f"Written to {path}: {size / 1e6:.1f} MB", soft_wrap=True)

    def _evaluate(self, verb: Callable[..., Any], kwargs: dict[str, Any]) -> None:
        verb(**kwargs | {"verbose": False})
        assert self.datamodule is not None
        options = self.config[self.subcommand]
        state = "adapted" if options.model.bank or options.ckpt_path else "static"
        split = "test" if self.subcommand == "test" else "validation"
        bank = self.model.to_bank()
        report = Report(describe(bank), self.datamodule.protocol, {state: self.model.scores}, split=split)
        if self.trainer.is_global_zero:
            terminal().print(report)
            if self.option("output"):
                write_text(self.option("output"), report.to_json(), self.option("overwrite"))


def run(arguments: list[str]) -> None:
    """Parses and runs one verb.

    Raises:
        MergeError: anything that the user can mend.
    """

    class OneVerb(MergeCLI):
        """Parsers of all the others would take a third of a second."""

        @staticmethod
        def subcommands() -> dict[str, set[str]]:
            return {arguments[0]: MergeCLI.subcommands()[arguments[0]]}

    quiet()
    OneVerb(
        MergeRecipe,
        TaskData,
        subclass_mode_data=True,
        trainer_class=Trainer,
        trainer_defaults=TRAINER_DEFAULTS,
        save_config_callback=None,
        parser_kwargs=PARSER | {arguments[0]: PARSER},
        args=arguments,
    )


def _check_checkpoint(path: Path) -> None:
    """Raises MergeError unless Lightning will be able to read this file of a few kB."""
    if not path.is_file():
        raise MergeError(f"{path}: no such file")
    try:
        whole = "lit_merge" in torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # torch.load fails in as many ways as there are other files
        whole = False
    if not whole:
        raise MergeError(f"{path} is no checkpoint of a fit (banks go to --model.bank)")


def _cause(error: BaseException) -> MergeError | None:
    """The MergeError that jsonargparse has wrapped; a package that is missing, as tensorboard may be, is one too."""
    found: BaseException | None = error
    while found is not None and not isinstance(found, MergeError):
        if isinstance(found, ModuleNotFoundError):
            return MergeError(f"a package is missing: {str(found).splitlines()[0]}")
        found = found.__cause__ or found.__context__
    return found
