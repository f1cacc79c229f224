"""The weights of the experts, checked against each other and streamed one weight at a time.

Which weights are matrices, second moments of inputs, and decompositions that are kept are here too; formulas are not.
"""

from lit_merge.experts.experts import Experts as Experts
