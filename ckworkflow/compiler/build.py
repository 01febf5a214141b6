"""From a rewritten tree to a function that is the original to every eye but the tracer's.

File, lines, name, defaults, annotations, globals and the very cells of its closure stay. The tree is
compiled inside a factory that binds what the original had free; the factory itself never runs.

Not here: what was rewritten.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from types import CellType, CodeType, FunctionType
from typing import Final

from ckworkflow.compiler.source import LocatedBody, future_flags, quiet_compile

__all__ = ["build"]

_FACTORY: Final = "__ckw_factory__"
_BODY: Final = "__ckw_body__"


def build(
    original: FunctionType,
    node: ast.AsyncFunctionDef,
    located: LocatedBody,
    support: Mapping[str, object],
) -> FunctionType:
    """Make the function.

    Args:
        original: The function that the tree stands for.
        node: Its rewritten definition.
        located: Where the original definition stands.
        support: What the rewritten code reaches through cells of its own, by name.

    Returns:
        A function with all the attributes of the original.
    """
    code = original.__code__
    cells = dict(zip(code.co_freevars, original.__closure__ or (), strict=True))
    # A def and a class bind their names in the factory, where the body would find them instead of its own
    # globals and cells: so both get names that no body contains.
    node.name = _BODY
    definition: ast.stmt = node
    classes = [scope for scope in located.enclosing if isinstance(scope, ast.ClassDef)]
    if classes:
        # Private names (`__x`) are mangled with the name of the class around them, without its first underscores.
        stand_in = "_" * 40 + classes[-1].name.lstrip("_")
        definition = ast.ClassDef(name=stand_in, bases=[], keywords=[], body=[node], decorator_list=[])
    arguments = [ast.arg(name) for name in dict.fromkeys([*support, *cells])]
    factory = ast.FunctionDef(
        name=_FACTORY,
        args=ast.arguments(
            posonlyargs=[],
            args=arguments,
            vararg=None,
            kwonlyargs=[],
            kw_defaults=[],
            kwarg=None,
            defaults=[],
        ),
        body=[definition],
        decorator_list=[],
        returns=None,
        type_comment=None,
    )
    for new in (definition, factory):
        if "type_params" in new._fields and not hasattr(new, "type_params"):
            new.type_params = []  # type: ignore[attr-defined,unused-ignore]
    module = ast.fix_missing_locations(ast.Module(body=[factory], type_ignores=[]))
    compiled = quiet_compile(module, code.co_filename, flags=future_flags(code))
    found = _find(compiled)
    found = _renamed(found, found.co_qualname, code.co_qualname).replace(co_name=code.co_name)
    cells |= {name: CellType(value) for name, value in support.items()}
    closure = tuple(cells[name] for name in found.co_freevars)
    function = FunctionType(
        found, original.__globals__, original.__name__, original.__defaults__, closure
    )
    function.__kwdefaults__ = original.__kwdefaults__
    function.__annotations__ = original.__annotations__
    function.__doc__ = original.__doc__
    function.__module__ = original.__module__
    function.__qualname__ = original.__qualname__
    function.__dict__.update(original.__dict__)
    return function


def _find(code: CodeType) -> CodeType:
    """The code of the definition, within factory and class."""
    inner = [constant for constant in code.co_consts if isinstance(constant, CodeType)]
    return next((found for found in inner if found.co_name == _BODY), None) or _find(inner[0])


def _renamed(code: CodeType, old: str, new: str) -> CodeType:
    """A code object, and those in it, with another prefix to their qualified names."""
    constants = tuple(
        _renamed(constant, old, new) if isinstance(constant, CodeType) else constant
        for constant in code.co_consts
    )
    return code.replace(co_consts=constants, co_qualname=code.co_qualname.replace(old, new, 1))
