"""The methods' formulas in numpy and float64, for weights of one shape in two blocks and a bias.

Written from the papers as METHODS of the README's table cites them, and from nothing of the package.
"""

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Weights = Mapping[str, Array]
"""name → values of all tasks, (T, …)."""
Reference = Callable[[Weights, Weights], dict[str, Array]]
"""Task vectors (T, …) and the pretrained weights → what is added to the pretrained weights."""


def _top(matrix: Array, rank: int) -> Array:
    u, s, vh = np.linalg.svd(matrix, full_matrices=False)
    return (u[:, :rank] * s[:rank]) @ vh[:rank]


def _polar(matrix: Array) -> Array:
    u, s, vh = np.linalg.svd(matrix, full_matrices=False)
    return (u * (s > 1e-9 * s[0])) @ vh


def _is_matrix(tau: Array) -> bool:
    return tau.ndim == 3


def averaging(tau: Weights, base: Weights) -> dict[str, Array]:
    return {name: one.mean(0) for name, one in tau.items()}


def arithmetic(tau: Weights, base: Weights) -> dict[str, Array]:
    return {name: 0.3 * one.sum(0) for name, one in tau.items()}


def cart(tau: Weights, base: Weights) -> dict[str, Array]:
    def one(vectors: Array) -> Array:
        mean = vectors.mean(0)
        if not _is_matrix(vectors):
            return mean
        rank = max(1, int(0.25 * min(vectors.shape[1:])))
        return mean + 1.7 * sum(_top(vector - mean, rank) for vector in vectors)

    return {name: one(vectors) for name, vectors in tau.items()}


