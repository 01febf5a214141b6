"""Where a body waits: one walk over its statements in the order of control.

A statement that needs a fence makes its own awaits strict; one whose fence depends on values met at run time keeps an
await that is all it does. Turning an await strict can only make later fences needless, so the walk is repeated until
no await turns.

Not here: what is quiet (`quiet`), and the code that comes of it (`rewrite`).
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TypeAlias

from ckworkflow.compiler.owned import iterated
from ckworkflow.compiler.proof import appended
from ckworkflow.compiler.quiet import Judge, Knowledge, Need
from ckworkflow.compiler.scope import own_nodes, short
from ckworkflow.compiler.sites import Callee
from ckworkflow.compiler.source import Scope

__all__ = ["Decisions", "Turns", "decide"]

_Settled: TypeAlias = bool | None
"""Whether all that was awaited is certainly recorded at a point of the body; `None` where control never comes."""


@dataclass(frozen=True, slots=True)
class Turns:
    """A loop whose awaits are lazy only if it runs over plain containers that nobody else can change.

    Attributes:
        sources: What it takes its values from.
        owned: Whether the body owns all of them; else they must not be able to change at all.
        deep: Whether the values are unpacked, and so must be plain as well.
    """

    sources: tuple[ast.expr, ...]
    owned: bool
    deep: bool


@dataclass(slots=True)
class Decisions:
    """What the walk has found.

    Attributes:
        fences: Before which statements to wait, and why; a `while` waits before each test.
        turns: The loops that are asked about at run time.
    """

    fences: dict[ast.stmt, Need] = field(default_factory=dict)
    turns: dict[ast.For, Turns] = field(default_factory=dict)


def decide(known: Knowledge) -> Decisions:
    """Place the fences, and turn those awaits strict that share a statement with one."""
    while True:
        walk = _Walk(known)
        walk.block(known.body.node.body, settled=False)
        if not walk.turned:
            return walk.decisions


class _Walk:
    def __init__(self, known: Knowledge) -> None:
        self._known = known
        self._body, self._proof = known.body, known.proof
        self.decisions = Decisions()
        self.turned = False

    def block(self, statements: Iterable[ast.stmt], settled: _Settled) -> _Settled:
        """Walk over a block, from what is certain before it to what is after it."""
        for statement in statements:
            settled = self._statement(statement, settled=bool(settled)) if settled is not None else None
        return settled

    def _statement(self, node: ast.stmt, *, settled: bool) -> _Settled:
        match node:
            case ast.If():
                after = self._header(node, lambda judge: judge.look(node.test), settled=settled)
                return _merge(self.block(node.body, after), self.block(node.orelse, after))
            case ast.While():
                return self._while(node, settled=settled)
            case ast.For() | ast.AsyncFor():
                return self._for(node, settled=settled)
            case ast.With() | ast.AsyncWith():
                self._header(node, lambda judge: _with(node, judge), settled=settled)
                self.block(node.body, settled=True)
                return True  # all awaits inside are strict
            case ast.Try() | ast.TryStar():
                return self._try(node, settled=settled)
            case ast.Match():
                return self._match(node, settled=settled)
            case ast.Break() | ast.Continue():
                return None
            case ast.Return() | ast.Raise():
                self._header(node, lambda judge: _simple(node, judge), settled=settled)
                return None
        return self._header(node, lambda judge: _simple(node, judge), settled=settled)

    def _header(self, node: ast.stmt, judging: Callable[[Judge], None], *, settled: bool) -> bool:
        """Judge what a statement evaluates itself; return whether all is recorded after it."""
        while True:
            judge = Judge(self._known, settled=settled)
            judging(judge)
            need = judge.need
            whole = (
                node.value
                if isinstance(node, ast.Expr | ast.Return | ast.Assign | ast.AnnAssign)
                else None
            )
            if isinstance(whole, ast.Call) and self._is_own_append(whole, need):
                whole = whole.args[0]
            turning = (
                judge.lazy if need.always else [a for a in judge.lazy if need.checks and a is not whole]
            )
            if not turning:
                break
            self._make_strict(turning, f"it shares `{short(node)}` with a fence: {need.reason}")
        if need:
            self.decisions.fences[node] = need
        return not judge.lazy and (judge.settled or need.always is not None)

    def _is_own_append(self, call: ast.Call, need: Need) -> bool:
        """Whether a call is `out.append(…)` of a list about which nothing is asked: what it appends is awaited last."""
        receiver = call.func.value if isinstance(call.func, ast.Attribute) else None
        return (
            isinstance(receiver, ast.Name)
            and appended(self._body, receiver) is not None
            and receiver.id not in {name for _, name in need.checks}
        )

    def _make_strict(self, awaits: Iterable[ast.AST], reason: str) -> None:
        for node in awaits:
            if isinstance(node, ast.Await) and self._proof.is_lazy(node):
                self._proof.make_strict(node, reason)
                self.turned = True

    def _has_lazy(self, nodes: Iterable[ast.AST]) -> bool:
        return any(self._proof.is_lazy(inner) for node in nodes for inner in own_nodes(node))

    # Loops.

    def _while(self, node: ast.While, *, settled: bool) -> _Settled:
        quiet = not self._has_lazy([node])
        after = self._header(node, lambda judge: judge.look(node.test), settled=settled and quiet)
        self.block(node.body, after)
        end = self.block(node.orelse, after)
        return _merge(end, settled and quiet)

    def _for(self, node: ast.For | ast.AsyncFor, *, settled: bool) -> _Settled:
        if isinstance(node, ast.For) and self._has_lazy(node.body):
            self._decide_turns(node)
        lazy = self._has_lazy(node.body)
        turns = self.decisions.turns.get(node) if isinstance(node, ast.For) else None

        def judging(judge: Judge) -> None:
            if isinstance(node, ast.AsyncFor):
                judge.touch(node.iter)
                judge.fence(f"each turn of `{short(node)}` runs the iterator's code")
            elif turns is not None:
                for source in turns.sources:  # the loop asks about them itself
                    if not isinstance(source, ast.Name):
                        judge.touch(source)
            else:
                judge.iterate(node.iter)
            judge.store(node.target)

        after = self._header(node, judging, settled=settled)
        self.block(node.body, after and not lazy)
        return _merge(self.block(node.orelse, after and not lazy), after and not lazy)

    def _decide_turns(self, node: ast.For) -> None:
        """Whether a loop's awaits may be lazy: in any case, if its iterable is what it should be, or not at all."""
        body, iterable = self._body, node.iter
        names = [part for part in ast.walk(node.target) if isinstance(part, ast.Name)]
        if any(
            not isinstance(part, ast.Name | ast.Tuple | ast.List | ast.Starred | ast.expr_context)
            for part in ast.walk(node.target)
        ) or any((local := body.names.get(name.id)) is None or local.is_captured for name in names):
            self._make_strict(
                _inside(node), f"`{short(node.target)}` is set at each turn of `{short(node)}`"
            )
            return
        if body.is_builtin_call(iterable, "range") and isinstance(node.target, ast.Name):
            return
        sources = iterated(body, iterable)
        used = [source for source in sources if isinstance(source, ast.Name)]
        is_changed = any(
            isinstance(part, ast.Name) and part.id in {u.id for u in used} for part in _inside(node)
        )
        deep = not isinstance(node.target, ast.Name)
        depth = sum(isinstance(part, ast.Tuple | ast.List) for part in ast.walk(node.target))
        is_asked = all(
            (local := body.local(name)) is not None and body.is_bound_before(local.name, node)
            for name in used
        )
        if not sources or not is_asked or (deep and is_changed):
            self._make_strict(
                _inside(node), f"each turn of `{short(node)}` may run code, or see a change"
            )
            return
        # The tuples of `enumerate`, `zip` and `items` are their own; what is in them is not.
        function = short(iterable.func).rpartition(".")[2] if isinstance(iterable, ast.Call) else ""
        own_depth = 1 if function in {"enumerate", "zip", "items"} else 0
        owned = all(self._is_owned(source, deep=deep) for source in sources)
        self.decisions.turns[node] = Turns(tuple(sources), owned, deep=depth > own_depth)

    def _is_owned(self, source: ast.expr, *, deep: bool) -> bool:
        """Whether the body owns what a loop runs over; with `deep`, the elements as well."""
        match source:
            case ast.Name():
                return source.id in self._known.owned.names
            case ast.Await(value=call):
                callee = self._body.callee(call)
                return callee is Callee.STEP or (callee is Callee.GATHER and not deep)
        return not deep or all(
            isinstance(part, ast.Constant | ast.List | ast.Tuple | ast.expr_context)
            or (isinstance(part, ast.Name) and part.id in self._known.owned.names)
            for part in ast.walk(source)
        )

    # The rest.

    def _try(self, node: ast.Try | ast.TryStar, *, settled: bool) -> _Settled:
        for handler in node.handlers:
            if not self._is_plain_handler(handler.type):
                why = f"`except {short(handler.type or handler)}` (line {handler.lineno}) runs code when it catches"
                self._make_strict([inner for part in node.body for inner in own_nodes(part)], why)
                settled = self._header(node, lambda judge: judge.fence(why), settled=settled)  # noqa: B023  # called at once
                break
        end = self.block(node.orelse, self.block(node.body, settled))
        caught = settled and not self._has_lazy(node.body)
        after = _merge(end, *(self.block(handler.body, caught) for handler in node.handlers))
        if not node.finalbody:
            return after
        before = [*node.body, *node.handlers, *node.orelse]
        final = self.block(node.finalbody, settled and not self._has_lazy(before))
        if after is None or final is None:
            return None
        return final or (after and not self._has_lazy(node.finalbody))

    def _is_plain_handler(self, node: ast.expr | None) -> bool:
        """Whether matching an exception against an expression runs no code."""
        match node:
            case None:
                return True
            case ast.Name(id=name):
                # A class under its own name; a name for a class may come to mean another.
                value = self._body.resolve(node)
                return isinstance(value, type) and value.__name__ == name
            case ast.Attribute(attr=name):
                value = self._body.resolve(node)
                return isinstance(value, type) and value.__name__ == name
            case ast.Tuple(elts=elements):
                return all(self._is_plain_handler(element) for element in elements)
        return False

    def _match(self, node: ast.Match, *, settled: bool) -> _Settled:
        def judging(judge: Judge) -> None:
            judge.look(node.subject)
            for case in node.cases:
                for part in ast.walk(case.pattern):
                    self._judge_pattern(part, judge)
                judge.sometimes(case.guard)

        after = self._header(node, judging, settled=settled)
        return _merge(after, *(self.block(case.body, after) for case in node.cases))

    def _judge_pattern(self, part: ast.AST, judge: Judge) -> None:
        match part:
            case ast.MatchValue(value=value):
                judge.sometimes(value)
            case ast.MatchMapping(keys=keys, rest=rest):
                judge.sometimes(*keys)
                judge.store(ast.Name(rest or "", ast.Store()) if rest else ast.Tuple([], ast.Store()))
            case ast.MatchClass(cls=cls) if not self._body.is_builtin(cls):
                judge.fence(f"`case {short(part)}` asks a class")
            case ast.MatchAs(name=str(name)) | ast.MatchStar(name=str(name)):
                judge.store(ast.Name(name, ast.Store()))


