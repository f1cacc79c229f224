"""Figures as files: PNG for the eye, SVG for papers."""

from pathlib import Path

from matplotlib import rc_context
from matplotlib.figure import Figure

from lit_merge.checkpoints import replacing

FORMATS = ("png", "svg")


def save_figure(figure: Figure, path: str | Path, overwrite: bool = False) -> None:
    """Writes a figure, whole or not at all; the suffix chooses PNG, SVG or PDF. Equal figures give equal files."""
    dates = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}.get(Path(path).suffix, {})
    # Labels of axes are made when they are drawn. Names in an SVG are random without a salt.
    with replacing(path, overwrite) as draft, rc_context({"text.parse_math": False, "svg.hashsalt": "lit_merge"}):
        figure.savefig(draft, dpi=150, metadata=dates)


def save_both(figure: Figure, folder: Path, name: str, overwrite: bool = False) -> None:
    """Writes `NAME.png` and `NAME.svg` into a folder. The figure is laid out once: that costs more than to draw it."""
    for suffix in FORMATS:
        save_figure(figure, folder / f"{name}.{suffix}", overwrite)
        figure.set_layout_engine("none")
