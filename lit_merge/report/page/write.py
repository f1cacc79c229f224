"""The page of a report: templates, styles, scripts and data in one file of HTML."""

import base64
import hashlib
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from lit_merge.checkpoints import write_text
from lit_merge.checkpoints.kinds import Kind
from lit_merge.errors import MergeError
from lit_merge.report.page.content import EVERY_STATE, About, content_of
from lit_merge.report.report import HEADINGS
from lit_merge.report.run_folder import RunFolder
from lit_merge.report.weight_tree import megabytes

# The libraries that draw, and what draws with them.
SCRIPTS = ("vendor/d3.min.js", "vendor/plot.umd.min.js", "script.js")
# Of what is known of a run, what scripts draw; the template has the rest.
DRAWN = ("name", "kept", "accuracy", "sizes", "coefficients", "curves", "bank")
MARK = '<meta name="generator" content="lit_merge report">'
# A page that is sent by mail.
LARGEST = 5_000_000

PAGE = Kind("report", lambda path: MARK in path.read_text(encoding="utf-8")[:2000])


def report_page(*runs: str | Path | RunFolder) -> str:
    """The page of one run, or of several side by side, as HTML that needs no network.

    Raises:
        MergeError: no run, a folder that is none, or a damaged file in it.
    """
    if not runs:
        raise MergeError("report: name the folder of a run, or of several")
    folders = [run if isinstance(run, RunFolder) else RunFolder(run) for run in runs]
    found = [content_of(folder) for folder in folders]
    for about, name in zip(found, told_apart(found), strict=True):
        about["name"] = name
    scripts = [_part(name) for name in SCRIPTS]
    measured = {key for about in found if about["accuracy"] for key in about["accuracy"]["mean"]}
    environment = Environment(
        loader=PackageLoader("lit_merge.report", "page"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    # Tasks stay in their order.
    environment.policies["json.dumps_kwargs"] = {"sort_keys": False}
    environment.filters |= {"megabytes": megabytes, "cell": cell}
    return environment.get_template("template.html").render(
        runs=found,
        data=[{name: about[name] for name in DRAWN} for about in found],
        states=EVERY_STATE,
        headings={key: text.replace("\n", " ") for key, text in HEADINGS.items() if key in measured},
        style=_part("style.css"),
        scripts=scripts,
        digests=[_digest(script) for script in scripts],
        licences=_part("vendor/LICENSES.md").replace("--", "- -"),
        versions=versions_of(found),
    )


def write_report(output: str | Path, *runs: str | Path | RunFolder, overwrite: bool = False) -> None:
    """Writes `report_page` to a file.

    Raises:
        MergeError: as `report_page`; a file that exists, and `overwrite` is off or it is no such page.
    """
    write_text(output, report_page(*runs), overwrite, PAGE)


def told_apart(found: Sequence[About]) -> list[str]:
    """Names of runs; where folders are called alike, with as much of their paths as tells them apart."""
    parts = [Path(about["folder"]).absolute().parts for about in found]
    deep = 1
    while deep < max(map(len, parts)) and len({part[-deep:] for part in parts}) < len(set(parts)):
        deep += 1
    return ["/".join(part[-deep:]) for part in parts]


def versions_of(found: Sequence[About]) -> dict[str, list[str]]:
    """Package → its version in every run."""
    names = dict.fromkeys(name for about in found for name in about["versions"])
    return {name: [str(about["versions"].get(name, "–")) for about in found] for name in names}


def cell(value: float | None, key: str) -> str:
    """A number as the table of a run shows it.

    >>> cell(0.5, "static_accuracy"), cell(0.5, "static_entropy"), cell(None, "images")
    ('50.0', '0.500', '–')
    """
    if value is None or value != value:
        return "–"
    if key == "images":
        return f"{value:.0f}"
    return f"{value:.3f}" if key.endswith("entropy") else f"{100 * value:.1f}"


def _part(name: str) -> str:
    text = files("lit_merge.report.page").joinpath(name).read_text(encoding="utf-8")
    assert "</script" not in text.lower() or name.endswith((".html", ".md"))
    return text


def _digest(script: str) -> str:
    """As a content security policy names a script that may run."""
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
