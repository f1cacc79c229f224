"""How long a bank takes to open, to give a task's weights, and to switch a live module, beside what else does that.

    python scripts/bench_switch.py

Makes a stack of transformer blocks (by default of ViT-B/32's size), a bank of random low-rank deltas for it, experts as
safetensors files, and a PEFT LoRA adapter of that rank per task on the same matrices. All take turns in one process;
the best of some rounds is printed, in milliseconds and relative to loading an expert's file into the module. Files are
in the page cache. Needs peft (`pip install -e '.[hf]'`).
"""

import argparse
import itertools
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from lit_merge import LowRank, TaskBank

BASELINE = "load an expert's safetensors file into the module"


class Block(nn.Module):
    """The weights of a transformer's block; attention is left out, which no switch depends on."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.norm = nn.LayerNorm(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(self.norm(x)).chunk(3, -1)
        x = x + self.out(q + k + v)
        return x + self.down(nn.functional.gelu(self.up(x)))


def make_bank(model: nn.Module, tasks: list[str], rank: int) -> TaskBank:
    """Random deltas of this rank for every matrix, dense ones for the vectors."""
    origin = {name: value.detach().clone() for name, value in model.state_dict().items()}
    deltas: dict[str, object] = {}
    for name, value in origin.items():
        if value.dim() == 2:
            u, v = (torch.randn(len(tasks), n, rank) / n**0.5 for n in value.shape)
            deltas[name] = LowRank(u, torch.linspace(1, 0.1, rank).expand(len(tasks), rank).clone(), v)
        else:
            deltas[name] = 0.01 * torch.randn(len(tasks), *value.shape)
    coefficients = torch.full((len(tasks), len(deltas)), 0.3)
    dtypes = {name: value.dtype for name, value in origin.items()}
    return TaskBank(tuple(tasks), origin, deltas, coefficients, dtypes, {"class_path": "random"})  # type: ignore[arg-type]


def adapters(model: nn.Module, bank: TaskBank, rank: int) -> nn.Module:
    """The module with a LoRA adapter for every task, whose updates are the bank's."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=rank, lora_alpha=rank, target_modules=["qkv", "out", "up", "down"])
    wrapped = get_peft_model(model, config, adapter_name=bank.tasks[0])  # type: ignore[arg-type]
    for task in bank.tasks[1:]:
        wrapped.add_adapter(task, config)
    layers = dict(wrapped.base_model.model.named_modules())
    with torch.no_grad():
        for name in bank.ranks:
            delta, layer = bank.low_rank(name), layers[name.removesuffix(".weight")]
            for i, task in enumerate(bank.tasks):
                layer.lora_B[task].weight.copy_(delta.U[i] * delta.S[i])
                layer.lora_A[task].weight.copy_(delta.V[i].T)
    return wrapped.eval()


def best(rounds: int, **runs: Callable[[], object]) -> dict[str, float]:
    """Milliseconds of the fastest of some rounds, in which all take turns."""
    found = dict.fromkeys(runs, float("inf"))
    for _ in range(rounds):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            found[name] = min(found[name], 1e3 * (time.perf_counter() - start))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--depth", type=int, default=12)
    parser.add_argument("--tasks", type=int, default=8)
    parser.add_argument("--rank", type=int, default=61, help="61 is .08 of 768")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--switches", type=int, default=1000, help="of which the last must equal the first to the bit")
    options = parser.parse_args()
    torch.manual_seed(0)
    model = nn.Sequential(*(Block(options.width) for _ in range(options.depth))).eval()
    bank = make_bank(model, [f"task{i}" for i in range(options.tasks)], options.rank)
    with tempfile.TemporaryDirectory() as place, torch.no_grad():
        measure(options, model, bank, Path(place))


def measure(options: argparse.Namespace, model: nn.Module, bank: TaskBank, place: Path) -> None:
    bank.save(place / "bank")
    for task in bank.tasks[:2]:
        save_file(bank.expert(task), place / f"{task}.safetensors")
    time.sleep(0.1)  # files that have just changed are looked at twice
    turn = itertools.cycle(bank.tasks)
    pair = itertools.cycle(bank.tasks[:2])
    loaded = TaskBank.load(place / "bank")
    for task in bank.tasks:
        loaded.switch_(model, task)  # all of it has been checked once
    found = best(
        options.rounds,
        **{
            BASELINE: lambda: model.load_state_dict(load_file(place / f"{next(pair)}.safetensors")),
            "open the bank": lambda: TaskBank.load(place / "bank"),
            "expert(task) of a bank that was just opened": lambda: TaskBank.load(place / "bank").expert(next(turn)),
            "expert(task) again, from the file": lambda: loaded.expert(next(turn)),
            "switch_(module, task), from the file": lambda: loaded.switch_(model, next(turn)),
            "switch_(module, task), bank in memory": lambda: bank.switch_(model, next(turn)),
            "switch_(module, None), bank in memory": lambda: bank.switch_(model, None),
        },
    )
    small = nn.Sequential(Block(64)).eval()
    own = make_bank(small, ["a", "b"], 8)
    wanted = {task: own.expert(task) for task in own.tasks}
    for i in range(options.switches):
        own.switch_(small, "ab"[i % 3 % 2])
    own.switch_(small, "a")
    same = all(torch.equal(value, wanted["a"][name]) for name, value in small.state_dict().items())
    batch = torch.randn(1, 50, options.width)
    plain = best(options.rounds, forward=lambda: model(batch))["forward"]
    wrapped = adapters(model, bank, options.rank)
    base = wrapped.base_model

    def merged() -> None:
        base.unmerge_adapter()  # type: ignore[operator]
        wrapped.set_adapter(next(turn))  # type: ignore[operator]
        base.merge_adapter()  # type: ignore[operator]

    base.merge_adapter()  # type: ignore[operator]
    found |= best(options.rounds, **{"PEFT: unmerge, set_adapter, merge": merged})
    base.unmerge_adapter()  # type: ignore[operator]
    found |= best(
        options.rounds,
        **{"PEFT: set_adapter, not merged": lambda: wrapped.set_adapter(next(turn))},  # type: ignore[operator]
    )
    beside = best(options.rounds, forward=lambda: wrapped(batch))["forward"]
    sizes = sum(value.nbytes for value in bank.origin.values()), (place / "bank" / "bank.safetensors").stat().st_size
    print(f"{sizes[0] / 1e6:.0f} MB a model, a bank of {options.tasks} tasks {sizes[1] / 1e6:.0f} MB")
    print(f"torch {torch.__version__}, {torch.get_num_threads()} thread(s); best of {options.rounds} rounds\n")
    print("| | ms | of loading a file |\n|---|---|---|")
    for name, value in found.items():
        print(f"| {name} | {value:.1f} | {value / found[BASELINE]:.3f} |")
    print(f"\nForward of 50 tokens: {plain:.0f} ms; with a PEFT adapter not merged {beside / plain:.2f} times that.")
    print(f"After {options.switches} switches the weights are {'equal to the bit' if same else 'DIFFERENT'}.")


if __name__ == "__main__":
    main()