def ties(tau: Weights, base: Weights) -> dict[str, Array]:
    flat = np.concatenate([one.reshape(len(one), -1) for one in tau.values()], 1)
    k = int(flat.shape[1] // 5)
    least = np.sort(np.abs(flat), 1)[:, -k]
    kept = np.where(np.abs(flat) >= least[:, None], flat, 0)
    sign = np.sign(kept.sum(0))
    sign[sign == 0] = 1 if sign.sum() > 0 else -1
    agreeing = np.where(np.sign(kept) == sign, kept, 0)
    merged = 0.8 * agreeing.sum(0) / np.maximum(1, (agreeing != 0).sum(0))
    ends = np.cumsum([one[0].size for one in tau.values()])
    parts = np.split(merged, ends[:-1])
    return {name: part.reshape(one.shape[1:]) for (name, one), part in zip(tau.items(), parts, strict=True)}


def consensus(tau: Weights, base: Weights) -> dict[str, Array]:
    def one(vectors: Array) -> Array:
        total = vectors.sum(0)
        mask = sum(np.abs(vector) >= 0.4 * np.abs(total - vector) for vector in vectors) >= 2
        return np.where(mask, 0.5 * total, 0)

    return {name: one(vectors) for name, vectors in tau.items()}


def tsv(tau: Weights, base: Weights) -> dict[str, Array]:
    def one(vectors: Array) -> Array:
        tasks = len(vectors)
        if not _is_matrix(vectors) or tasks > min(vectors.shape[1:]):
            return 1.2 * vectors.mean(0)
        rank = min(vectors.shape[1:]) // tasks
        parts = [np.linalg.svd(vector, full_matrices=False) for vector in vectors]
        u = _polar(np.concatenate([u[:, :rank] for u, _, _ in parts], 1))
        v = _polar(np.concatenate([vh[:rank].T for _, _, vh in parts], 1))
        return 1.2 * (u * np.concatenate([s[:rank] for _, s, _ in parts])) @ v.T

    return {name: one(vectors) for name, vectors in tau.items()}


def compress(tau: Weights, base: Weights) -> dict[str, Array]:
    def one(vectors: Array) -> Array:
        if not _is_matrix(vectors) or len(vectors) > min(vectors.shape[1:]):
            return vectors.sum(0)
        return sum(_top(vector, min(vectors.shape[1:]) // len(vectors)) for vector in vectors)

    return {name: one(vectors) for name, vectors in tau.items()}


def iso(tau: Weights, base: Weights) -> dict[str, Array]:
    def one(vectors: Array) -> Array:
        if not _is_matrix(vectors):
            return 0.9 * vectors.mean(0)
        total = vectors.sum(0)
        s = np.linalg.svd(total, compute_uv=False)
        return 0.9 * s.mean() * _polar(total)

    return {name: one(vectors) for name, vectors in tau.items()}


def iso_cts(tau: Weights, base: Weights) -> dict[str, Array]:
    def one(vectors: Array) -> Array:
        r = min(vectors.shape[1:])
        q = round((r - int(0.5 * r)) / len(vectors)) if _is_matrix(vectors) else 0
        if q == 0:
            return iso({"w": vectors}, {})["w"]
        u, s, vh = np.linalg.svd(vectors.sum(0), full_matrices=False)
        common = r - q * len(vectors)
        left, values, right = [u[:, :common]], [s[:common]], [vh[:common].T]
        for vector in vectors:
            u_, s_, vh_ = np.linalg.svd(vector - u[:, :common] @ (u[:, :common].T @ vector), full_matrices=False)
            # What is left of a square matrix has lost the common directions.
            there = int((s_[:q] > 1e-9 * s_[0]).sum())
            left, values, right = [*left, u_[:, :there]], [*values, s_[:there]], [*right, vh_[:there].T]
        sides = [_polar(np.concatenate(side, 1)) for side in (left, right)]
        return 0.9 * np.concatenate(values).mean() * sides[0] @ sides[1].T

    return {name: one(vectors) for name, vectors in tau.items()}


def esm(tau: Weights, base: Weights) -> dict[str, Array]:
    """With C = I."""

    def one(vectors: Array) -> Array:
        if not _is_matrix(vectors) or len(vectors) > vectors.shape[1]:
            return vectors.mean(0)
        rank = min(vectors.shape[1] // len(vectors), vectors.shape[2])
        P = [np.linalg.svd(vector, full_matrices=False)[0][:, :rank] for vector in vectors]
        A = [p.T @ vector for p, vector in zip(P, vectors, strict=True)]
        norms = np.array([np.linalg.norm(a) for a in A])
        tall = np.concatenate([a * (norm / norms.mean()) ** 2 for a, norm in zip(A, norms, strict=True)])
        columns = np.linalg.norm(tall, axis=0)
        return _polar(np.concatenate(P, 1)) @ _polar(tall * (columns / columns.mean()) ** 2)

    deltas = {name: one(vectors) for name, vectors in tau.items()}
    norms = {name: np.linalg.norm(delta) for name, delta in deltas.items() if delta.ndim == 2}
    mean = np.mean(list(norms.values()))
    room = {name for name in norms if len(tau[name]) <= tau[name].shape[1]}
    return {name: 1.1 * delta * ((norms[name] / mean) ** 2 if name in room else 1) for name, delta in deltas.items()}


def esm_official(tau: Weights, base: Weights) -> dict[str, Array]:
    """What the authors' code does to c_fc, with C = I. Directions that a task lacks count as zeros in means."""

    def one(vectors: Array) -> Array:
        tasks, (m, n) = len(vectors), vectors.shape[1:]
        rank = m // tasks
        parts = [np.linalg.svd(vector, full_matrices=False) for vector in vectors]
        weights = [s[:rank] ** 0.3 / ((s[:rank] ** 0.3).sum() / rank) for _, s, _ in parts]
        norms = np.array([np.linalg.norm(vector) for vector in vectors])
        factors = (norms / norms.mean()) ** 2
        P = np.concatenate([u[:, :rank] * w for (u, _, _), w in zip(parts, weights, strict=True)], 1)
        rows = [u[:, :rank].T @ vector for (u, _, _), vector in zip(parts, vectors, strict=True)]
        A = np.concatenate([f * w[:, None] * a for f, w, a in zip(factors, weights, rows, strict=True)])
        columns = np.linalg.norm(A, axis=0)
        A = A * (columns / columns.mean()) ** 2
        means = [np.linalg.svd(part, compute_uv=False).sum() for part in (P, A)]
        return 2 * means[0] / (tasks * rank) * means[1] / min(tasks * rank, n) * _polar(P) @ _polar(A)

    room = {name for name, one in tau.items() if _is_matrix(one) and len(one) <= min(one.shape[1:])}
    deltas = {name: one(vectors) if name in room else vectors.mean(0) for name, vectors in tau.items()}
    mean = np.mean([np.linalg.norm(deltas[name]) for name in room]) if room else 1.0
    layers = {name: (np.linalg.norm(deltas[name]) / mean) ** 2 if name in room else 1.0 for name in tau}
    return {name: (1.1 if _is_matrix(tau[name]) else 1.0) * layers[name] * delta for name, delta in deltas.items()}


def awd(tau: Weights, base: Weights) -> dict[str, Array]:
    """Task arithmetic of what is left without δ: the paper's descent on whole vectors, in units of their mean norm."""
    flat = np.concatenate([one.reshape(len(one), -1) for one in tau.values()], 1)
    tasks = len(flat)
    unit = np.sqrt((flat**2).sum(1).mean())
    vectors, pairs = flat / unit, max(1, tasks * (tasks - 1))
    delta = kept = np.zeros(flat.shape[1])
    lowest, waited = np.inf, 0
    for _ in range(301):
        rest = vectors - delta
        norms, length = np.linalg.norm(rest, axis=1), np.linalg.norm(delta)
        ways = rest / norms[:, None]
        cos = ways @ ways.T
        np.fill_diagonal(cos, 0)
        value = np.abs(cos).sum() / pairs + 0.1 * length
        waited = 0 if value < lowest else waited + 1
        if value < lowest:
            lowest, kept = value, delta
        if waited >= 100:
            break
        sign = np.sign(cos)
        slopes = sign @ ways / norms[:, None] - (sign * cos).sum(1)[:, None] * rest / norms[:, None] ** 2
        delta = delta - 0.01 * (-2 * slopes.sum(0) / pairs + (0.1 * delta / length if length else 0))
    summed = np.split((0.3 * (flat - unit * kept)).sum(0), np.cumsum([one[0].size for one in tau.values()])[:-1])
    return {name: part.reshape(one.shape[1:]) for (name, one), part in zip(tau.items(), summed, strict=True)}


def regmean(tau: Weights, base: Weights, moments: Mapping[str, Array]) -> dict[str, Array]:
    """With second moments (T, n, n) of every matrix."""

    def one(name: str, vectors: Array) -> Array:
        if not _is_matrix(vectors):
            return vectors.mean(0)
        C = [0.9 * c + 0.1 * np.diag(np.diag(c)) for c in moments[name]]
        right = sum(c @ vector.T for c, vector in zip(C, vectors, strict=True))
        return np.linalg.solve(sum(C), right).T

    return {name: one(name, vectors) for name, vectors in tau.items()}
