"""Odd options: seeds, devices, numbers far out, texts that are no UTF-8, places that cannot be read or written."""

import os
from pathlib import Path

from campaigns import forks
from campaigns.readers import _load
from campaigns.trees import difference, tree
from campaigns.trial import CLEAN, RIGHT, Campaign, Place, Result, failed

NOBODY = 65534
WHOLE = [
    "-1",
    "0",
    "1",
    "2",
    "3",
    "4294967295",
    "4294967296",
    "18446744073709551616",
    "1000000000000",
    "-1000000000000",
]
NUMBERS = [*WHOLE, "0.5", "1e-320", "1e-30", "1e30", "1e400", "-1e400", "nan", "inf", "-inf", "1_0", "0x10", "٣", "1,5"]
TEXTS = [
    "",
    " ",
    "x",
    "none",
    "None",
    "null",
    "true",
    "[]",
    "{}",
    "[1,",
    "{a: b",
    "~",
    "$HOME",
    "$NONE",
    "@x",
    "%s",
    "\n",
    "a\nb",
    "'",
    '"',
    "é",
    os.fsdecode(b"\xff\xfe"),
    "\ud800",
    "x" * 300,
    "x" * 100_000,
    "../x",
    "*",
    "auto",
]
PLACES = [
    "",
    ".",
    "..",
    "/",
    "~",
    "/dev/null",
    "/dev/full",
    "/proc/self/mem",
    "/proc/x",
    "pipe",
    "closed/x",
    "file/x",
    "folder",
    "link",
    "loop",
    "a" * 256,
    "a/" * 2500 + "x",
    os.fsdecode(b"\xff.safetensors"),
    "a\nb",
    "zoo:8",
    "zoo:x",
    "hf://x",
    "hf://a/b",
    "$NONE/x",
    " ",
    "-",
    "--output",
    "x.pt",
    "x.tar",
    "x.safetensors/",
]
# Option → values; of which verbs.
ODD = {
    "merge": {"model.method.rank_ratio": NUMBERS, "model.method.scaling": NUMBERS, "model.method": TEXTS,
              "model.base": PLACES, "model.exclude": TEXTS, "dtype": TEXTS, "naming": TEXTS, "max_shard_size": NUMBERS,
              "devices": [*WHOLE, *TEXTS], "accelerator": TEXTS, "output": PLACES, "seed_everything": NUMBERS,
              "model.experts": [*PLACES, *TEXTS], "config": [*PLACES, *TEXTS], "trainer.devices": NUMBERS,
              "trainer.accelerator": TEXTS, "trainer.precision": TEXTS, "threads": NUMBERS, "model.svd": TEXTS},
    "export": {"rank_ratio": NUMBERS, "energy": NUMBERS, "format": TEXTS, "task": TEXTS, "model.bank": PLACES,
               "output": PLACES, "model.decompositions": PLACES, "dtype": TEXTS},
    "convert": {"output": PLACES, "base": PLACES, "dtype": TEXTS, "naming": TEXTS,
                "max_shard_size": [*NUMBERS, *TEXTS]},
    "inspect": {"x": TEXTS},
    "zoo": {"output": PLACES},
    "test": {"data.batch_size": NUMBERS, "data.eval_batch_size": NUMBERS, "data.path": PLACES, "data.seed": NUMBERS,
             "seed_everything": NUMBERS, "trainer.devices": [*NUMBERS, *TEXTS], "trainer.accelerator": TEXTS,
             "model.network.config": PLACES, "model.network.heads": PLACES, "data.protocol": TEXTS, "output": PLACES,
             "trainer.limit_test_batches": NUMBERS, "trainer.num_nodes": NUMBERS, "trainer.strategy": TEXTS},
    "predict": {"output": PLACES, "trainer.limit_predict_batches": NUMBERS, "data.tasks": TEXTS},
    "fit": {"run": PLACES, "ckpt_path": PLACES, "data.batch_size": NUMBERS, "trainer.max_steps": NUMBERS,
            "seed_everything": NUMBERS, "trainer.gradient_clip_val": NUMBERS,
            "trainer.accumulate_grad_batches": NUMBERS,
            "model.bounds": [*TEXTS, "[0,1]", "[1,0]", "[nan,1]"], "model.stages": TEXTS, "model.objective": TEXTS},
    "sweep": {"scalings": [*TEXTS, *(f"[{one}]" for one in NUMBERS)], "rank_ratios": [f"[{one}]" for one in NUMBERS],
              "images": NUMBERS, "output": PLACES, "select": TEXTS, "inputs": TEXTS},
    "analyze": {"ratios": [*TEXTS, *(f"[{one}]" for one in NUMBERS)], "matrices": TEXTS, "output": PLACES},
}  # fmt: skip
SLOW = ("fit", "sweep", "analyze")


