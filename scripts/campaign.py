"""Attacks the package for some minutes, and prints what came of it.

    python scripts/campaign.py --minutes 5
    python scripts/campaign.py --only kills --trial 17

Every trial ends in one of three ways. It is clean: refused in one line, exit code 2, nothing changed. It is right: the
result equals an independent value. Or it has failed; then the command that makes this trial again is printed, and the
exit code is 1.
"""

import argparse
import gc
import io
import os
import pkgutil
import shutil
import sys
import tempfile
import time
from contextlib import redirect_stdout, suppress
from importlib import import_module
from pathlib import Path

os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONHASHSEED": "0", "MPLBACKEND": "agg"}
sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[1])]


from campaigns import forks, inputs, verbs  # noqa: E402
from campaigns.faults import FullDisk, ReadErrors  # noqa: E402
from campaigns.file_events import can_hold  # noqa: E402
from campaigns.kills import Kills  # noqa: E402
from campaigns.mutations import Mutations  # noqa: E402
from campaigns.numbers import Numbers  # noqa: E402
from campaigns.options import Options  # noqa: E402
from campaigns.own_files import OwnFiles  # noqa: E402
from campaigns.power import PowerCuts  # noqa: E402
from campaigns.processes import Processes  # noqa: E402
from campaigns.settings import Settings  # noqa: E402
from campaigns.soaks import Soaks  # noqa: E402
from campaigns.state import State  # noqa: E402
from campaigns.together import Together  # noqa: E402
from campaigns.trial import CLEAN, FAILED, RIGHT, Campaign, Place, Result  # noqa: E402

import lit_merge  # noqa: E402

CAMPAIGNS: list[type[Campaign]] = [
    Numbers,
    Mutations,
    Together,
    OwnFiles,
    Kills,
    PowerCuts,
    FullDisk,
    ReadErrors,
    State,
    Processes,
    Settings,
    Options,
    Soaks,
]

# Bytes that must be free in memory for files to lie there.
ROOM = 1 << 30


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=5.0, help="of all campaigns together")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", action="append", choices=[one.name for one in CAMPAIGNS], help="may be given again")
    parser.add_argument("--trial", type=int, help="make this one alone, and say what it was")
    parser.add_argument("--keep", type=Path, help="new folder to work in, which stays")
    options = parser.parse_args()
    if not forks.can_watch():
        print("left out: only Linux from 5.3 on says when a process ends")
        return 0
    memory = Path("/dev/shm")
    roomy = os.access(memory, os.W_OK) and shutil.disk_usage(memory).free > ROOM
    beside = memory if options.keep is None and roomy else None
    if options.keep is not None:
        options.keep.mkdir(parents=True)
    root = options.keep or Path(tempfile.mkdtemp(prefix="campaign.", dir=beside))
    try:
        place = Place(root.resolve())
        chosen = [one(place, options.seed) for one in CAMPAIGNS if not options.only or one.name in options.only]
        ends = time.monotonic() + 60 * options.minutes
        write(place)
        if options.trial is None:
            return run(chosen, ends, options.seed)
        warm_up(place, chosen[0].light)
        result = chosen[0].trial(options.trial)
        print(f"{result.verdict}: {result.about}")
        return int(result.verdict == FAILED)
    finally:
        if options.keep is None:
            shutil.rmtree(root, ignore_errors=True)


def write(place: Place) -> None:
    """The inputs of all trials."""
    place.work.mkdir(parents=True)
    place.kept.mkdir()
    # Others than the owner run commands too.
    place.root.chmod(0o755)
    if (ended := forks.Process(lambda: inputs.write_inputs(place.inputs)).end()).code:
        raise RuntimeError(f"inputs cannot be written: {ended}")
    suites = place.root / "cache" / "zoo"
    suites.mkdir(parents=True)
    (suites / "14-seed0").symlink_to(place.inputs)
    os.environ |= {"LIT_MERGE_CACHE": str(suites.parent), "HOME": str(place.root)}


def warm_up(place: Place, light: bool) -> None:
    """Imports once what trials import: of light campaigns less."""
    for module in pkgutil.walk_packages(lit_merge.__path__, "lit_merge.") if not light else ():
        if not module.name.endswith("__main__"):
            import_module(module.name)
    # And what commands import besides.
    first = next(one for one in verbs.commands(place.inputs) if one.name == ("merge-file" if light else "fit"))
    for name in forks.imported(forks.command(first.arguments), place.emptied()):
        # Parts of packages with a loader of their own are not found by their name.
        with suppress(ImportError):
            import_module(name)
    # The parser of the command line remembers what it has read of classes. This reads headers, and starts no thread.
    from lit_merge.cli.main import main as command

    with redirect_stdout(io.StringIO()):
        command(["merge", "--config", str(place.inputs / "config.yaml"), "--dry-run"])
    # Nothing of this is touched by forks, whose pages stay shared.
    gc.collect()
    gc.freeze()


def run(campaigns: list[Campaign], ends: float, seed: int) -> int:
    """All of them one after the other, each for its share of what is left; prints the table."""
    failures: list[str] = []
    counts: dict[str, dict[str, int]] = {}
    warm: bool | None = None
    for i, campaign in enumerate(campaigns):
        if campaign.holds and not can_hold():
            print(f"{campaign.name}: left out, as this system does not hold the calls of a process", flush=True)
            continue
        if campaign.light is not warm:
            warm_up(place := campaign.place, warm := campaign.light)
            place.emptied()
        now = time.monotonic()
        until = now + (ends - now) * campaign.share / sum(one.share for one in campaigns[i:])
        count = counts[campaign.name] = {CLEAN: 0, RIGHT: 0, FAILED: 0}
        number = 0
        while not number or time.monotonic() + campaign.seconds(number) < until:
            result = attempt(campaign, number)
            count[result.verdict] += result.count
            if result.verdict == FAILED:
                again = f"python scripts/campaign.py --seed {seed} --only {campaign.name} --trial {number}"
                failures.append(f"{campaign.name}: {result.about}\n    {again}")
                print(failures[-1], flush=True)
            number += 1
        spent = time.monotonic() - now
        print(f"{campaign.name}: {sum(count.values())} trials in {spent:.0f} s, {count[FAILED]} failed", flush=True)
    print(table(counts))
    return int(bool(failures))


def attempt(campaign: Campaign, number: int) -> Result:
    try:
        return campaign.trial(number)
    except Exception as error:
        return Result(FAILED, f"the campaign itself fails: {type(error).__name__}: {error}")


def table(counts: dict[str, dict[str, int]]) -> str:
    total = {verdict: sum(one[verdict] for one in counts.values()) for verdict in (CLEAN, RIGHT, FAILED)}
    lines = [f"{'campaign':12s} {'trials':>8s} {'clean':>8s} {'right':>8s} {'failed':>8s}"]
    for name, one in (counts | {"all": total}).items():
        lines.append(f"{name:12s} {sum(one.values()):8d} {one[CLEAN]:8d} {one[RIGHT]:8d} {one[FAILED]:8d}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
