"""Which local names hold only what nobody but the body can reach.

The world may change what it can reach while steps are under way, so before a body touches such an object everything
it awaited must be recorded. A name is *owned* if all that is ever bound to it is new (a display, a constant, a step's
result, which is decoded for that await alone; a parameter of a run's own body), and if all that is ever done with it
is on the short list below, none of which hands it on. Everything else is the world's: then the value is asked at run
time, and what cannot change passes.

Names that may share an object (`a = b`, `for a in b`, `b.append(a)`) are owned together or not at all.

Not here: the question at run time, and where it is put (`quiet`).
"""

from __future__ import annotations

import ast
from collections.abc import Iterable
from typing import Final

from ckworkflow.compiler.proof import appended, gather_members
from ckworkflow.compiler.scope import BindingKind, Body, LocalName
from ckworkflow.compiler.sites import Callee

__all__ = ["Owned", "iterated"]

_COPIED: Final = frozenset({Callee.STEP, Callee.SLEEP})
_DISPLAYS: Final = (ast.List, ast.Tuple, ast.ListComp, ast.Dict, ast.Constant, ast.JoinedStr)


class Owned:
    """The owned names of a body.

    Args:
        body: The body.

    Attributes:
        names: The owned ones.
        shared: Those that are so only while the body is the run's own and iterates over plain containers: they may be,
            or be reached from, a parameter or something it iterates over.
    """

    def __init__(self, body: Body) -> None:
        self._body = body
        self._joined: dict[str, set[str]] = {name: set() for name in body.names}
        foreign = {local.name for local in body.names.values() if not self._is_own(local)}
        asked = {
            local.name
            for local in body.names.values()
            if any(binding.kind is BindingKind.PARAMETER for binding in local.bindings)
            or any(self._is_iterated(use) for use in local.uses)
        }
        self.names = set(body.names) - self._reach(foreign)
        self.shared = self._reach(asked) & self.names

    def _reach(self, names: set[str]) -> set[str]:
        found, pending = set(names), list(names)
        while pending:
            new = self._joined[pending.pop()] - found
            found |= new
            pending.extend(new)
        return found

    def _join(self, one: str, other: str) -> bool:
        self._joined[one].add(other)
        self._joined[other].add(one)
        return True

    def _is_own(self, local: LocalName) -> bool:
        if local.is_captured or local.is_rebound_inside:
            return False
        if self._body.has_mutable_default(local.name):
            return False
        # Lists, not generators: every binding and every use must be read, for the names that it joins.
        bound = [self._is_new(local.name, binding.kind, binding.value) for binding in local.bindings]
        used = [self._is_kept(local, use) for use in local.uses]
        return all(bound) and all(used)

    # What is bound to a name.

    def _is_new(self, name: str, kind: BindingKind, value: ast.expr | None) -> bool:
        match kind:
            case BindingKind.PARAMETER:
                return True
            case BindingKind.ASSIGN | BindingKind.UNPACK:
                return value is not None and self._gives_new(name, value)
            case BindingKind.LOOP:
                sources = iterated(self._body, value) if value is not None else []
                is_range = value is not None and self._body.is_builtin_call(value, "range")
                return is_range or (self._all_new(name, sources) and bool(sources))
        return False

    def _gives_new(self, name: str, value: ast.expr) -> bool:
        """Whether a value holds nothing but new objects and those of names that it is then joined with."""
        body = self._body
        match value:
            case ast.Constant() | ast.JoinedStr():
                return True
            case ast.Name():
                local = body.local(value)
                return local is not None and self._join(name, local.name)
            case ast.List(elts=elements) | ast.Tuple(elts=elements):
                return self._all_new(name, elements)
            case ast.Dict(keys=keys, values=values):
                return all(isinstance(key, ast.Constant) for key in keys) and self._all_new(name, values)
            case ast.Await(value=ast.Call() as call):
                callee = body.callee(call)
                members = gather_members(call) if callee is Callee.GATHER else [call]
                return all(body.callee(member) in _COPIED for member in members)
        return False

    def _all_new(self, name: str, values: Iterable[ast.expr]) -> bool:
        # A list: each is read, for the names that it joins.
        found = [self._gives_new(name, value) for value in values]
        return all(found)

    # What is done with a name.

    def _is_kept(self, local: LocalName, use: ast.Name) -> bool:  # noqa: C901, PLR0912  # one case a kind of use
        """Whether a use hands the object to nobody; joins the name with those that get it."""
        body = self._body
        item = appended(body, use)
        if item is not None:
            return self._gives_new(local.name, item)
        node: ast.AST = use
        while True:
            parent = body.parents[node]
            match parent:
                case ast.List() | ast.Tuple() | ast.keyword():
                    pass
                case ast.Dict() if node in parent.values:
                    pass
                case ast.Starred() if isinstance(body.parents[parent], ast.Call):
                    return body.callee(body.parents[parent]) is Callee.STEP and node is use  # type: ignore[arg-type]
                case ast.Call():
                    return self._is_kept_by(local, node, parent)
                case ast.Return() | ast.Expr():
                    return True
                case ast.Attribute() | ast.Subscript() if isinstance(parent.ctx, ast.Load):
                    return self._is_part_kept(local, parent)
                case ast.Assign(targets=targets) if node is parent.value:
                    return self._is_bound_to(local, targets)
                case ast.AnnAssign(target=target) if node is parent.value:
                    return self._is_bound_to(local, [target])
                case ast.If() | ast.While() if node is parent.test:
                    return node is use and _is_displayed(local)
                case ast.For() if node is parent.iter:
                    return self._is_bound_to(local, [parent.target])
                case ast.comprehension() if node is parent.iter:
                    return self._is_gathered(body.parents[parent])
                case _:
                    return False
            node = parent

    def _is_kept_by(self, local: LocalName, node: ast.AST, call: ast.Call) -> bool:
        body = self._body
        if node is call.func:
            return False
        if body.callee(call) in _COPIED:
            return True
        if isinstance(call.func, ast.Attribute) and isinstance(call.func.value, ast.Name):
            item = appended(body, call.func.value)
            return item is not None and self._join(local.name, call.func.value.id)
        if not (body.is_builtin(call.func) and isinstance(call.func, ast.Name) and not call.keywords):
            return False
        if call.func.id == "len":
            return isinstance(node, ast.Name) and _is_displayed(local)
        return self._is_loop_over(call, local)

    def _is_loop_over(self, source: ast.AST, local: LocalName) -> bool:
        """Whether an expression is what a loop runs over, as `iterated` knows it: `enumerate(xs)`, `xs.items()`."""
        loop = self._body.parents[source]
        return (
            isinstance(loop, ast.For)
            and loop.iter is source
            and any(
                isinstance(name, ast.Name) and name.id == local.name
                for name in iterated(self._body, loop.iter)
            )
            and self._is_bound_to(local, [loop.target])
        )

    def _is_part_kept(self, local: LocalName, part: ast.Attribute | ast.Subscript) -> bool:
        """Of all parts only `xs.items()` and its like, where a loop runs over it."""
        if isinstance(part, ast.Attribute) and isinstance(call := self._body.parents[part], ast.Call):
            return call.func is part and self._is_loop_over(call, local)
        return False

    def _is_gathered(self, loop: ast.AST) -> bool:
        """Whether a comprehension only makes the members of a gather, of arguments that are copied."""
        body = self._body
        if not isinstance(loop, ast.ListComp | ast.GeneratorExp) or len(loop.generators) != 1:
            return False
        starred = body.parents[loop]
        generator = loop.generators[0]
        call = loop.elt
        return (
            isinstance(starred, ast.Starred)
            and body.callee(body.parents[starred]) is Callee.GATHER  # type: ignore[arg-type]
            and isinstance(generator.target, ast.Name)
            and not generator.ifs
            and isinstance(call, ast.Call)
            and body.callee(call) in _COPIED
            and all(
                _only_passes(argument) for argument in [*call.args, *(k.value for k in call.keywords)]
            )
        )

    def _is_bound_to(self, local: LocalName, targets: list[ast.expr]) -> bool:
        names = [name for target in targets for name in ast.walk(target)]
        if not all(isinstance(name, ast.Name | ast.Tuple | ast.expr_context) for name in names):
            return False
        locals_ = [self._body.local(name) for name in names if isinstance(name, ast.Name)]
        joined = [other is not None and self._join(local.name, other.name) for other in locals_]
        return all(joined)

    def _is_iterated(self, use: ast.Name) -> bool:
        parent = self._body.parents[use]
        if isinstance(parent, ast.comprehension | ast.Starred):
            return True
        if isinstance(parent, ast.keyword) and parent.arg is None:
            return True
        if isinstance(parent, ast.Assign) and any(
            isinstance(target, ast.Tuple | ast.List) for target in parent.targets
        ):
            return True
        loop = self._body.statement_of(use)
        return isinstance(loop, ast.For) and use in iterated(self._body, loop.iter)


def iterated(body: Body, iterable: ast.expr) -> list[ast.expr]:
    """What a loop takes its values from, if it can be asked: a name, an await; `enumerate(xs)`, `xs.items()` of names."""
    match iterable:
        case ast.Name() | ast.Await() | ast.List() | ast.Tuple():
            return [iterable]
        case ast.Call(
            func=ast.Name(id="enumerate" | "zip" | "reversed") as func, args=args, keywords=[]
        ) if body.is_builtin(func) and args and all(isinstance(source, ast.Name) for source in args):
            return list(args)
        case ast.Call(
            func=ast.Attribute(value=ast.Name() as source, attr="items" | "keys" | "values"),
            args=[],
            keywords=[],
        ):
            return [source]
    return []


def _is_displayed(local: LocalName) -> bool:
    """Whether a name is bound to displays and constants alone: a look at such an object runs no code."""
    return all(
        binding.kind is BindingKind.ASSIGN and isinstance(binding.value, _DISPLAYS)
        for binding in local.bindings
    )


def _only_passes(node: ast.expr) -> bool:
    return all(
        isinstance(part, ast.Name | ast.Constant | ast.List | ast.Tuple | ast.expr_context)
        for part in ast.walk(node)
    )
