"""A whole sweep: a folder that fills point by point, a live table, and a choice at the end."""

import warnings
from dataclasses import replace
from pathlib import Path

import torch

from lit_merge.choose.sample import Probe
from lit_merge.choose.scale import doubts
from lit_merge.choose.sources import Sources
from lit_merge.choose.sweep.folder import SweepFolder
from lit_merge.choose.sweep.grid import Grid, walk
from lit_merge.choose.sweep.points import Inputs, Point, Select, at_edge, choose
from lit_merge.choose.sweep.progress import SweepProgress
from lit_merge.choose.unlabelled import built
from lit_merge.data import TaskData
from lit_merge.errors import MergeError, MergeWarning, check_between, check_choice


def run_sweep(
    sources: Sources,
    data: TaskData,
    grid: Grid,
    output: str | Path,
    select: Select = "accuracy",
    inputs: Inputs | None = None,
    images: int = 256,
    overwrite: bool = False,
    device: torch.device | None = None,
) -> Point:
    """Reads every point of the grid that the folder `output` does not hold yet, and answers the best.

    The folder is left with results.csv (a line per point), table.txt, heatmap and curves (PNG and SVG), and
    chosen.yaml, a configuration to put after the sweep's own.

    Args:
        sources: whose experts, network, transform and decompositions are used.
        data: where the inputs come from.
        grid: the points.
        output: the folder.
        select: see `choose`.
        inputs: `validation`, with labels, of which only `accuracy` makes use; or `unlabelled`, those that are adapted
            on. Validation inputs by default, where there are some.
        images: of every task, where they are unlabelled.
        overwrite: start afresh where the folder holds another sweep.
        device: where the network runs; the CPU by default.

    Raises:
        MergeError: experts that are not known (a bank only), no labels to select by, another sweep in the folder.
    """
    experts, network = sources.experts, built(sources.unlabelled.network)
    if experts is None:
        raise MergeError("sweep builds banks from experts: give --model.experts")
    if network is None:
        raise MergeError("sweep runs a network: give --model.network, for example OpenClipImageEncoder")
    check_between("images", images, 1, 2**31)
    check_choice("select", select, Select)
    check_choice("inputs", inputs, Inputs)
    if data.mixed:
        raise MergeError("sweep asks every expert about inputs of its own task: give data that does not mix the tasks")
    inputs = inputs or ("validation" if data.has("validation") else "unlabelled")
    if select == "accuracy" and inputs == "unlabelled":
        raise MergeError(
            "select=accuracy needs labelled validation data; agreement, entropy and self_consistent do not"
        )
    if select == "self_consistent" and experts.base is None:
        raise MergeError("select=self_consistent needs the pretrained checkpoint: give --model.base")
    plan = {
        "methods": [method.describe() for method in grid.methods],
        "rank_ratios": grid.ranks,
        "scalings": grid.scalings,
        "transform": sources.transform and sources.transform.describe(),
        "experts": experts.identity or experts.tasks,
        "data": [data.protocol, *data.tasks],
        "inputs": inputs if inputs == "validation" else [inputs, images],
    }
    with SweepFolder(output, plan, overwrite, set(grid.keys())) as folder:
        grid = replace(grid, methods=tuple(sources.unlabelled.prepare(method, experts) for method in grid.methods))
        network = network.to(device or torch.device("cpu"))
        labelled = inputs == "validation"
        probe = Probe.labelled(network, data, "validation") if labelled else Probe.draw(network, data, images)
        probe.ask_experts(lambda task: {n: experts.checkpoints[task].read(n).float() for n in experts.shapes})
        with SweepProgress(len(grid), select) as progress:
            for point in walk(grid, experts, probe, None, sources.transform, sources.decompositions, folder.points):
                folder.add(point)
                progress.update(list(folder.points.values()))
        chosen = choose(list(folder.points.values()), select)
        method = next(method for method in grid.methods if type(method).__name__ == chosen.method)
        doubted = [] if select == "accuracy" else doubts(probe, chosen.balance, select == "entropy")
        if at_edge(list(folder.points.values()), chosen):
            doubted.append(f"the chosen scaling {chosen.scaling:g} is at the edge of the grid: widen --scalings")
        for one in doubted:
            warnings.warn(f"select={select}: {one}", MergeWarning, stacklevel=2)
        folder.finish(chosen, method, select)
    return chosen
