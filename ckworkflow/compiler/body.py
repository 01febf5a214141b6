"""Compile one body: from its function and its source to what tracing runs.

What cannot be compiled is left exactly as it is, with the reason: then every await is strict, which
is always right.

Not here: any of the parts that this puts together.
"""

from __future__ import annotations

import ast
import inspect
import logging
from collections.abc import Iterator
from types import CodeType, FunctionType
from typing import Final

from ckworkflow.compiler.build import build
from ckworkflow.compiler.owned import Owned
from ckworkflow.compiler.proof import Proof
from ckworkflow.compiler.quiet import Knowledge
from ckworkflow.compiler.rewrite import OPS, rewrite
from ckworkflow.compiler.scope import Body, short
from ckworkflow.compiler.sites import AwaitSite, Classify, CompiledBody, FenceSite
from ckworkflow.compiler.source import BodySource, locate
from ckworkflow.compiler.walk import Decisions, decide

__all__ = ["compile_body"]

logger = logging.getLogger(__name__)

_LOOKS_AT_FRAME: Final = frozenset(
    {"locals", "eval", "exec", "globals", "vars", "dir", "inspect", "breakpoint"}
)
_FRAME_ATTRIBUTES: Final = frozenset(
    {"_getframe", "_current_frames", "currentframe", "cr_frame", "tb_frame", "f_locals"}
)


def compile_body(
    function: FunctionType, source: BodySource | None, *, classify: Classify, ops: object
) -> CompiledBody:
    """Compile a body for tracing.

    Args:
        function: The `async def` as the decorator got it.
        source: Its source, captured when it was decorated.
        classify: Tells steps, workflows and the like from other values.
        ops: What the rewritten code calls; `rewrite` lists its attributes.

    Returns:
        The rewritten body, or the original and why.
    """
    try:
        return _compile(function, source, classify=classify, ops=ops)
    except Exception as error:  # noqa: BLE001  # whatever goes wrong here: strict awaits are always right
        logger.warning(
            "workflow %s.%s not compiled, every await in it is strict: %s",
            function.__module__, function.__qualname__, repr(error)[:200],
        )  # fmt: skip
        return _untouched(function, f"the compiler failed on it ({type(error).__name__})")


def _compile(
    function: FunctionType, source: BodySource | None, *, classify: Classify, ops: object
) -> CompiledBody:
    if hasattr(function, "__wrapped__"):
        return _untouched(function, "another decorator stands between the def and @workflow")
    if source is None:
        return _untouched(
            function, "its source is not to be had (typed in, exec'd or built at run time)"
        )
    if any(name.startswith("__ckw") for name in _names(function.__code__)):
        return _untouched(function, "it uses a name that begins with `__ckw`")
    if not inspect.iscoroutinefunction(function):
        return _untouched(function, "it is not a plain async def")
    located = locate(function, source)
    if isinstance(located, str):
        return _untouched(function, located)
    body = Body(located, function, classify)
    known = Knowledge(body, Proof(body), Owned(body))
    why_not = _looks_at_its_frame(body)
    if why_not is not None:
        for node in body.awaits:
            known.proof.make_strict(node, why_not)
        return CompiledBody(
            function, rewritten=False, why_not=why_not, awaits=_await_sites(known), fences=()
        )
    decisions = decide(known)
    rewritten = build(function, rewrite(known, decisions), located, {OPS: ops})
    return CompiledBody(
        rewritten,
        rewritten=True,
        why_not=None,
        awaits=_await_sites(known),
        fences=_fence_sites(decisions),
    )


def _names(code: CodeType) -> Iterator[str]:
    yield from (*code.co_names, *code.co_varnames, *code.co_freevars, *code.co_cellvars)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)


def _untouched(function: FunctionType, why_not: str) -> CompiledBody:
    return CompiledBody(function, rewritten=False, why_not=why_not, awaits=(), fences=())


def _looks_at_its_frame(body: Body) -> str | None:
    """Why a body must not be rewritten at all: it could see that it was."""
    for node in ast.walk(body.node):
        match node:
            case ast.Name(id=name) if name in _LOOKS_AT_FRAME:
                return f"`{name}` on line {node.lineno} can look at the body itself"
            case ast.Attribute(attr=name) if name in _FRAME_ATTRIBUTES:
                return f"`{name}` on line {node.lineno} can look at the body itself"
            case ast.Import(names=aliases) if any(alias.name == "inspect" for alias in aliases):
                return f"`inspect` on line {node.lineno} can look at the body itself"
            case ast.ImportFrom(module="inspect" | "builtins"):
                return f"`inspect` on line {node.lineno} can look at the body itself"
    return None


def _await_sites(known: Knowledge) -> tuple[AwaitSite, ...]:
    sites = [
        AwaitSite(node.lineno, node.col_offset, short(node), verdict.lazy, verdict.reason)
        for node, verdict in known.proof.verdicts.items()
    ]
    return tuple(sorted(sites, key=lambda site: (site.line, site.column)))


def _fence_sites(decisions: Decisions) -> tuple[FenceSite, ...]:
    sites = []
    for statement, need in decisions.fences.items():
        line = statement.test.lineno if isinstance(statement, ast.While) else statement.lineno
        sites.append(FenceSite(line, need.reason, conditional=need.always is None))
    for loop in decisions.turns:
        reason = f"`{short(loop.iter)}` may run code, or be changed, at each turn"
        sites.append(FenceSite(loop.lineno, reason, conditional=True))
    return tuple(sorted(sites, key=lambda site: site.line))
