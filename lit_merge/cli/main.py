"""The command line's front door: answers `--help` at once, and turns mistakes into one line and exit code 2."""

import difflib
import sys
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module

from lit_merge import __version__
from lit_merge.cli.manner import settle_manner
from lit_merge.cli.shipped import with_shipped
from lit_merge.cli.threads import settle_number, settle_waiting
from lit_merge.console import plain_warnings
from lit_merge.errors import MergeError

VERBS = {
    "init": "write a first configuration from a folder of experts",
    "fit": "merge, adapt the coefficients on unlabelled data, report, and save the task bank",
    "validate": "accuracy and entropy per task on the validation data",
    "test": "accuracy and entropy per task on the test data",
    "predict": "the five most probable classes of every test input, as CSV, Parquet or JSON lines",
    "merge": "merge without adapting, as one safetensors file or as the folder of a model; --dry-run only reports",
    "export": "write a task bank compressed, as merged weights, or as the weights of one task",
    "sweep": "merge at every point of a grid of methods, ranks and scales, and choose one, with labels or without",
    "analyze": "figures and tables of the experts: interference, reconstruction error, spectra, cosines",
    "report": "one web page about a run of fit, or about several side by side",
    "inspect": "any checkpoint, bank or run as a tree, from its headers",
    "bank": "compare saved task banks; `bank --help` lists its commands",
    "convert": "a checkpoint of any format (torch.save, shards, Hugging Face, LoRA, hf://…) as safetensors",
    "leaks": "look for test images among the images adapted on",
    "explain": "what a method, objective, network, callback or option does, and when to use it",
    "zoo": "list the built-in suite of experts, or copy its files",
}

# Verb → the module of its function, and the function.
HOMES = {
    "init": ("init", "init_command"),
    "merge": ("merge", "merge"),
    "export": ("export", "export"),
    "sweep": ("sweep", "sweep"),
    "analyze": ("analyze", "analyze_command"),
    "report": ("report", "report_command"),
    "inspect": ("inspect", "inspect_command"),
    "bank": ("bank", "bank_command"),
    "convert": ("convert", "convert_command"),
    "leaks": ("leaks", "leaks_command"),
    "explain": ("explain", "explain_command"),
    "zoo": ("zoo", "zoo"),
}
# The verbs that need Lightning have two, which take the verb as well: the first one checks without Lightning.
LIGHTNING = ("lightning_verbs", "check"), ("lightning_cli", "run")

HELP = f"""\
usage: lit-merge VERB [--config FILE.yaml] [--option value …]

Merges fine-tuned models that share a pretrained checkpoint, adapts the merge on unlabelled data, and exports the
result as a small low-rank task bank.

verbs:
{chr(10).join(f"  {verb:9s} {text}" for verb, text in VERBS.items())}

One YAML file describes a merge and serves every verb; options on the command line go over it:
  lit-merge fit    --config configs/quickstart.yaml
  lit-merge merge  --config configs/cart.yaml --model.method.rank_ratio 0.12 --output merged.safetensors
  lit-merge test   --config configs/cart.yaml --model.bank runs/cart/bank
  lit-merge export --config configs/cart.yaml --model.bank runs/cart/bank --output small --dtype float16

`lit-merge VERB --help` lists a verb's options; `--print-completion bash` (or zsh) prints a script by which a
shell completes them. Exit code 2 and one line say what is wrong with an input.
"""


# Of what the system refuses: closed folders, names that are too long, disks that have gone.
REMEDY = "check that the path exists and that this user may read and write it"


def main(arguments: Sequence[str]) -> int:
    """Runs one command; returns its exit code."""
    verb, *rest = arguments or ["--help"]
    if verb in ("-h", "--help", "help"):
        print(HELP, end="")
        return 0
    if verb == "--version":
        print(f"lit_merge {__version__}")
        return 0
    try:
        if verb == "--print-completion":
            from lit_merge.cli.completion import completion

            print(completion(rest, VERBS, lambda verb: run_verb(verb, [])), end="")
            return 0
        if verb.startswith("-"):
            raise MergeError(
                f"{verb}: name the verb first, as `lit-merge merge {verb} …`; `lit-merge --help` lists them"
            )
        if verb not in VERBS:
            near = difflib.get_close_matches(verb, VERBS, n=1, cutoff=0)[0]
            raise MergeError(f"no verb {verb!r}; the nearest is {near}; `lit-merge --help` lists them")
        plain_warnings()
        rest = with_shipped(settle_manner(verb, settle_waiting(rest)))
        # Imported here: torch takes seconds, and Lightning more, which a --help or a typing error must not.
        from lit_merge.checkpoints.inputs import one_command

        with one_command():
            for run, given in calls(verb, rest):
                run(given)
    except MergeError as error:
        print(f"lit_merge: error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        if error.filename is None:
            raise  # no file of the user's
        print(f"lit_merge: error: {MergeError(f'{error.filename}: {error.strerror}: {REMEDY}')}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("lit_merge: interrupted", file=sys.stderr)
        return 130
    return 0


def calls(verb: str, arguments: Sequence[str]) -> Iterator[tuple[Callable[[Sequence[str]], object], Sequence[str]]]:
    """What runs a verb, one after the other, with its arguments; each is imported when its turn comes."""
    for module, name in [HOMES[verb]] if verb in HOMES else LIGHTNING:
        run = getattr(import_module(f"lit_merge.cli.{module}"), name)
        settle_number()
        yield run, arguments if verb in HOMES else [verb, *arguments]


def run_verb(verb: str, arguments: Sequence[str]) -> None:
    """Runs a verb as `main` does, without what `main` makes of errors."""
    for run, given in calls(verb, arguments):
        run(given)
