"""What scripts/bench_adaptation.py compares, each in a process of its own that takes one step whenever it is asked to.

Every process reads the same folder: `pretrained.safetensors`, `experts/{task}.safetensors`, `heads.safetensors`,
`network.json`; and draws the same images. It writes one line of JSON a step, and a last one.
"""

import json
import resource
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

LEARNING_RATE, START, SCALE = 1e-3, 0.3, 100.0
MEAN, STD = 0.45, 0.27


class Turns:
    """Waits for its turn at the beginning of a step, and tells what the step before took."""

    def __init__(self) -> None:
        self.out, sys.stdout = sys.stdout, sys.stderr
        self.begun: tuple[float, float] | None = None

    def next(self) -> None:
        now = time.perf_counter(), time.process_time()
        if self.begun is None:
            self.tell(ready=True)
        else:
            self.tell(seconds=now[0] - self.begun[0], cpu=now[1] - self.begun[1])
        sys.stdin.readline()
        self.begun = time.perf_counter(), time.process_time()

    def end(self, **more: Any) -> None:
        """The end of the last step."""
        assert self.begun is not None
        took = {"seconds": time.perf_counter() - self.begun[0], "cpu": time.process_time() - self.begun[1]}
        self.tell(**took, **memory(), **more)

    def tell(self, **what: Any) -> None:
        print(json.dumps(what), file=self.out, flush=True)


