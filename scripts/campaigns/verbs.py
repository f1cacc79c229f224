"""Commands that write, each with what it writes and with another command whose output it may replace."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Command:
    """A command of the package.

    Attributes:
        name: tells it from the others.
        arguments: of `python -m lit_merge`.
        outputs: what it writes, relative to the folder where it runs.
        before: arguments of a command that has written the same outputs before; none for a place that is empty.
    """

    name: str
    arguments: tuple[str, ...]
    outputs: tuple[str, ...]
    before: tuple[str, ...] = ()

    @property
    def slow(self) -> bool:
        """Whether it takes seconds: fewer trials are made of it."""
        return self.arguments[:1] in (("fit",), ("sweep",), ("analyze",))


def commands(root: Path) -> list[Command]:
    """All that write, on the inputs of `write_inputs`."""
    config = ("--config", str(root / "config.yaml"))
    bank, saved = ("--model.bank", str(root / "bank")), ("--bank", str(root / "bank"))
    expert = str(root / "experts" / "alpha.safetensors")
    file, folder = ("--output", "out.safetensors"), ("--output", "out")
    shards, ratio = ("--max_shard_size", "20KB"), ("--model.method.rank_ratio", "0.25")
    pt, fit = str(root / "last.pt"), ("fit", "--config", str(root / "fit.yaml"), "--run", "out")
    analyze = ("analyze", *config, *folder, "--ratios", "[0.5,1.0]")
    routed = ("--route", "prototypes", "--prototypes", "p.safetensors")
    unlabelled = ("--select", "entropy", "--inputs", "unlabelled", "--images", "4")
    sweep = ("sweep", *config, *folder, *unlabelled, "--rank_ratios", "[0.5]")
    made = [
        ("merge-file", ("merge", *config, *file), ratio),
        ("merge-folder", ("merge", *config, *folder), ratio),
        ("merge-shards", ("merge", *config, *folder, *shards), ratio),
        ("merge-bank", ("merge", *bank, *file), ("--dtype", "float16")),
        ("export-built", ("export", *config, *folder), ratio),
        ("export-kept", ("export", *config, *folder, "--model.decompositions", "kept"), ratio),
        (
            "export-saved",
            ("export", *bank, *folder, "--rank_ratio", "0.25"),
            ("--dtype", "float32"),
        ),
        ("export-merged", ("export", *bank, *file, "--format", "merged"), ("--dtype", "float16")),
        ("export-shards", ("export", *bank, *folder, "--format", "merged", *shards), ("--dtype", "float16")),
        ("export-task", ("export", *bank, *file, "--format", "task", "--task", "beta"), ("--task", "alpha")),
        ("export-small", ("export", *bank, *folder, "--budget", "1.5x"), ("--budget", "2x")),
        ("export-base", ("export", *config, *folder, "--origin", "base"), ("--dtype", "int8")),
        ("export-clip", ("export", *config, *folder, "--format", "hugging_face"), ratio),
        ("export-lora", ("export", *bank, *folder, "--format", "lora", "--task", "beta"), ("--task", "alpha")),
        ("bank-add", ("bank", "add", *saved, "--task", "delta", "--expert", expert, *folder), ("--task", "other")),
        ("bank-remove", ("bank", "remove", *saved, "--task", "beta", *folder), ("--task", "alpha")),
        ("bank-rename", ("bank", "rename", *saved, "--task", "beta", "--to", "b", *folder), ("--to", "other")),
        ("report", ("report", str(root / "run"), "--output", "out.html"), ()),
        ("route", ("test", *config, "--output", "out.json", *routed), ()),
        ("init", ("init", str(root), "--output", "out.yaml"), ()),
        ("convert-file", ("convert", pt, *file), ("--dtype", "float16")),
        ("convert-shards", ("convert", pt, *folder, *shards), ("--dtype", "float16")),
        ("predict-csv", ("predict", *config, "--output", "out.csv"), ratio),
        ("predict-lines", ("predict", *config, "--output", "out.jsonl"), ratio),
        ("test", ("test", *config, "--output", "out.json"), ratio),
        ("analyze", analyze, ("--matrices", '["*.c_fc.weight"]')),
        ("zoo", ("zoo", "14", *folder), ()),
        ("sweep", (*sweep, "--scalings", "[0.5,1.0]"), ("--scalings", "[0.5]")),
        ("fit", fit, ("--data.batch_size", "3")),
    ]
    found = []
    for name, arguments, other in made:
        outputs = [arguments[arguments.index("--run" if name == "fit" else "--output") + 1]]
        outputs += ["small"] if name == "fit" else {"export-kept": ["kept"], "route": ["p.safetensors"]}.get(name, [])
        found.append(Command(name, arguments, tuple(outputs)))
        if other:
            # What a callback writes has an option of its own.
            over = (*(one.replace("fit.yaml", "fit-over.yaml") for one in arguments), "--overwrite")
            found.append(Command(f"{name}-over", over, tuple(outputs), (*arguments, *other)))
    return found
