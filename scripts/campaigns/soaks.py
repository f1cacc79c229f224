"""Soaks: thousands of adaptation steps, and of bank loads and switches; memory and descriptors stay flat."""

import os
import sys
from typing import Any

from campaigns.forks import Process
from campaigns.trial import RIGHT, Campaign, Result, failed

# MB by which memory may differ between a fifth of a soak and its end: allocators keep some.
FLAT = 12.0


class Soaks(Campaign):
    """First short ones, then 5,000 steps and 10,000 loads."""

    name = "soaks"
    share = 1.5

    def seconds(self, number: int) -> float:
        return 150.0 if number > 1 else 0.0

    def trial(self, number: int) -> Result:
        count = (100, 500, 5_000, 10_000)[min(number, 2 + number % 2)]
        work = (lambda: self.steps(count)) if number % 2 == 0 else (lambda: self.loads(count))
        about = f"{count:,} {'loads and switches of a bank' if number % 2 else 'adaptation steps'}"
        ended = Process(work, self.place.emptied()).end(1200)
        if ended.code:
            return failed(about, f"{ended}; {ended.out.strip()}")
        return Result(RIGHT, f"{about}: {ended.out.strip()}", count)

    def steps(self, count: int) -> int:
        from lightning.pytorch import Callback

        from lit_merge import MergedModel, OpenClipImageEncoder, Stage, Suite, TaskBank
        from lit_merge.adaptation.trainer import Trainer

        root, look = self.place.inputs, Looks(count)
        network = OpenClipImageEncoder(str(root / "network.json"), str(root / "heads.safetensors"))

        class Look(Callback):
            def on_train_batch_end(self, *arguments: object) -> None:
                look()

        quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
        own: dict[str, Any] = {"accelerator": "cpu", "use_distributed_sampler": False, "limit_val_batches": 0}
        trainer = Trainer(max_steps=count, callbacks=[Look()], **own, **quiet)
        model = MergedModel(TaskBank.load(root / "bank"), network, stages=[Stage("layer", steps=count, lr=1e-4)])
        trainer.fit(model, datamodule=Suite(str(root), batch_size=4))
        return look.result()

    def loads(self, count: int) -> int:
        from lit_merge import TaskBank

        tasks, look = TaskBank.load(self.place.inputs / "bank").tasks, Looks(count)
        for i in range(count):
            TaskBank.load(self.place.inputs / "bank").expert(tasks[i % len(tasks)])
            look()
        return look.result()


class Looks:
    """Looks at memory and descriptors at a fifth of some calls, and at the last."""

    def __init__(self, count: int) -> None:
        self.count, self.calls = count, 0
        self.seen: list[tuple[float, int]] = []

    def __call__(self) -> None:
        self.calls += 1
        if self.calls in (self.count // 5, self.count):
            self.seen.append((resident(), len(os.listdir("/proc/self/fd"))))

    def result(self) -> int:
        """The exit code; says what was seen."""
        if len(self.seen) < 2:
            print(f"{self.calls} calls of {self.count}", file=sys.stderr)
            return 1
        (before, opened), (after, open_now) = self.seen
        print(f"{before:.0f} and {after:.0f} MB, {opened} and {open_now} descriptors")
        return int(after - before > FLAT or open_now > opened)


def resident() -> float:
    """MB of this process in memory."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6
