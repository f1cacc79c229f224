"""What task vectors look like, centred and from the pretrained weights: the central figure of arXiv 2412.12153."""

from lit_merge.report.analysis.build import Analysis, analyze
from lit_merge.report.analysis.curves import cosines, interference, kept_energy, reconstruction_error
