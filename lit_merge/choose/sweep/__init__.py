"""Sweeps: methods × ranks × scales over one set of experts, chosen with labels or without."""

from lit_merge.choose.sweep.grid import Grid, walk
from lit_merge.choose.sweep.points import Inputs, Point, Select, choose
from lit_merge.choose.sweep.run import run_sweep
