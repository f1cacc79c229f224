"""Choices without labels: the scale of a merge, its rank, sweeps over both; and the sources of a merge they choose for.

Lightning's Trainer does not live here: networks run on a few unlabelled inputs only.
"""
