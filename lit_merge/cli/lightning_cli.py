"""The verbs that Lightning's Trainer runs: LightningCLI over MergeRecipe, TaskData and our Trainer."""

import inspect
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import yaml
from jsonargparse import ActionYesNo
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from lit_merge import data, networks, objectives  # noqa: F401  short class names are found once imported
from lit_merge.adaptation import callbacks
from lit_merge.adaptation.fellows import ending_together
from lit_merge.adaptation.merged_model import MergedModel
from lit_merge.adaptation.options import Adaptation, spelled_out
from lit_merge.adaptation.routing.prototypes import Prototypes
from lit_merge.adaptation.routing.routed_model import RoutedModel
from lit_merge.adaptation.routing.router import Route
from lit_merge.adaptation.run import run_fit
from lit_merge.adaptation.scoring import ScoredModule
from lit_merge.adaptation.teachers import suiting
from lit_merge.adaptation.trainer import Trainer, passing_interrupts
from lit_merge.checkpoints import write_text
from lit_merge.checkpoints.locations import destination, resolve
from lit_merge.choose.sources import Sources
from lit_merge.choose.unlabelled import device_of
from lit_merge.cli.configuration import TRAINER_DEFAULTS
from lit_merge.cli.empty_values import refuse_empty
from lit_merge.cli.failed_callback import failed_callback
from lit_merge.cli.lightning_verbs import NOT_TAKEN
from lit_merge.cli.parsing import MODE, building, cause_of, parsing
from lit_merge.cli.written_output import say_folder, say_written
from lit_merge.console import manner, note, plain_warnings, show
from lit_merge.data import TaskData, check_tasks
from lit_merge.errors import MergeError, check_finite, first_line
from lit_merge.networks import Network
from lit_merge.report.advice import advice
from lit_merge.report.report import REPORT, Report, describe
from lit_merge.report.run_folder import RunFolder
from lit_merge.report.scores import TaskScore

PARSER = {"exit_on_error": False, "parser_mode": MODE, "allow_abbrev": False}


class MergeRecipe(MergedModel):
    """Builds or loads a task bank and makes its coefficients learnable.

    Its arguments, the keys under `model`, are those of `Sources` and of `Adaptation`.

    Raises:
        MergeError: no network; what `Sources` and `Adaptation` refuse.
    """

    @spelled_out(Sources, Adaptation)
    def __init__(self, network: Network | None = None, **options: Any) -> None:
        if network is None:
            raise MergeError("this verb runs a network: give --model.network, for example OpenClipImageEncoder")
        merged = options.keys() & inspect.signature(Sources).parameters
        options = suiting(options, options.get("data"))
        sources = Sources(network, **{name: options.pop(name) for name in merged})
        super().__init__(sources.bank(), network, experts=sources.experts, **options)
        self.sources = sources