def _with(node: ast.With | ast.AsyncWith, judge: Judge) -> None:
    if not any(isinstance(inner, ast.Await) for item in node.items for inner in ast.walk(item)):
        judge.fence(f"`{short(node)}` runs code when it begins and ends")
    for item in node.items:
        judge.touch(item.context_expr)
    judge.fence(f"`{short(node)}` runs code when it begins and ends")


def _simple(node: ast.stmt, judge: Judge) -> None:  # noqa: C901, PLR0912  # one case a kind of statement
    match node:
        case ast.Expr(value=value) | ast.Return(value=value):
            judge.touch(value)
        case ast.Assign(targets=targets, value=value):
            unpacks = any(isinstance(target, ast.Tuple | ast.List) for target in targets)
            if unpacks and not isinstance(value, ast.Await | ast.Tuple | ast.List):
                judge.iterate(value)
            else:
                judge.touch(value)
            for target in targets:
                judge.store(target)
        case ast.AnnAssign(target=ast.Name() as target, value=value):
            judge.touch(value)
            if value is not None:
                judge.store(target)
        case ast.AugAssign(target=ast.Name() as target, value=value):
            judge.look(target)
            judge.look(value)
            judge.store(target)
        case ast.Assert(test=test, msg=message):
            judge.look(test)
            judge.sometimes(message)
        case ast.Raise(exc=ast.expr() as error, cause=cause):
            judge.touch(error)
            judge.touch(cause)
            judge.fence(f"`{short(node)}` makes an exception")
        case ast.Raise() | ast.Pass() | ast.Global() | ast.Nonlocal():
            pass
        case _:
            if not isinstance(node, Scope):
                for part in own_nodes(node):
                    if isinstance(part, ast.Await):
                        judge.touch(part)
            judge.settled = False
            judge.fence(f"`{short(node)}` runs code")


def _inside(node: ast.For) -> list[ast.AST]:
    return [inner for statement in node.body for inner in own_nodes(statement)]


def _merge(*states: _Settled) -> _Settled:
    """What is certain where several ways meet."""
    live = [state for state in states if state is not None]
    return all(live) if live else None
