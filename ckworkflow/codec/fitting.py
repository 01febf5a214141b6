"""Fitting: making what a type says of plain values, or saying what is wrong with them.

Not here: how values are stored (`encoding`, `decoding`).
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any, TypeVar, cast

import msgspec

from ckworkflow.codec.classes import is_model
from ckworkflow.foreign import describe, is_interrupt

__all__ = ["MisfitError", "check_schema", "fit"]

T = TypeVar("T")


class MisfitError(ValueError):
    """A value does not fit a type; says what is wrong, and where."""


def check_schema(schema: object) -> None:
    """Check that values can be fitted to a type.

    Raises:
        TypeError: It is no class.
    """
    if not isinstance(schema, type):
        msg = f"a type is needed (a dataclass, a TypedDict, a pydantic model, an attrs class), and got {schema!r}"
        raise TypeError(msg)


def fit(value: object, schema: type[T]) -> T:
    """Return a value as a type says: an object of the class as it is, plain values as one that is made of them.

    No value is taken for one of another kind: `"5"` is no number.

    Args:
        value: An object of the class, or what JSON can say of one.
        schema: A dataclass, a `TypedDict` (also typing's), a pydantic model, a class of attrs, or a type that JSON has.

    Raises:
        MisfitError: It does not fit.
    """
    if _knows_its_class(schema) and isinstance(value, schema):
        return value
    try:
        return cast("T", _convert(value, schema))
    except BaseException as error:
        if is_interrupt(error):
            raise
        raise MisfitError(_reason(error)) from error


def _convert(value: Any, schema: Any) -> Any:
    if is_model(schema):
        return schema.model_validate(value)
    return msgspec.convert(value, schema, dec_hook=_convert_other)


def _convert_other(schema: Any, value: Any) -> Any:
    """What is within a value, and of a class that the library does not know."""
    if isinstance(value, schema):
        return value
    if is_model(schema):
        return schema.model_validate(value)
    raise NotImplementedError(f"values of {schema.__qualname__} cannot be made of JSON")


def _knows_its_class(schema: type) -> bool:
    """Whether an object of a class of somebody's is one by its class: those of a `TypedDict` are dicts, and `True` is an `int`."""
    return not hasattr(schema, "__total__") and schema.__module__ != "builtins"


def _reason(error: BaseException) -> str:
    if type(error).__module__.partition(".")[0].startswith("pydantic"):
        found: Any = error
        with suppress(AttributeError):  # a model that is not complete has another error
            problems = found.errors(include_url=False)
            return "; ".join(
                f"{each['msg']} - at `$.{'.'.join(map(str, each['loc']))}`" for each in problems
            )
    return describe(error)