class MergeCLI(LightningCLI):
    """One YAML serves every verb: `run` says where fit writes, `output` where the others do."""

    model: MergeRecipe
    datamodule: TaskData | None
    trainer: Trainer

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--run", type=str | None, default=None, help="fit: the folder that it leaves")
        parser.add_argument("--output", type=str | None, default=None, help="the other verbs: what they write")
        parser.add_argument("--overwrite", action=ActionYesNo, help="replace what stands there")
        parser.add_argument("--route", type=Route | None, default=None, help="choose weights input by input")
        parser.add_argument(
            "--prototypes", type=str | None, default=None, help="the file by which tasks are distinguished"
        )
        # Methods may look at unlabelled inputs before there is a trainer.
        parser.link_arguments("data", "model.data", apply_on="instantiate")
        parser.link_arguments("trainer.accelerator", "model.accelerator")

    def add_core_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_lightning_class_args(self.trainer_class, "trainer")
        parser.set_defaults({f"trainer.{name}": value for name, value in self.trainer_defaults.items()})
        parser.add_lightning_class_args(self._model_class, "model")
        # Lightning's own way wants a class that is a LightningDataModule already.
        parser.add_subclass_arguments(TaskData, "data", required=False)

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        with parsing(args, lambda: [action.dest for action in self._subcommand_parsers[args[0]]._actions]):
            super().parse_arguments(parser, args)
        # What Lightning would write into checkpoints of a model's arguments, where a model asks it to: none here does.
        self.config_dump: dict[str, Any] = {}
        options = self.config[args[0]]
        refuse_empty(self._subcommand_parsers[args[0]], options)
        check_finite(options.as_dict())
        for name in ("run", "output"):
            if options.get(name) is not None:
                options[name] = str(destination(options[name]))
        if options.get("ckpt_path"):
            options["ckpt_path"] = str(resolve(options["ckpt_path"]))

    def instantiate_classes(self) -> None:
        if self.subcommand != "fit" and not self.config[self.subcommand].ckpt_path:
            # Nothing is learnt: nobody looks through the inputs to adapt on for whether experts would teach.
            self.config[self.subcommand].model.teachers = False
        with building():
            super().instantiate_classes()

    def option(self, name: str) -> Any:
        """The value of an option of this verb."""
        return self._get(self.config_init, name)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        asked = self.option("trainer")
        if asked["max_steps"] == -1 and asked["max_epochs"] is None and asked["max_time"] is None:
            steps = None if self.datamodule is None else self.datamodule.steps
            kwargs["max_steps"] = self.model.total_steps if steps is None else steps
        if self.subcommand == "fit" and asked["limit_val_batches"] is None:
            # Adaptation has no use for labels; `--trainer.limit_val_batches 1.0` watches them nevertheless.
            kwargs["limit_val_batches"] = 0
        listed = asked["callbacks"] or []
        if manner().quiet and asked["enable_progress_bar"] is None:
            kwargs["enable_progress_bar"] = False
        elif asked["enable_progress_bar"] is not False and not any(isinstance(one, ProgressBar) for one in listed):
            kwargs["callbacks"] = [*listed, callbacks.MergeProgress()]
        try:
            return cast(Trainer, super().instantiate_trainer(**kwargs))
        except (ValueError, TypeError, AttributeError, ArithmeticError, MisconfigurationException) as error:
            # As Lightning refuses numbers of devices and batches.
            raise cause_of(error) or MergeError(f"trainer: {error}") from error

    def after_instantiate_classes(self) -> None:
        if self.datamodule is None:
            raise MergeError(f"{self.subcommand} needs --data: the class and options of the data, for example Suite")
        check_tasks(self.datamodule, self.model.tasks)

    def fit(self, **kwargs: Any) -> None:
        with building():  # of some classes of Lightning not every default can be written
            config = yaml.safe_load(self.parser.dump(self.config, skip_none=False))[self.subcommand]
        # Options of the other verbs, which fit does not take.
        config = {name: value for name, value in config.items() if name not in NOT_TAKEN["fit"]}
        assert self.datamodule is not None
        run, overwrite, ckpt_path = (self.option(name) for name in ("run", "overwrite", "ckpt_path"))
        report = run_fit(
            self.trainer, self.model, self.datamodule, run, self.model.experts, config, overwrite, ckpt_path
        )
        if self.trainer.is_global_zero:
            show(report, "result", json.loads(report.to_json()))
            if message := advice(RunFolder(Path(run))):
                note(message, "advice", {"text": message})
            say_folder(run)

    def validate(self, **kwargs: Any) -> None:
        self._evaluate(self.trainer.validate, kwargs)

    def test(self, **kwargs: Any) -> None:
        self._evaluate(self.trainer.test, kwargs)

    def predict(self, **kwargs: Any) -> None:
        writer = callbacks.PredictionWriter(self.option("output"), self.option("overwrite"))
        writer.check(self.trainer)
        self.trainer.callbacks.append(writer)
        with passing_interrupts():
            self.trainer.predict(**kwargs | {"model": self._asked(), "return_predictions": False})
        say_written(self.option("output"))

    def _evaluate(self, verb: Callable[..., Any], kwargs: dict[str, Any]) -> None:
        asked = self._asked()
        with ending_together(self.trainer):
            verb(**kwargs | {"model": asked, "verbose": False})
        assert self.datamodule is not None
        options = self.config[self.subcommand]
        state = "adapted" if options.model.bank or options.ckpt_path else "static"
        split = "test" if self.subcommand == "test" else "validation"
        bank = self.model.to_bank()
        scores: dict[str, Mapping[str, TaskScore]] = {state: asked.scores}
        if isinstance(asked, RoutedModel):
            scores = {"routed": asked.scores, "routing": asked.routing}
        report = Report(describe(bank), self.datamodule.protocol, scores, split=split)
        if self.trainer.is_global_zero:
            show(report, "result", json.loads(report.to_json()))
            if self.option("output"):
                write_text(self.option("output"), report.to_json(), self.option("overwrite"), REPORT)

    def _asked(self) -> ScoredModule:
        """What this verb runs: the merge, or weights that are chosen input by input."""
        route, file = self.option("route"), self.option("prototypes")
        if route is None:
            return self.model
        assert self.datamodule is not None
        bank, network = self.model.to_bank(), self.model.network
        if file is not None and resolve(file).exists():
            return RoutedModel(bank, network, Prototypes.load(file, bank), route)
        network.to(device_of(self.option("trainer")["accelerator"]))
        found = Prototypes.collect(bank, network, self.datamodule)
        if file is not None and self.trainer.is_global_zero:
            found.save(destination(file))
        return RoutedModel(bank, network, found, route)


def run(arguments: list[str]) -> None:
    """Parses and runs one verb.

    Raises:
        MergeError: anything that the user can mend.
    """
    plain_warnings()  # once more: Lightning sets its own when it is imported

    class OneVerb(MergeCLI):
        """Parsers of all the others would take a third of a second."""

        @staticmethod
        def subcommands() -> dict[str, set[str]]:
            return {arguments[0]: MergeCLI.subcommands()[arguments[0]]}

    try:
        OneVerb(
            MergeRecipe,
            trainer_class=Trainer,
            trainer_defaults=TRAINER_DEFAULTS,
            save_config_callback=None,
            parser_kwargs=PARSER | {arguments[0]: PARSER},
            args=arguments,
        )
    except MisconfigurationException as error:
        # Of options that Lightning looks at when it has the data, as limit_test_batches.
        raise MergeError(f"trainer: {error}") from error
    except Exception as error:
        if (name := failed_callback(error)) is None:
            raise
        raise MergeError(f"trainer.callbacks: {name}: {first_line(error)}") from error
