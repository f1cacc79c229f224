"""Merged weights with their heads as a program of PyTorch (`torch.export`) or ONNX, which runs without lit_merge."""

import copy
import json
import logging
import warnings
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lit_merge.bank.task_bank import TaskBank
from lit_merge.checkpoints import replacing
from lit_merge.checkpoints.kinds import Kind
from lit_merge.errors import MergeError, first_line
from lit_merge.networks import Network
from lit_merge.networks.network import compute_dtype

Program = Literal["torch_export", "onnx"]
SUFFIXES: dict[Program, str] = {"torch_export": ".pt2", "onnx": ".onnx"}
# What a file of protocol buffers holds at most.
LARGEST = 2**31 - 2**20
# Under which both formats keep the names of the classes.
CLASS_NAMES = "class_names.json"


class Classifier(nn.Module):
    """An encoder with its weights, and heads on it: named inputs in, logits (B, C) of every task out.

    Args:
        network: whose encoder is copied.
        weights: of the encoder, by canonical names.
        tasks: whose logits are answered.
    """

    network: Network

    def __init__(self, network: Network, weights: Mapping[str, Tensor], tasks: Sequence[str]) -> None:
        super().__init__()
        # No module of this one: its encoder and heads are, and PyTorch's exporter makes classes of a module's class,
        # which would be networks of the same name.
        object.__setattr__(self, "network", copy.deepcopy(network))
        # Counters and masks are the encoder's own.
        self.network.encoder.load_state_dict(network.of_encoder(weights), strict=False, assign=True)
        self.encoder = self.network.encoder
        self.tasks = tuple(tasks)
        self.heads = nn.ModuleList(network.heads.alone(task) for task in tasks)
        self.network.heads = None  # type: ignore[assignment]
        self.requires_grad_(False)

    def answer(self, *inputs: Tensor | None) -> dict[str, Tensor]:
        """Logits of every task. Inputs are in the order of `Network.example_inputs`."""
        given = [one for one in inputs if one is not None]
        features = self.network.features_of(dict(zip(self.network.example_inputs(), given, strict=True)))
        return {task: head(features) for task, head in zip(self.tasks, self.heads, strict=True)}


class OfOne(Classifier):
    """Of one input, as images."""

    def forward(self, inputs: Tensor) -> dict[str, Tensor]:
        return self.answer(inputs)


class OfTokens(Classifier):
    """Of texts, by the names that transformers has for their parts."""

    # Spelled out: PyTorch's exporter does not take any number of inputs.
    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None
    ) -> dict[str, Tensor]:
        return self.answer(input_ids, attention_mask, token_type_ids)


def export_program(
    bank: TaskBank,
    output: str | Path,
    network: Network,
    program: Program,
    task: str | None = None,
    dtype: torch.dtype | None = None,
    overwrite: bool = False,
) -> None:
    """Writes one file. Inputs are those of `Network.example_inputs`, by name, in batches (and texts) of any size;
    outputs are logits (B, C), one tensor for each task, by its name.

    Args:
        bank: with the coefficients of the merge; or of one task alone.
        output: a file, by convention `.pt2` or `.onnx`.
        network: encoder and heads.
        program: which format.
        task: the only one whose logits are answered; None for all of the bank's.
        dtype: of weights and computation; by default the experts', and float32 at least.
        overwrite: replace what stands there.

    Raises:
        MergeError: a suffix of another format; a package that is missing; weights that are not the network's; a task
            without a head; a model that the exporter cannot trace; more than 2 GB of weights for ONNX.
    """
    check_program(output, program)
    tasks = bank.tasks if task is None else (task,)
    for one in tasks:
        network.heads.require(one)
    network.check(bank.shapes)
    weights = bank.merge(dtype=dtype or compute_dtype(bank.dtypes.values()), naming="canonical")
    inputs = network.example_inputs()
    model = (OfOne if len(inputs) == 1 else OfTokens)(network, weights, tasks).eval()
    size = sum(value.nbytes for value in (*model.parameters(), *model.buffers()))
    if program == "onnx" and size > LARGEST:
        raise MergeError(f"{size / 1e9:.1f} GB of weights, an ONNX file holds 2: take --format torch_export")
    names = {one: network.heads.names[one] for one in tasks if one in network.heads.names}
    with replacing(output, overwrite, _kind(program)) as draft, _exporting(program):
        _write(model, draft, program, inputs, json.dumps(names))


def check_program(output: str | Path, program: Program) -> None:
    """Raises MergeError for the suffix of another format, or where a package is missing."""
    suffix = SUFFIXES[program]
    if Path(output).suffix != suffix:
        raise MergeError(f"{output}: format={program} writes one file: expected a name that ends in {suffix}")
    if program == "onnx":
        try:
            import onnxscript  # noqa: F401
        except ModuleNotFoundError as error:
            raise MergeError("ONNX needs onnx and onnxscript: pip install 'lit_merge[onnx]'") from error


def _write(model: Classifier, draft: Path, program: Program, inputs: Mapping[str, Tensor], names: str) -> None:
    free = torch.export.Dim.DYNAMIC
    # The batch, and of texts the length.
    sizes = tuple({0: free} | ({1: free} if value.ndim == 2 else {}) for value in inputs.values())
    exported = torch.export.export(model, tuple(inputs.values()), dynamic_shapes=sizes)
    if program == "torch_export":
        torch.export.save(exported, draft, extra_files={CLASS_NAMES: names})
        # It writes what it cannot read again, as a model that counts its inputs' marks of an end.
        torch.export.load(draft)
        return
    converted: Any = torch.onnx.export(
        exported, dynamo=True, input_names=list(inputs), output_names=list(model.tasks), verbose=False
    )
    converted.model.metadata_props[CLASS_NAMES] = names
    converted.save(draft, external_data=False)


@contextmanager
def _exporting(program: Program) -> Iterator[None]:
    """What the exporters raise, warn of and log, as ours."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except (OSError, MergeError):
        raise
    except Exception as error:  # exporters fail in as many ways as models are written
        other = next(one for one in SUFFIXES if one != program)
        raise MergeError(
            f"PyTorch's exporter cannot write this model as {program}: {first_line(error)}: try --format {other}"
        ) from error
    finally:
        logging.disable(before)


def _kind(program: Program) -> Kind:
    def is_one(path: Path) -> bool:
        if program == "torch_export" and zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                return any(name.endswith(CLASS_NAMES) for name in archive.namelist())
        with path.open("rb") as file:
            # What is said of a model comes after its weights.
            file.seek(max(0, path.stat().st_size - 2**20))
            return CLASS_NAMES.encode() in file.read()

    return Kind(f"export --format {program}", is_one)
