"""Draws the README's figure, docs/figures/quickstart.svg, from the table of the run that scripts/quickstart makes."""

import argparse
import sys
from pathlib import Path

from lit_merge.errors import MergeError
from lit_merge.report.accuracy_figure import accuracy_figure
from lit_merge.report.figure_files import save_figure

ROOT = Path(__file__).parents[1]

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", nargs="?", default="runs/quickstart")
    parser.add_argument("--output", default=ROOT / "docs" / "figures" / "quickstart.svg", type=Path)
    options = parser.parse_args()
    options.output.parent.mkdir(parents=True, exist_ok=True)
    try:
        save_figure(accuracy_figure(options.run), options.output, overwrite=True)
    except MergeError as error:
        sys.exit(f"draw_quickstart: {error}")
    print(options.output)
