"""What a transform of task vectors is."""

from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass

from lit_merge.experts import Experts
from lit_merge.finite import Finite
from lit_merge.weight_stream import Change


@dataclass(frozen=True)
class Transform(Finite, ABC):
    """Hyper-parameters of a step in front of any method, which then sees the changed experts."""

    @abstractmethod
    def fit(self, experts: Experts) -> Change:
        """Looks at all experts, in passes of its own, and answers what changes one weight of them.

        Where the answer has a `report`, a dict of numbers, `build_bank` puts it on the bank's record of the transform.

        Raises:
            MergeError: experts that it cannot work on.
        """

    def describe(self) -> dict[str, object]:
        """Class and hyper-parameters, as a configuration names them."""
        return {"class_path": type(self).__name__, "init_args": asdict(self)}
