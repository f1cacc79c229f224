"""The task bank, W = origin + Σ λ·Δ, its low-rank deltas, weighted sums, linear algebra, and its files.

It knows tensors and tasks. It does not know where experts come from, or which method made it.
"""
