"""What transformers says of weights by a configuration: its own `from_pretrained`, without their values."""

import copy
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch

from lit_merge.errors import MergeError

# Of long lists of names.
SHOWN = 3

Files = Mapping[str, tuple[tuple[int, ...], torch.dtype]]
"""Name in the files → shape and dtype."""


class Loaded(NamedTuple):
    """What loading left over: names that have no weight, weights that have no place, and weights of another shape than
    their place, with both; and pairs of matrices that are tied by the configuration and yet have a weight each."""

    missing: frozenset[str]
    unexpected: frozenset[str]
    mismatched: dict[str, tuple[tuple[int, ...], tuple[int, ...]]]
    tied: tuple[tuple[str, str], ...] = ()

    @property
    def whole(self) -> bool:
        return not (self.missing or self.unexpected or self.mismatched)

    def __str__(self) -> str:
        shapes = [f"{name} ({list(here)}, expected {list(there)})" for name, (here, there) in self.mismatched.items()]
        kinds = {"it has no": sorted(self.missing), "nothing takes": sorted(self.unexpected), "other shapes": shapes}
        found = [f"{kind} {_few(names)}" for kind, names in kinds.items() if names]
        return "; ".join(found)


def load(about: Mapping[str, Any], files: Files) -> Loaded | None:
    """What `from_pretrained` would say of these weights; None where transformers cannot tell: it is not there, or knows
    no such model.

    Raises:
        MergeError: the model cannot be built by its configuration.
    """
    kind, config = _model(about)
    if kind is None:
        return None
    with _silent():
        try:
            with torch.device("meta"):
                model = kind(copy.deepcopy(config))
        except ImportError:
            return None
        except Exception as error:  # transformers fails in as many ways as configurations are wrong
            line = " ".join(str(error).split())[:200]
            raise MergeError(f"transformers builds no {kind.__name__} of it: {line}") from error
        try:
            weights = {name: torch.empty(shape, dtype=dtype, device="meta") for name, (shape, dtype) in files.items()}
            _, message = kind.from_pretrained(
                None,
                config=config,
                state_dict=weights,
                device_map={"": "meta"},
                output_loading_info=True,
                ignore_mismatched_sizes=True,
            )
        except Exception:  # it is asked in an unusual way: without an answer nothing is said of the weights
            return None
    mismatched = {name: (tuple(here), tuple(there)) for name, here, there in message["mismatched_keys"]}
    pairs = getattr(model, "all_tied_weights_keys", None) or {}
    tied = tuple((one, other) for one, other in pairs.items() if one in files and other in files)
    return Loaded(
        frozenset(message["missing_keys"]),
        frozenset(message["unexpected_keys"]),
        mismatched,
        tuple(pair for pair in tied if len(files[pair[0]][0]) == 2),
    )


def related(about: Mapping[str, Any]) -> list[str]:
    """Classes of the same model with another head, or with none, that the names of the weights suggest."""
    kind, config = _model(about)
    if kind is None:
        return []
    import transformers

    found = []
    for auto in (transformers.AutoModel, transformers.AutoModelForPreTraining):
        with _silent():
            one = auto._model_mapping.get(type(config), None)
        found += [kind.__name__ for kind in (one if isinstance(one, tuple) else (one,)) if kind is not None]
    return found


def _model(about: Mapping[str, Any]) -> tuple[Any, Any]:
    """The class and the configuration of transformers'; None where it has none of that name."""
    kinds = about.get("architectures")
    if not isinstance(kinds, list) or not kinds or not isinstance(about.get("model_type"), str):
        return None, None
    try:
        import transformers

        with _silent():
            config = transformers.CONFIG_MAPPING[about["model_type"]].from_dict(copy.deepcopy(dict(about)))
            kind = getattr(transformers, str(kinds[0]), None)
    except (ImportError, KeyError):
        return None, None
    except Exception as error:
        raise MergeError(f"transformers cannot read it: {' '.join(str(error).split())[:200]}") from error
    return (kind, config) if hasattr(kind, "from_pretrained") else (None, None)


@contextmanager
def _silent() -> Iterator[None]:
    """transformers, without bars and reports."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _few(names: Collection[str]) -> str:
    return ", ".join(list(names)[:SHOWN]) + (f", … ({len(names)} in all)" if len(names) > SHOWN else "")
