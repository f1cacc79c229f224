"""An adaptation step on a GPU against its roofline, which is measured first: the fastest product and the fastest copy.

    python scripts/bench_gpu.py                                   # ViT-B/32, 8 tasks × 16 images
    python scripts/bench_gpu.py --shape ViT-L-14 --compile --bank-device cpu

Of the forward and backward of a step's images alone (`plain`), and of a step of lit_merge's from a CART bank, it says
seconds, TFLOP/s, share of what products reach in that precision, and of a step what it takes over `plain`; of merging
and its backward GB/s of bank and weights, and the share of what a copy reaches. The FLOP are those of `plain`.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch

REPEATS = 10


def seconds(work: Callable[[], object], device: torch.device) -> float:
    """The fastest of some calls, once warm."""
    taken = []
    for _ in range(REPEATS + 3):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        work()
        end.record()
        torch.cuda.synchronize(device)
        taken.append(start.elapsed_time(end) / 1e3)
    return min(taken[3:])


def peaks(device: torch.device, dtype: torch.dtype) -> tuple[float, float]:
    """FLOP/s of a large product, and bytes/s read and written by a large copy."""
    n = 8192
    a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    large = torch.empty(2**28, device=device)
    flop = 2 * n**3 / seconds(lambda: a @ b, device)
    return flop, 2 * large.nbytes / seconds(lambda: torch.empty_like(large).copy_(large), device)


def measure(folder: Path, tasks: list[str], options: argparse.Namespace) -> None:
    from bench_adaptation import make_experts
    from bench_adaptation_workers import images_of
    from torch.utils.flop_counter import FlopCounterMode

    from lit_merge import MergedModel, OpenClipImageEncoder, Stage, TaskBank
    from lit_merge.adaptation.step import adaptation_step
    from lit_merge.networks.compiling import check_compiler

    device, dtype = torch.device("cuda"), getattr(torch, options.dtype)
    if options.compile:
        check_compiler(device)
    size = make_experts(folder, options, tasks, ("cart",))
    network = OpenClipImageEncoder(str(folder / "network.json"), str(folder / "heads.safetensors"))
    model = MergedModel(
        TaskBank.load(folder / "cart"),
        network,
        stages=[Stage("layer", 1, 1e-3)],
        microbatch=options.microbatch,
        bank_device=options.bank_device,
        compile=options.compile,
    )
    model.stored.settle(device)
    model.to(device)
    batch = {task: images.to(device) for task, images in images_of(tasks, 0, options.images, size).items()}
    leaves = {name: value.detach().requires_grad_() for name, value in model.merged_weights().items()}

    def plain() -> None:
        with torch.autocast("cuda", dtype, enabled=dtype != torch.float32):
            losses = [model.objective(logits) for logits in network(leaves, batch).values()]
        torch.stack(losses).mean().backward()

    def step() -> None:
        weights = model.merged_weights()
        with torch.autocast("cuda", dtype, enabled=dtype != torch.float32):
            done = adaptation_step(
                network, weights, batch, model.objective, model.expert_logits, model.options.microbatch
            )
        done.loss.backward()

    def merge() -> None:
        weights = list(model.merged_weights().values())
        torch.autograd.backward(weights, [torch.ones_like(one) for one in weights])

    with FlopCounterMode(display=False) as counter:
        plain()
    flop, moved = counter.get_total_flops(), 2 * model.bank.nbytes + 2 * sum(w.nbytes for w in leaves.values())
    most_flop, most_bytes = peaks(device, dtype)
    print(f"products reach {most_flop / 1e12:.1f} TFLOP/s in {options.dtype}, copies {most_bytes / 1e9:.0f} GB/s")
    bound = seconds(plain, device)
    for name, work in (("plain", plain), ("step", step)):
        took = seconds(work, device)
        reached = f"{flop / took / 1e12:.1f} TFLOP/s, {flop / took / most_flop:.0%} of products"
        print(f"{name}: {took:.4f} s, {reached}, {took / bound:.2f} × plain")
    took = seconds(merge, device)
    print(f"merge and backward: {took:.4f} s, {moved / took / 1e9:.0f} GB/s, {moved / took / most_bytes:.0%} of copies")
    print(f"peak memory {torch.cuda.max_memory_allocated(device) / 1e9:.2f} GB, bank {model.bank.nbytes / 1e9:.2f} GB")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="ViT-B-32", help="small, or the name of an open_clip model")
    parser.add_argument("--layers", type=int, help="only so many blocks of it")
    parser.add_argument("--tasks", type=int, default=8)
    parser.add_argument("--images", type=int, default=16, help="of every task")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16", help="of the forward")
    parser.add_argument("--microbatch", choices=("task", "all"), default="all")
    parser.add_argument("--bank-device", choices=("auto", "cpu"), default="auto")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--folder", type=Path, help="where experts go while it runs; a temporary folder by default")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("bench_gpu: no GPU that torch can use here, so there is nothing to measure")
        return 0
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, {options}")
    with tempfile.TemporaryDirectory(dir=options.folder) as temporary:
        measure(Path(temporary), [f"task{i:02}" for i in range(options.tasks)], options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