class Options(Campaign):
    """One odd option each: done, or refused in one line with nothing left behind."""

    name = "options"
    share = 1.5

    def __init__(self, place: Place, seed: int) -> None:
        super().__init__(place, seed)
        # A container may know one user alone.
        self.others = not os.getuid() and forks.Process(int, user=NOBODY).end().code == 0

    def trial(self, number: int) -> Result:
        draw, work = self.draw(number), self.place.emptied()
        verb = draw.choice([verb for verb in ODD if verb not in SLOW or number % 4 == 0])
        option = draw.choice([*ODD[verb]])
        value = draw.choice(ODD[verb][option])
        arguments = self.arguments(verb, option, value)
        about = f"{verb} --{option} {value[:60]!a}"
        surroundings(work)
        user = NOBODY if (draw.random() < 0.5 or value == "closed/x") and self.others else None
        if user is not None:
            os.chown(work, user, user)
        before = tree(work)
        ended = forks.run(arguments, work, user)
        if not ended.code:
            return self.done(about, work)
        wrong = "" if ended.refused else str(ended)
        wrong = wrong or difference(tree(work), before)
        return failed(about, wrong) if wrong else Result(CLEAN, about)

    def done(self, about: str, work: Path) -> Result:
        """Weights that were written are whole and finite, and nothing is left behind."""
        import numpy as np

        left = [path.name for path in work.rglob(".*")]
        wrong = f"{left[0]} is left" if left else ""
        for path in [] if wrong else filter(Path.is_file, work.glob("*.safetensors")):
            if not all(np.isfinite(one).all() for one in _load(path).values()):
                wrong = f"{path.name} is not finite"
        return failed(about, wrong) if wrong else Result(RIGHT, about)

    def arguments(self, verb: str, option: str, value: str) -> list[str]:
        root = self.place.inputs
        if verb == "inspect":
            return [verb, value]
        outputs = {"merge": "out.safetensors", "convert": "out.safetensors", "predict": "out.csv", "test": "out.json"}
        given = {"run" if verb == "fit" else "output": outputs.get(verb, "out")}
        start = [str(root / "last.pt")] if verb == "convert" else ["14"] if verb == "zoo" else []
        if verb not in ("convert", "zoo"):
            given = {"config": str(root / "config.yaml")} | given
        if verb == "fit":
            given |= {"trainer.max_steps": "1"}
        if verb == "sweep":
            given |= {
                "select": "entropy",
                "inputs": "unlabelled",
                "images": "2",
                "rank_ratios": "[0.5]",
                "scalings": "[1.0]",
            }
        if verb == "analyze":
            given |= {"ratios": "[0.5]", "matrices": '["*.c_fc.weight"]'}
        return [verb, *start, *(f"--{name}={one}" for name, one in (given | {option: value}).items())]


def surroundings(work: Path) -> None:
    """What odd paths meet: a named pipe, a closed folder, a file, a folder, links."""
    os.mkfifo(work / "pipe")
    (work / "closed").mkdir(mode=0o500)
    (work / "file").write_text("something")
    (work / "folder").mkdir()
    (work / "link").symlink_to("folder")
    (work / "loop").symlink_to("loop")