def memory() -> dict[str, float]:
    """The most resident memory so far, and what is resident of mapped files now, libraries among them, in GB."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return {"peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9}
    # Not ru_maxrss: what the process was before it became this program does not count.
    known = {line.split(":")[0]: line.split()[1] for line in lines if line.endswith("kB")}
    return {name: int(known[key]) * 1024 / 1e9 for name, key in (("peak", "VmHWM"), ("mapped", "RssFile"))}


def images_of(tasks: list[str], step: int, count: int, size: int) -> dict[str, Tensor]:
    """task → images (count, 3, size, size), uint8: smooth, and other ones in every step."""
    generator = torch.Generator().manual_seed(step)
    coarse = torch.rand(len(tasks), count, 3, 8, 8, generator=generator).flatten(0, 1)
    fine = torch.nn.functional.interpolate(coarse, size=(size, size), mode="bicubic").clamp(0, 1)
    return dict(zip(tasks, (fine * 255).to(torch.uint8).split(count), strict=True))


def tower(folder: Path) -> torch.nn.Module:
    from open_clip.model import _build_vision_tower

    options = json.loads((folder / "network.json").read_text())
    return _build_vision_tower(options["embed_dim"], options["vision_cfg"], options.get("quick_gelu", False))


def entropy(logits: Tensor) -> Tensor:
    log_p = logits.log_softmax(-1)
    return -(log_p.exp() * log_p).sum(-1)


def plain(folder: Path, tasks: list[str], steps: int, count: int, size: int, precision: str) -> None:
    """The bound: forward and backward of all images in one batch, with the gradient to every weight."""
    from safetensors.torch import load_file
    from torch.utils.flop_counter import FlopCounterMode

    encoder, heads = tower(folder), load_file(folder / "heads.safetensors")
    encoder.load_state_dict(load_file(folder / "pretrained.safetensors"))
    encoder.eval()
    turns = Turns()

    def step(index: int) -> None:
        batch = images_of(tasks, index, count, size)
        turns.next()
        images = (torch.cat(list(batch.values())).float() / 255 - MEAN) / STD
        with torch.autocast("cpu", torch.bfloat16, enabled=precision.startswith("bf16")):
            features = normalize(encoder(images).float(), dim=-1).split(count)
        logits = {task: SCALE * part @ heads[task].T for task, part in zip(tasks, features, strict=True)}
        torch.stack([entropy(one).mean() for one in logits.values()]).mean().backward()
        encoder.zero_grad()

    for index in range(steps):
        step(index)
    turns.end()
    counter = FlopCounterMode(display=False)
    turns.next = lambda: None  # type: ignore[method-assign]
    with counter:
        step(0)
    turns.tell(tflop=counter.get_total_flops() / 1e12)


def ours(folder: Path, tasks: list[str], steps: int, count: int, size: int, precision: str, **options: Any) -> None:
    """A fit of lit_merge's, from a saved bank. `bank` in the options says which; experts teach directions."""
    import lightning.pytorch as pl

    from lit_merge import Correction, Experts, MergedModel, OpenClipImageEncoder, Stage, TaskBank
    from lit_merge.console import plain_warnings
    from lit_merge.objectives import Entropy, ExpertAgreement

    plain_warnings()
    warnings.filterwarnings("ignore", ".*no `val_dataloader`")
    turns = Turns()

    class Sum(Entropy):
        """Of all tasks, as FusionBench's: to Adam the mean is the same, but for its ε where a gradient is near 1e-8."""

        def __call__(self, logits: Tensor, expert: Tensor | None = None) -> Tensor:
            return len(tasks) * super().__call__(logits, expert)

    class Steps(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return steps

        def __getitem__(self, index: int) -> dict[str, Tensor]:
            batch = images_of(tasks, index, count, size)
            turns.next()
            return batch

    bank = TaskBank.load(folder / options.pop("bank"))
    network = OpenClipImageEncoder(str(folder / "network.json"), str(folder / "heads.safetensors"))
    granularity, rank = options.pop("granularity", "layer"), options.pop("correction", None)
    if rank is not None:
        options["correction"] = Correction(rank)
    if granularity == "direction":
        options["experts"] = Experts({task: folder / "experts" / f"{task}.safetensors" for task in tasks})
    stages = [Stage(granularity, steps, LEARNING_RATE)]
    objective = ExpertAgreement() if granularity == "direction" else Sum()
    model = MergedModel(bank, network, objective, stages, bounds=(0, 1), **options)
    trainer = pl.Trainer(
        accelerator="cpu",
        max_steps=steps,
        precision=precision,  # type: ignore[arg-type]
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model, torch.utils.data.DataLoader(Steps(), batch_size=None))
    turns.end(coefficients=dict(zip(bank.layers, model.coefficients().T.tolist(), strict=True)))


def peer(folder: Path, tasks: list[str], steps: int, count: int, size: int, precision: str) -> None:
    """FusionBench's own loop, class and settings over the same tower, experts, heads and images."""
    from fusion_bench.method.adamerging.layer_wise_adamerging import LayerWiseAdaMergingAlgorithm
    from omegaconf import OmegaConf
    from safetensors.torch import load_file

    heads = load_file(folder / "heads.safetensors")
    turns = Turns()
    batches: dict[int, dict[str, Tensor]] = {}

    class Pool:
        model_names = tasks

        def load_model(self, name: str) -> torch.nn.Module:
            model = tower(folder)
            file = "pretrained" if name == "_pretrained_" else f"experts/{name}"
            model.load_state_dict(load_file(folder / f"{file}.safetensors"))
            return model

    class Algorithm(LayerWiseAdaMergingAlgorithm):  # type: ignore[misc]
        def get_shuffled_test_loader_iter(self, task: str) -> Iterator[tuple[Tensor]]:
            # One image batch of every task a step: the first task begins the next one.
            if task == tasks[0]:
                index = len(batches)
                batches[index] = images_of(tasks, index, count, size)
                turns.next()
            return iter([(batches[len(batches) - 1].pop(task),)])

        def compute_logits(self, module: Any, images: Tensor, task: str) -> Tensor:
            features = module((images.float() / 255 - MEAN) / STD)
            return SCALE * normalize(features.float(), dim=-1) @ heads[task].T

    settings = {"weights": None, "optimizer": "adam", "lr": LEARNING_RATE, "init_values": START, "clamp_weights": True}
    settings |= {"tie_weights": True, "strict": False, "max_steps": steps, "fabric": None}
    algorithm = Algorithm(OmegaConf.create(settings))
    import lightning

    algorithm.fabric = lightning.Fabric(accelerator="cpu", devices=1, precision=precision)  # type: ignore[arg-type]
    algorithm.modelpool = Pool()
    module = algorithm.construct_layer_wise_merged_model(algorithm.modelpool)
    names = [name for name, _ in module.pretrained_model.named_parameters()]
    module = algorithm.test_time_adaptation(module)
    turns.end(coefficients=dict(zip(names, module.merge_weight.T.tolist(), strict=True)))


if __name__ == "__main__":
    said = json.loads(sys.argv[1])
    kind = {"plain": plain, "ours": ours, "peer": peer}[said.pop("kind")]
    torch.set_num_threads(said.pop("threads"))
    kind(Path(said.pop("folder")), **said)
