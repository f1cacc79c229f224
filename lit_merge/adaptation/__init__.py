"""Adaptation on unlabelled data: the LightningModule, its learnable coefficients, stages, callbacks, and whole runs.

Lightning lives here and in `cli`, and nowhere below. Formulas of merging do not: a bank comes in, a bank goes out.
"""
