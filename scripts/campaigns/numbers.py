"""Numbers: sizes × scales × dtypes × number of tasks, every method against numpy in float64."""

import random
import sys
from typing import Any

import numpy as np

from campaigns import references
from campaigns.forks import Process
from campaigns.trial import CLEAN, RIGHT, Campaign, Result, failed

PLACES = ("0.mlp.c_fc.weight", "1.mlp.c_fc.weight", "0.mlp.c_fc.bias")
FIRST, SECOND, BIAS = (f"transformer.resblocks.{place}" for place in PLACES)
# dtype → powers of two that its numbers bear, the share by which a delta may be off, and the last place of a number.
DTYPES = {
    "float64": (range(-400, 401, 50), 1e-6, 2.0**-52),
    "float32": (range(-100, 101, 20), 5e-3, 2.0**-23),
    "bfloat16": (range(-100, 101, 20), 5e-3, 2.0**-8),
    "float16": (range(-6, 7, 3), 5e-3, 2.0**-11),
}
METHODS = {
    "WeightAveraging": ({}, references.averaging),
    "TaskArithmetic": ({"scaling": 0.3}, references.arithmetic),
    "CART": ({"rank_ratio": 0.25, "scaling": 1.7}, references.cart),
    "TIES": ({"scaling": 0.8}, references.ties),
    "ConsensusTA": ({"scaling": 0.5}, references.consensus),
    "TSVM": ({"scaling": 1.2}, references.tsv),
    "TSVCompress": ({}, references.compress),
    "IsoC": ({"scaling": 0.9}, references.iso),
    "IsoCTS": ({"scaling": 0.9, "common_ratio": 0.5}, references.iso_cts),
    "ESM": ({"scaling": 1.1}, references.esm),
    "ESM official": ({"scaling": 1.1, "preset": "official"}, references.esm_official),
    "AWD TaskArithmetic": ({"scaling": 0.3}, references.awd),
    "RegMean": ({}, references.regmean),
}


class Numbers(Campaign):
    """One merge each. It must be off by no more than its dtype's rounding, or be refused."""

    name, light = "numbers", True
    share = 2.0

    def trial(self, number: int) -> Result:
        draw = self.draw(number)
        method = [*METHODS][number % len(METHODS)]
        dtype = draw.choice([*DTYPES])
        tasks, svd = draw.choice([1, 2, 3, 3, 4, 5, 8, 12]), draw.choice(["auto", "exact"])
        shape = (draw.randint(1, 40), draw.randint(1, 40))
        if draw.random() < 0.06:
            # Where large matrices begin, which are decomposed by another way.
            shape = (draw.randint(380, 420), draw.randint(380, 420))
            svd, tasks = "auto", min(tasks, 3)
        power = draw.choice(DTYPES[dtype][0])
        about = f"{method} of {tasks} experts of {shape[0]} × {shape[1]} in {dtype}, times 2^{power}, svd={svd}"
        values = make(draw, shape, tasks, dtype, power)
        ended = Process(lambda: merge(method, values, dtype, svd), self.place.emptied()).end()
        if ended.code == 2:
            return Result(CLEAN, f"{about}: {ended}")
        if ended.code:
            return failed(about, str(ended))
        found = dict(np.load(self.place.work / "merged.npz"))
        wrong = compare(found, method, values, dtype)
        return failed(about, wrong) if wrong else Result(RIGHT, about)


def make(draw: random.Random, shape: tuple[int, int], tasks: int, dtype: str, power: int) -> dict[str, np.ndarray]:
    """name → pretrained values and those of all tasks (1 + T, …), as the dtype holds them, in float64; and moments."""
    import torch

    numpy = np.random.default_rng(draw.getrandbits(32))
    values = {}
    for name, one in ((FIRST, shape), (SECOND, shape), (BIAS, shape[:1])):
        base = numpy.standard_normal(one)
        experts = base + 0.3 * numpy.standard_normal((tasks, *one))
        both = np.concatenate([base[None], experts]) * 2.0**power
        values[name] = torch.from_numpy(both).to(getattr(torch, dtype)).double().numpy()
        if len(one) == 2:
            inputs = numpy.standard_normal((tasks, 2 * one[1], one[1]))
            values[f"moments of {name}"] = inputs.transpose(0, 2, 1) @ inputs
    return values


def merge(method: str, values: dict[str, np.ndarray], dtype: str, svd: Any) -> int:
    """Merges by the package, and keeps the result as merged.npz."""
    import warnings

    import torch

    import lit_merge

    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    options: dict[str, Any] = dict(METHODS[method][0])
    held = {name: torch.from_numpy(values[name]).to(getattr(torch, dtype)) for name in (FIRST, SECOND, BIAS)}
    states = [{name: one[i].clone() for name, one in held.items()} for i in range(len(held[BIAS]))]
    experts = {f"t{i}": state for i, state in enumerate(states[1:])}
    if method == "RegMean":
        given = {name: torch.from_numpy(values[f"moments of {name}"]) for name in (FIRST, SECOND)}
        options["moments"] = {f"t{i}": {name: one[i] for name, one in given.items()} for i in range(len(experts))}
    # Of half the precision, what the method computes counts: factors that are kept in it are off by its last place.
    kept = torch.float32 if dtype in ("bfloat16", "float16") else None
    try:
        transform = lit_merge.AWD() if method.startswith("AWD ") else None
        made = getattr(lit_merge, method.removeprefix("AWD ").removesuffix(" official"))(**options)
        bank = lit_merge.build_bank(experts, states[0], method=made, transform=transform, svd=svd, dtype=kept)
        merged = {name: one.double().numpy() for name, one in bank.merge().items()}
    except lit_merge.MergeError as error:
        print(f"lit_merge: error: {error}", file=sys.stderr)
        return 2
    np.savez("merged.npz", **merged)
    return 0


def compare(found: dict[str, np.ndarray], method: str, values: dict[str, np.ndarray], dtype: str) -> str:
    """What is wrong with merged weights; nothing where they are right."""
    _, share, last = DTYPES[dtype]
    held = {name: values[name] for name in (FIRST, SECOND, BIAS)}
    # A power of two, so that nothing is rounded.
    largest = 2.0 ** np.ceil(np.log2(max(np.abs(one).max() for one in held.values())))
    unit = {name: one / largest for name, one in held.items()}
    tau = {name: one[1:] - one[0] for name, one in unit.items()}
    base = {name: one[0] for name, one in unit.items()}
    reference = METHODS[method][1]
    if method == "RegMean":
        deltas = reference(tau, base, {name: values[f"moments of {name}"] for name in (FIRST, SECOND)})  # type: ignore
    else:
        deltas = reference(tau, base)
    if method == "ESM":
        # Its matrices have norms of their own, whatever the task vectors' are.
        deltas = {name: one / (largest if one.ndim == 2 else 1) for name, one in deltas.items()}
    for name, delta in deltas.items():
        wanted = base[name] + delta
        with np.errstate(all="ignore"):
            off = np.linalg.norm(found[name] / largest - wanted)
        allowed = share * np.linalg.norm(delta) + 2 * last * (np.linalg.norm(wanted) + np.linalg.norm(base[name]))
        if not off <= allowed:
            return f"{name} is off by {off:.3g} of {np.linalg.norm(wanted):.3g}, where {allowed:.3g} is rounding"
    return ""
