"""Readers and writers at once: what is read is of one writer, whole, or refused; two writers do not mix."""

import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from campaigns import forks, inputs
from campaigns.forks import Process
from campaigns.trees import difference, tree
from campaigns.trial import CLEAN, RIGHT, Campaign, Result, failed

SECONDS = 1.5
"""So long others overwrite what is read."""
FORWARD, BACKWARD = (list(inputs.CLASSES), list(inputs.CLASSES)[::-1])


class Together(Campaign):
    """In turn: banks, files and shards that are overwritten while they are loaded; a base that is replaced while banks
    that refer to it are loaded; an expert's file that is replaced,
    grown, cut or overwritten between two reads; two commands with one output."""

    name, light = "together", True
    share = 1.5

    def trial(self, number: int) -> Result:
        work, draw = self.place.emptied(), self.draw(number)
        kinds: dict[str, Callable[[], Result]] = {
            "bank": lambda: self.overwritten("bank", save_bank, load_bank),
            "file": lambda: self.overwritten("out.safetensors", write_merge, load_all),
            "shards": lambda: self.overwritten("out", write_shards, load_all),
            "base": lambda: self.referred(work),
            "expert": lambda: self.replaced(work, draw),
            "same": lambda: self.same(work),
        }
        return kinds[[*kinds][number % len(kinds)]]()

    def overwritten(self, name: str, write: Callable[..., None], load: Callable[[Path], list[Any]]) -> Result:
        """Two models are written to one place in turn, while another process loads from it all the time."""
        target, about = self.place.work / name, f"loads of {name} while it is overwritten"

        def prepare() -> None:
            for i, order in enumerate((FORWARD, BACKWARD)):
                write(self.place, self.place.work / f"{i}-{name}", order)

        if (ended := Process(prepare, self.place.work).end()).code:
            return failed(about, str(ended))
        shutil.copytree(target.with_name(f"0-{name}"), target) if target.with_name(
            f"0-{name}"
        ).is_dir() else shutil.copy(target.with_name(f"0-{name}"), target)

        def writer() -> None:
            for i in range(10**6):
                write(self.place, target, (BACKWARD, FORWARD)[i % 2])

        def reader() -> int:
            from lit_merge import MergeError

            wanted, loads, refused, ends = [load(target.with_name(f"{i}-{name}")) for i in range(2)], 0, 0, time.time()
            while time.time() < ends + SECONDS:
                try:
                    found = load(target)
                except MergeError:
                    refused += 1
                else:
                    if not any(alike(found, one) for one in wanted):
                        print("what was loaded is of neither")
                        return 1
                loads += 1
            print(f"{loads} {refused}")
            return 0

        return read_while(writer, reader, self.place.work, about)

    def referred(self, work: Path) -> Result:
        """A bank is loaded by reference to a base whose file is another one half of the time: its own, or refused."""
        about, base = "loads of a bank by reference while its base is replaced", work / "base.safetensors"

        def prepare() -> None:
            from lit_merge.merge.compressed_bank import compress_bank

            for i, name in enumerate(("base.safetensors", "experts/beta.safetensors")):
                shutil.copy(self.place.inputs / name, work / f"{i}-base")
            shutil.copy(work / "0-base", base)
            compress_bank(_bank(self.place, FORWARD), work / "bank", origin="base", base=base)

        if (ended := Process(prepare, work).end()).code:
            return failed(about, str(ended))

        def writer() -> None:
            for i in range(10**6):
                shutil.copy(work / f"{(i + 1) % 2}-base", work / "beside")
                os.replace(work / "beside", base)
                time.sleep(0.01)

        def reader() -> int:
            from lit_merge import MergeError, TaskBank

            def load(base: Path) -> list[Any]:
                return [*TaskBank.load(work / "bank", base).expert("alpha").values()]

            wanted, loads, refused, ends = load(work / "0-base"), 0, 0, time.time()
            while time.time() < ends + SECONDS or loads < 2:
                try:
                    if not alike(load(base), wanted):
                        print("what was loaded is of another base")
                        return 1
                except MergeError:
                    refused += 1
                loads += 1
            print(f"{loads} {refused}")
            return 0

        return read_while(writer, reader, work, about)

    def replaced(self, work: Path, draw: random.Random) -> Result:
        """An expert's file changes between two reads of one opened checkpoint: what is read is of the old file."""
        suffix = draw.choice(["safetensors", "pt"])
        how = draw.choice(["renamed", "overwritten", "cut", "grown", "removed"])
        after = draw.randint(0, 4)
        about = f"a .{suffix} file {how} after {after} reads"
        path = work / f"expert.{suffix}"

        def reads() -> int:
            import torch
            from safetensors.torch import save_file

            from lit_merge import MergeError
            from lit_merge.checkpoints import open_checkpoint

            save = torch.save if suffix == "pt" else save_file
            torch.manual_seed(0)
            old = {f"w{i}": torch.randn(64, 64) for i in range(5)}
            save(old, path)
            opened, held, refused = open_checkpoint(path), {}, 0
            for i, name in enumerate(old):
                if i == after:
                    change(path, how, lambda other: save({f"w{i}": torch.randn(80, 64) for i in range(6)}, other))
                try:
                    held[name] = opened.read(name)
                    if not torch.equal(held[name], old[name]):
                        print(f"{name} is read as something else", file=sys.stderr)
                        return 1
                except MergeError:
                    refused += 1
            return 2 if refused else 0

        ended = Process(reads, work).end()
        if ended.code not in (0, 2):
            return failed(about, str(ended))
        return Result(CLEAN if ended.code else RIGHT, about)

    def same(self, work: Path) -> Result:
        """Two commands at once with one output: one of them may be refused; the output is that of either."""
        about = "two merges at once to one file"
        arguments = ["merge", "--model.method", "CART", "--output", "out.safetensors", "--model.method.scaling", "1.0"]
        arguments += ["--model.experts", str(self.place.inputs / "experts")]
        if (ended := forks.run(arguments, work)).code:
            return failed(about, f"alone: {ended}")
        wanted = tree(work)
        both = [Process(forks.command(arguments), self.place.emptied())]
        both.append(Process(forks.command(arguments), work))
        ends = [one.end() for one in both]
        wrong = [str(one) for one in ends if one.code and not one.refused]
        if wrong or all(one.code for one in ends):
            return failed(about, "; ".join(map(str, ends)))
        wrong = difference(tree(work), wanted)
        return failed(about, wrong) if wrong else Result(RIGHT, about)


