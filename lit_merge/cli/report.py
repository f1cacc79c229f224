"""The verb `report`: runs in, one web page out."""

from collections.abc import Sequence

from lit_merge.checkpoints import check_output
from lit_merge.cli.command_parser import CommandParser
from lit_merge.cli.written_output import say_written
from lit_merge.report.page import PAGE, write_report

ABOUT = (
    "Writes one web page about a run of fit, or about several side by side: accuracies, coefficients, training, task "
    "bank, samples, recipe. The page holds everything that it shows and needs no network."
)


def report_command(arguments: Sequence[str]) -> None:
    """Parses, reads the runs and writes the page.

    Raises:
        MergeError: an option that does not exist, a folder that is no run, a path that cannot be written.
    """
    parser = CommandParser("report", ABOUT)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="a folder that `fit` has written")
    parser.add_argument("--output", default="report.html", help="the page; report.html by default")
    parser.add_argument("--overwrite", action="store_true", help="replace the page that stands there")
    options = parser.parse_args(arguments)
    check_output(options.output, options.overwrite, PAGE)
    write_report(options.output, *options.runs, overwrite=options.overwrite)
    say_written(options.output)
