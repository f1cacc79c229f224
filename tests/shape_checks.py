"""What `--jaxtyping-packages` puts around every function here: types and shapes are checked at run time, once a call.

jaxtyping's own wrapper binds the arguments, and checks them twice: a third of the time of the tests of the maths.
"""

import dataclasses
import functools
import inspect
import types
import typing
from collections.abc import Callable
from typing import Any

import jaxtyping
from beartype import BeartypeConf, beartype

whole = jaxtyping.jaxtyped
# jaxtyping's own is a TypeError, too.
REFUSING = BeartypeConf(violation_type=TypeError)


@dataclasses.dataclass
class One:
    made_anew: list[int] = dataclasses.field(default_factory=list)


MADE_ANEW = inspect.signature(One).parameters["made_anew"].default


def install() -> None:
    """Before any module of the package is imported."""
    jaxtyping.jaxtyped = checked


def checked(function: Any = None, *, typechecker: Any) -> Any:
    """Takes the place of `jaxtyping.jaxtyped`."""
    if function is None:
        return functools.partial(checked, typechecker=typechecker)
    if dataclasses.is_dataclass(function):
        made = vars(function).get("__init__")
        if made is not None and not hasattr(made, "__wrapped__"):
            function.__init__ = checked(made, typechecker=typechecker)
        return function
    if not isinstance(function, types.FunctionType) or inspect.isgeneratorfunction(function):
        return whole(function, typechecker=typechecker)
    made: list[Callable[..., Any]] = []

    @functools.wraps(function)
    def call(*arguments: Any, **options: Any) -> Any:
        """Checks are made at the first call: most functions are never called in one process of the tests."""
        if not made:
            made.append(with_checks(function))
        return made[0](*arguments, **options)

    return call


def with_checks(function: Callable[..., Any]) -> Callable[..., Any]:
    copy = types.FunctionType(
        function.__code__, function.__globals__, function.__name__, function.__defaults__, function.__closure__
    )
    copy.__kwdefaults__, copy.__module__, copy.__qualname__ = (
        function.__kwdefaults__,
        function.__module__,
        function.__qualname__,
    )
    copy.__annotations__ = known_types(function)
    inner: Callable[..., Any] = beartype(copy, conf=REFUSING)
    if not any(map(names_a_shape, copy.__annotations__.values())):
        return inner

    def in_a_scope(*arguments: Any, **options: Any) -> Any:
        """Sizes of one name are equal within a call."""
        with whole("context"):
            return inner(*arguments, **options)

    return in_a_scope


def known_types(function: Callable[..., Any]) -> dict[str, Any]:
    """Without those that are imported for a type checker only."""

    def of_one(annotation: Any) -> Any:
        holder = types.SimpleNamespace(__annotations__={"value": annotation})
        return typing.get_type_hints(holder, function.__globals__, include_extras=True)["value"]

    found, defaults = {}, inspect.signature(function).parameters
    for name, annotation in function.__annotations__.items():
        # A field that is made anew for each object has a sign in the place of its default.
        if name in defaults and isinstance(defaults[name].default, type(MADE_ANEW)):
            continue
        try:
            found[name] = of_one(annotation)
        except (NameError, AttributeError):
            continue
    return found


def names_a_shape(hint: Any) -> bool:
    inside = typing.get_args(hint)
    return any(map(names_a_shape, inside)) or (inspect.isclass(hint) and issubclass(hint, jaxtyping.AbstractArray))