def read_while(writer: Callable[[], None], reader: Callable[[], int], folder: Path, about: str) -> Result:
    """Runs a writer for as long as a reader reads, which prints how often it has, and how often it was refused."""
    writing, reading = Process(writer, folder), Process(reader, folder)
    ended = reading.end()
    writing.kill()
    wrote = writing.end()
    if ended.code or wrote.code != -signal.SIGKILL:
        return failed(about, f"{ended}; {ended.out.strip()}; the writer: {wrote}")
    loads, refused = map(int, ended.out.split()[-2:])
    return Result(RIGHT, f"{about}: {loads}, of which {refused} were refused", max(1, loads))


def change(path: Path, how: str, save: Callable[[Path], None]) -> None:
    if how == "renamed":
        save(beside := path.with_name("beside"))
        os.replace(beside, path)
    elif how == "overwritten":
        save(path)
    elif how == "removed":
        path.unlink()
    else:
        os.truncate(path, path.stat().st_size // 2 if how == "cut" else path.stat().st_size * 2)


def _bank(place: Any, order: list[str]) -> Any:
    from lit_merge import CART, build_bank

    paths = inputs.experts(place.inputs)
    ratio = 0.5 if order == FORWARD else 0.25
    return build_bank({task: paths[task] for task in order}, method=CART(rank_ratio=ratio, scaling=1.5))


def save_bank(place: Any, path: Path, order: list[str]) -> None:
    _bank(place, order).save(path, overwrite=True)


def load_bank(path: Path) -> list[Any]:
    from lit_merge import TaskBank

    bank = TaskBank.load(path)
    return [one for task in FORWARD for one in bank.expert(task).values()]


def _merge(place: Any, path: Path, order: list[str], shards: str | None) -> None:
    from lit_merge import merge_files
    from lit_merge.methods import CART

    paths = inputs.experts(place.inputs)
    scale = 1.0 if order == FORWARD else 2.0
    method = CART(rank_ratio=0.5, scaling=scale)
    merge_files({task: paths[task] for task in order}, path, method=method, max_shard_size=shards, overwrite=True)


def write_merge(place: Any, path: Path, order: list[str]) -> None:
    _merge(place, path, order, None)


def write_shards(place: Any, path: Path, order: list[str]) -> None:
    _merge(place, path, order, "20KB")


def load_all(path: Path) -> list[Any]:
    from lit_merge.checkpoints import open_checkpoint

    opened = open_checkpoint(path)
    return [opened.read(name) for name in sorted(opened.shapes)]


def alike(found: list[Any], wanted: list[Any]) -> bool:
    return all(a.equal(b) for a, b in zip(found, wanted, strict=True))
