"""The driver: it runs a method over the weights, builds a bank or writes a merge, alone or in several processes.

Formulas live in `methods`, file formats in `checkpoints`; here is the order of the work, and how it is gone on with.
"""
