"""The verbs that Lightning's Trainer runs: what is refused before Lightning is imported."""

from collections.abc import Sequence

from lit_merge.adaptation.routing.router import Route
from lit_merge.adaptation.training_checkpoint import read_training_checkpoint
from lit_merge.checkpoints import check_output
from lit_merge.checkpoints.locations import destination, resolve
from lit_merge.checkpoints.outputs import is_kept
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


# Lightning's own arguments, of which not every verb takes all.
NOT_TAKEN = {
    "fit": ("verbose", "return_predictions", "route", "prototypes"),
    "validate": ("return_predictions",),
    "test": ("return_predictions",),
    "predict": ("verbose",),
}


def options(
    ckpt_path: str | None = None,
    verbose: bool = True,
    return_predictions: bool | None = None,
    weights_only: bool | None = None,
    route: Route | None = None,
    prototypes: str | None = None,
) -> None:
    """Options of the verbs.

    Args:
        ckpt_path: a checkpoint of a fit of the same bank: fit goes on from it, other verbs take its coefficients.
        verbose: Lightning's; results are printed as a table in any case.
        return_predictions: Lightning's; predictions are written to `output` in any case.
        weights_only: Lightning's; checkpoints hold nothing but weights and numbers in any case.
        route: choose weights input by input, as if nobody said which task an input is of: by `prototypes`, also by the
            `entropy` of the two nearest experts, or in `layers` by themselves (ESM++).
        prototypes: the file by which `route` tells tasks apart; made of the unlabelled inputs where there is none yet.
    """


def check(arguments: Sequence[str]) -> None:
    """Checks what can be checked of a command line, the first argument of which is the verb.

    Raises:
        MergeError: anything that the user can mend.
    """
    verb, *rest = arguments
    config = Configuration(verb, rest, options, ABOUT[verb], skip=NOT_TAKEN[verb])
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
    if verb != "fit":
        _check_route(config)
    if config["ckpt_path"]:
        read_training_checkpoint(resolve(config["ckpt_path"]))


def _check_route(config: Configuration) -> None:
    route, file = config["route"], config["prototypes"]
    if route is None and file is not None:
        raise MergeError("--prototypes is of --route: say how the task of an input is found")
    if route is not None and config["ckpt_path"]:
        raise MergeError("--route takes the weights of a bank: name it with --model.bank, and leave out --ckpt_path")
    if route is not None and config["model"].compile:
        raise MergeError("--route looks at products inside the network, which compiling hides: leave out model.compile")
    if file is not None and not is_kept(resolve(file)):
        check_output(destination(file), what="prototypes")
