"""Whether a merge can be made of what it was given, from headers alone."""

from collections.abc import Mapping

from lit_merge.errors import MergeError
from lit_merge.experts.experts import Experts
from lit_merge.methods import Transform
from lit_merge.methods.base import MergeMethod


def check_merge(experts: Experts, method: MergeMethod, transform: Transform | None) -> bool:
    """Whether the base's values are needed, from headers alone.

    Raises:
        MergeError: there is no base and it is needed; experts that the method cannot take.
    """
    transform = None if method.centred else transform
    needed = method.needs_base or transform is not None or method.scale == "self_consistent"
    if needed and experts.base is None:
        needy = method if method.needs_base else transform
        what = "scaling=self_consistent" if needy is None else type(needy).__name__
        raise MergeError(
            f"{what} needs the pretrained checkpoint of the experts: give --model.base, or base=… in Python"
        )
    method.check(experts)
    return needed


def check_made_of(experts: object, method: object, transform: object) -> None:
    """Raises MergeError for what is often handed in, in Python, in place of experts, a method, or a transform."""
    if not isinstance(experts, Mapping | Experts):
        raise MergeError(
            f"experts are a {type(experts).__name__}: expected a mapping from task to file or state dict, as "
            '{"mnist": "mnist.safetensors", "svhn": "svhn.safetensors"}'
        )
    _check_made("method", method, MergeMethod, "CART(rank_ratio=0.08)")
    if transform is not None:
        _check_made("transform", transform, Transform, "AWD()")


def _check_made(name: str, value: object, kind: type, example: str) -> None:
    """Raises MergeError where a class, or the name of one, stands in the place of what is made of it."""
    if isinstance(value, kind):
        return
    if isinstance(value, type) and issubclass(value, kind):
        raise MergeError(f"{name}={value.__name__} is a class: call it, {name}={value.__name__}(…)")
    found = repr(value) if isinstance(value, str) else type(value).__name__
    raise MergeError(f"{name} is {found}: expected one that is made of its class, as {name}={example}")
