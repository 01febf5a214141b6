"""The source of a body, and the proof that it is the source of that very function.

A file may have changed since it was imported, so text is taken at decoration and believed only if
compiling it gives, at the same line, a code object equal to the imported one. Parsing waits for the
first use: importing a module of workflows costs no more than reading it.

Not here: what the body means.
"""

from __future__ import annotations
import __future__

import ast
import functools
import hashlib
import inspect
import linecache
import tokenize
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from types import CodeType, FunctionType
from typing import Any, Final, TypeAlias

__all__ = [
    "BodySource",
    "LocatedBody",
    "ParsedModule",
    "Scope",
    "capture_source",
    "future_flags",
    "locate",
    "quiet_compile",
]

Scope: TypeAlias = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Lambda

_TRIES: Final = 5

_FUTURE_MASK = functools.reduce(
    lambda flags, name: flags | getattr(__future__, name).compiler_flag, __future__.all_feature_names, 0
)


@dataclass(frozen=True, slots=True)
class BodySource:
    """Where a body was written, as it was when it was imported.

    Attributes:
        filename: The file as its code object names it.
        module_text: The text of the whole file.
        first_line: The first line of the function, its decorators included.
        text: The lines of the function alone, decorators included.
        source_hash: SHA-256 of `text`, hexadecimal: tells whether a body was edited.
    """

    filename: str
    module_text: str
    first_line: int
    text: str
    source_hash: str


@dataclass(frozen=True, slots=True)
class ParsedModule:
    """One module's tree with what every body of it needs to know.

    Attributes:
        tree: The tree; shared, so never to be changed.
        codes: The code objects of all its functions.
        functions: Its functions and the scopes around each, by name and first line, decorators included.
        rebound_globals: Names that some function of the module declares `global`.
        nonlocals: Names that some function of the module declares `nonlocal`.
        bound_globals: How many statements of the module, outside functions and classes, bind a name.
    """

    tree: ast.Module
    codes: frozenset[CodeType]
    functions: Mapping[tuple[str, int], tuple[ast.FunctionDef | ast.AsyncFunctionDef, tuple[Scope, ...]]]
    rebound_globals: frozenset[str]
    nonlocals: frozenset[str]
    bound_globals: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class LocatedBody:
    """The tree of one function, proved to be the function's own.

    Attributes:
        node: Its definition; part of the shared tree.
        enclosing: The functions and classes around it, outermost first.
        module: The module it is part of.
    """

    node: ast.AsyncFunctionDef
    enclosing: tuple[Scope, ...]
    module: ParsedModule


def capture_source(function: FunctionType) -> BodySource | None:
    """Take the text of a function's module while it is being imported.

    Args:
        function: The function as its `def` made it.

    Returns:
        The source, or `None` where there is none (a REPL, `exec`).
    """
    code = function.__code__
    # The cache may hold the text of before a reload.
    linecache.checkcache(code.co_filename)
    lines = linecache.getlines(code.co_filename, function.__globals__)
    if not lines or code.co_firstlineno > len(lines):
        return None
    try:
        block = "".join(inspect.getblock(lines[code.co_firstlineno - 1 :]))
    except (SyntaxError, tokenize.TokenError):
        return None
    return BodySource(
        filename=code.co_filename,
        module_text="".join(lines),
        first_line=code.co_firstlineno,
        text=block,
        source_hash=hashlib.sha256(block.encode()).hexdigest(),
    )


def locate(function: FunctionType, source: BodySource) -> LocatedBody | str:
    """Find the tree of a function in its module, and prove that it is the right one.

    Returns:
        The tree, or why it cannot be had, in words.
    """
    try:
        module = _parse(source.module_text, source.filename)
    except (SyntaxError, ValueError) as error:
        return f"its file does not parse any more ({error})"
    if function.__code__ not in module.codes:
        return "its file does not compile to the function that was imported"
    node, enclosing = module.functions.get((function.__code__.co_name, source.first_line), (None, ()))
    if not isinstance(node, ast.AsyncFunctionDef):
        return "its definition is not found in its file"
    return LocatedBody(node, enclosing, module)


def future_flags(code: CodeType) -> int:
    """The `from __future__` flags under which a code object was compiled."""
    return code.co_flags & _FUTURE_MASK


def quiet_compile(source: str | ast.Module, filename: str, *, flags: int = 0) -> Any:
    """Compile a module as `compile` does, without the warnings that its import has shown.

    CPython 3.11 counts the depth of every tree that it builds in one place. Whoever comes in between (another
    thread, a finalizer that prints a traceback and so parses the line it shows) makes it raise `SystemError`,
    which says nothing of the source: then it is compiled again.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(_TRIES - 1):
            with suppress(SystemError):
                return compile(source, filename, "exec", flags=flags, dont_inherit=True)
        return compile(source, filename, "exec", flags=flags, dont_inherit=True)


@functools.lru_cache(maxsize=16)
def _parse(text: str, filename: str) -> ParsedModule:
    tree = quiet_compile(text, filename, flags=ast.PyCF_ONLY_AST)
    code = quiet_compile(text, filename)
    nodes = list(ast.walk(tree))
    return ParsedModule(
        tree=tree,
        codes=frozenset(_codes(code)),
        functions={
            (node.name, _first_line(node)): (node, scopes) for node, scopes in _functions(tree, ())
        },
        rebound_globals=frozenset(
            name for node in nodes if isinstance(node, ast.Global) for name in node.names
        ),
        nonlocals=frozenset(
            name for node in nodes if isinstance(node, ast.Nonlocal) for name in node.names
        ),
        bound_globals=Counter(_bound_names(tree)),
    )


def _bound_names(node: ast.AST) -> Iterator[str]:
    """Each binding of a global, outside functions and classes; a loop's bindings count twice."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Name) and not isinstance(child.ctx, ast.Load):
            yield child.id
        if isinstance(child, ast.alias):
            yield child.asname or child.name
        if not isinstance(child, Scope):
            yield from _bound_names(child)
            if isinstance(child, ast.For | ast.While):
                yield from _bound_names(child)


def _codes(code: CodeType) -> Iterator[CodeType]:
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield constant
            yield from _codes(constant)


def _first_line(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    return min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])


def _functions(
    node: ast.AST, enclosing: tuple[Scope, ...]
) -> Iterator[tuple[ast.FunctionDef | ast.AsyncFunctionDef, tuple[Scope, ...]]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            yield child, enclosing
        inner = (*enclosing, child) if isinstance(child, Scope) else enclosing
        yield from _functions(child, inner)
