"""The verbs that Lightning's Trainer runs: what is refused before Lightning is imported."""

from collections.abc import Callable, Sequence

from jsonargparse import ArgumentParser

from lit_merge.adaptation.training_checkpoint import read_training_checkpoint
from lit_merge.checkpoints.locations import resolve
from lit_merge.cli.configuration import Configuration
from lit_merge.cli.trainer_options import check_names
from lit_merge.errors import MergeError
from lit_merge.report.prediction_files import PREDICTIONS, prediction_format
from lit_merge.report.report import REPORT

ABOUT = {
    "fit": "Merges, adapts the coefficients on unlabelled data, reports, and saves the task bank.",
    "validate": "Accuracy and entropy per task on the validation data.",
    "test": "Accuracy and entropy per task on the test data.",
    "predict": "The five most probable classes of every test input, as CSV, Parquet or JSON lines.",
}


def fit_options(ckpt_path: str | None = None, weights_only: bool | None = None) -> None:
    """Options of fit.

    Args:
        ckpt_path: a checkpoint of a fit of the same bank to go on from.
        weights_only: Lightning's; checkpoints hold nothing but weights and numbers in any case.
    """


def evaluation_options(ckpt_path: str | None = None, verbose: bool = True, weights_only: bool | None = None) -> None:
    """Options of validate and test.

    Args:
        ckpt_path: a checkpoint of a fit of the same bank, whose coefficients are taken.
        verbose: Lightning's; results are printed as a table in any case.
        weights_only: Lightning's; checkpoints hold nothing but weights and numbers in any case.
    """


def prediction_options(
    return_predictions: bool | None = None, ckpt_path: str | None = None, weights_only: bool | None = None
) -> None:
    """Options of predict.

    Args:
        return_predictions: Lightning's; predictions are written to `output` in any case.
        ckpt_path: a checkpoint of a fit of the same bank, whose coefficients are taken.
        weights_only: Lightning's; checkpoints hold nothing but weights and numbers in any case.
    """


OPTIONS: dict[str, Callable[..., None]] = {
    "fit": fit_options,
    "validate": evaluation_options,
    "test": evaluation_options,
    "predict": prediction_options,
}


def check(arguments: Sequence[str]) -> None:
    """Checks what can be checked of a command line, the first argument of which is the verb.

    Raises:
        MergeError: anything that the user can mend.
    """
    verb, *rest = arguments

    def add_options(parser: ArgumentParser) -> None:
        parser.add_function_arguments(OPTIONS[verb])

    config = Configuration(verb, rest, add_options, ABOUT[verb])
    check_names(config["trainer"], rest)
    if verb == "fit":
        config.check_output("run")
        if config["output"] is not None:
            raise MergeError("fit leaves a folder: name it with --run; --output is for the other verbs")
    elif verb == "predict" or config["output"] is not None:
        config.check_output("output", PREDICTIONS if verb == "predict" else REPORT)
    if verb == "predict":
        prediction_format(config["output"])
    config.check_inputs()
    if config["ckpt_path"]:
        read_training_checkpoint(resolve(config["ckpt_path"]))
