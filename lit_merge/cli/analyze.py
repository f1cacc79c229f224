"""The verb `analyze`: weights in, a folder of figures and tables out. Neither network nor method nor data is built."""

from argparse import SUPPRESS
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from jsonargparse import ActionYesNo, ArgumentParser

from lit_merge.adaptation.options import Adaptation
from lit_merge.checkpoints import check_output
from lit_merge.cli.parsing import parser_of, parsing
from lit_merge.console import terminal
from lit_merge.errors import MergeError, check_finite
from lit_merge.experts.experts import Experts
from lit_merge.experts.files import expert_files
from lit_merge.report.analysis.build import analyze
from lit_merge.report.analysis.curves import Normalise
from lit_merge.report.analysis.files import ANALYSIS, write_analysis
from lit_merge.report.analysis.table import analysis_table

ABOUT = (
    "Interference, reconstruction error, spectra and cosines of the experts of a configuration (arXiv 2412.12153), "
    "centred against pretrained-anchored. Of a file written for fit it takes model.experts, model.base and the "
    "matrices of model.method; no network is built."
)
# What the other verbs take from a configuration: allowed, so that one file serves every verb; only the method's
# `matrices` are looked at.
UNUSED = ("seed_everything", "trainer", "data", "optimizer", "lr_scheduler", "run", "ckpt_path", "weights_only")
UNUSED_MODEL = ("network", "transform", "bank", "decompositions", "svd", *(one.name for one in fields(Adaptation)))


def parser() -> ArgumentParser:
    made = parser_of("analyze", ABOUT)
    made.add_argument(
        "--model.experts", type=dict[str, str] | str | None, help="task → checkpoint, or a folder of them"
    )
    made.add_argument("--model.base", type=str | None, help="the pretrained checkpoint; centred only without it")
    made.add_argument(
        "--model.exclude", type=list[str] | None, help="patterns of weights that are left out, as classifier.*"
    )
    made.add_argument("--model.crop", type=bool, default=False, help="of vocabularies that differ, the rows all have")
    made.add_argument("--output", type=str | None, help="the folder to write")
    made.add_argument("--overwrite", action=ActionYesNo, help="replace what stands there")
    made.add_argument(
        "--matrices",
        type=str | list[str] | None,
        help="block, all, every or name patterns; what model.method names, else block, by default",
    )
    made.add_argument("--ratios", type=list[float] | None, help="k / min(m, n) to show; 20 of .01 to 1 by default")
    made.add_argument(
        "--normalise",
        type=Normalise,
        default="whole",
        help="interference: singular values over the sum of the whole spectrum, or of the top k",
    )
    made.add_argument("--model.method", type=dict[str, Any] | str | None, help=SUPPRESS)
    for name in (*UNUSED, *(f"model.{name}" for name in UNUSED_MODEL)):
        made.add_argument(f"--{name}", type=Any, help=SUPPRESS)
    return made


def analyze_command(arguments: Sequence[str]) -> None:
    """Parses, analyses, writes and says what was found.

    Raises:
        MergeError: anything that the user can mend.
    """
    made = parser()
    with parsing(arguments, lambda: [action.dest for action in made._actions]):
        options = made.parse_args(list(arguments))
    check_finite({"ratios": options.ratios})
    if options.output is None:
        raise MergeError("analyze needs --output, the folder to write")
    if not options.model.experts:
        raise MergeError("nothing to analyse: give --config with model.experts, or --model.experts.TASK FILE for each")
    check_output(options.output, options.overwrite, ANALYSIS)
    experts = Experts(
        expert_files(options.model.experts, options.model.base),
        options.model.base,
        options.model.exclude or (),
        options.model.crop,
    )
    matrices = options.matrices or method_matrices(options.model.method) or "block"
    analysis = analyze(experts, options.ratios, matrices, options.normalise)
    write_analysis(analysis, options.output, options.overwrite)
    console = terminal()
    console.print(analysis_table(analysis))
    written = "figures, curves.csv, spectra.csv, cosines.csv, summary.json"
    console.print(f"Written to {options.output}: {written}", soft_wrap=True)


def method_matrices(method: dict[str, Any] | str | None) -> str | list[str] | None:
    """The matrices that a configuration's method names; None where it names none."""
    if not isinstance(method, dict):
        return None
    # Options of the command line stand next to `init_args` here.
    found = ((method.get("init_args") or {}) | method).get("matrices")
    if found is None or isinstance(found, str) or (isinstance(found, list) and all(isinstance(x, str) for x in found)):
        return found
    raise MergeError(f"model.method.matrices={found!r}: expected block, all, every or a list of name patterns")
