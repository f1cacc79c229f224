"""Which tensors of an unpickled value are the weights of a model, and their names in its state dict."""

import functools
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

from lit_merge.checkpoints.pickle.stand_ins import LONGEST_NAME, Damaged, Made, Name, shown
from lit_merge.checkpoints.pickle.tensor_records import TensorRecord

# Where trainers keep the model among what else they save: Lightning, open_clip and timm; others; DeepSpeed.
WRAPPERS = ("state_dict", "model_state_dict", "model", "module")
# A model that contains itself, or names that double at every level, would never end.
MOST_NAMES = 200_000


def weights_of(found: Any, inside: str | None = None) -> tuple[dict[str, TensorRecord], dict[str, str]]:
    """name → tensor, as the model's own `state_dict()` would give them; and of a dictionary the entries that are none,
    with what they are.

    Args:
        found: what a file's pickle holds: a state dict, a training checkpoint with one, or a whole module.
        inside: which entry of a training checkpoint; by default the first that `models_in` names.

    Raises:
        Damaged: none of these.
    """
    model = _model_in(found, inside)
    if model is None:
        raise Damaged(f"it holds no weights of a model: it is {describe(found)}")
    named = dict(_of_module(model)) if isinstance(model, Made) else dict(_of_mapping(model))
    tensors = {name: value for name, value in named.items() if isinstance(value, TensorRecord)}
    if not tensors:
        raise Damaged("it holds a model without a single weight")
    others = {name: f"{describe(value)}, expected a tensor" for name, value in named.items() if name not in tensors}
    # Of DataParallel, around all of the model.
    if all(name.startswith("module.") for name in named):
        tensors = {name.removeprefix("module."): value for name, value in tensors.items()}
        others = {name.removeprefix("module."): what for name, what in others.items()}
    return tensors, {shown(name): what for name, what in others.items()}


def describe(found: Any) -> str:
    """What was unpickled, in words."""
    if isinstance(found, Made):
        return f"what {found.kind} makes" if isinstance(found.kind, Name) else "an unknown object"
    if isinstance(found, Mapping):
        names = [shown(key[:40]) for key in islice(found, 6) if isinstance(key, str)]
        more = ", …" if len(found) > 6 else ""
        return f"a dictionary of {', '.join(names)}{more}" if names else "an empty dictionary"
    if isinstance(found, TensorRecord):
        return "a single tensor"
    return f"a {type(found).__name__}"


def models_in(found: Any) -> list[str]:
    """Entries of a training checkpoint that hold weights of a model, those of the training before their averages; none
    of a file that is a model."""
    mapping = found.items if isinstance(found, Made) else found
    if _is_module(found) or not isinstance(mapping, dict):
        return []
    averages = [key for key in mapping if isinstance(key, str) and _names_average(key)]
    return [key for key in (*WRAPPERS, *averages) if _holds_weights(mapping.get(key))]


def _names_average(key: str) -> bool:
    """Whether an entry of this name is a model's average over its training: `model_ema`, `ema_state_dict`, …"""
    return key == "averaged_model" or (key.isidentifier() and "ema" in key.split("_"))


def _holds_weights(inside: Any) -> bool:
    return _is_module(inside) or (isinstance(inside, dict) and _has_tensors(inside))


def _model_in(found: Any, inside: str | None) -> Any:
    if inside is None and _is_module(found):
        return found
    mapping = found.items if isinstance(found, Made) else found
    if not isinstance(mapping, dict):
        return None
    if inside is not None:
        if not _holds_weights(mapping.get(inside)):
            raise Damaged(f"it holds no weights under {inside!r}: it is {describe(found)}")
        return mapping[inside]
    there = models_in(found)
    return mapping[there[0]] if there else mapping if _has_tensors(mapping) else None


def _has_tensors(mapping: Mapping[Any, Any]) -> bool:
    return any(isinstance(value, TensorRecord) for value in mapping.values())


def _of_mapping(mapping: Mapping[Any, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in mapping.items():
        if not isinstance(name, str):
            raise Damaged(f"a weight is called by {describe(name)}, expected a name")
        yield name, value


def _attributes(found: Any) -> dict[Any, Any]:
    """`__dict__` of what would have been made. A class with slots has a pair as its state."""
    state = found.state if isinstance(found, Made) else None
    if isinstance(state, tuple) and state:
        state = state[0]
    return state if isinstance(state, dict) else {}


def _is_script(found: Any) -> bool:
    """Whether it is a module of TorchScript, which keeps weights and modules among its attributes."""
    return isinstance(found, Made) and isinstance(found.kind, Name) and found.kind.module.startswith("__torch__")


def _is_module(found: Any) -> bool:
    inside = _attributes(found)
    return _is_script(found) or all(isinstance(inside.get(part), dict) for part in ("_parameters", "_modules"))


def _of_module(module: Made) -> Iterator[tuple[str, TensorRecord]]:
    """Names and values of `torch.nn.Module.state_dict`: parameters, persistent buffers, then the modules inside, in
    their order."""
    queue: list[tuple[str, Any]] = [("", module)]
    # One module may stand in very many places.
    inside = functools.cache(_inside)
    seen = 0
    while queue:
        prefix, one = queue.pop()
        if not _is_module(one):
            raise Damaged(f"{shown(prefix).removesuffix('.')} is {describe(one)}, expected a module")
        tensors, modules = inside(one)
        seen += 1 + len(tensors) + len(modules)
        longest = max((len(prefix) + len(name) for name in (*tensors, *modules)), default=0)
        if seen > MOST_NAMES or longest > LONGEST_NAME:
            raise Damaged("its modules contain one another without end")
        for name, value in tensors.items():
            if not isinstance(value, TensorRecord):
                raise Damaged(f"{shown(prefix + name)} is {describe(value)}, expected a tensor")
            yield f"{prefix}{name}", value
        queue += [(f"{prefix}{name}.", inner) for name, inner in reversed(modules.items())]


def _inside(module: Made) -> tuple[dict[str, Any], dict[str, Any]]:
    """The parameters and persistent buffers of a module, and the modules in it."""
    state = _attributes(module)
    if _is_script(module):
        tensors = {name: value for name, value in state.items() if isinstance(value, TensorRecord)}
        modules = {name: value for name, value in state.items() if _is_script(value)}
    else:
        buffers, passing = state.get("_buffers"), state.get("_non_persistent_buffers_set")
        passing = {name for name in passing if isinstance(name, str)} if isinstance(passing, list | tuple) else set()
        buffers = buffers if isinstance(buffers, dict) else {}
        kept = {name: value for name, value in buffers.items() if name not in passing}
        tensors, modules = state["_parameters"] | kept, state["_modules"]
    return _filled(tensors), _filled(modules)


def _filled(mapping: Mapping[Any, Any]) -> dict[str, Any]:
    return {name: value for name, value in _of_mapping(mapping) if value is not None}
