"""Where fences stand: one walk over the statements of a body in the order of control.

The walk knows at every statement which names are certainly bound and whether all that was awaited
is certainly recorded, and asks a judge what the statement evaluates. A statement that needs a fence
makes its own awaits strict; one whose fence depends on values met at run time keeps an await that
is all it does. Turning an await strict can only make later fences needless, so the walk is repeated
until no await turns.

Not here: what is on the whitelist (`fences`), and the code that comes of it (`rewrite`).
"""

from __future__ import annotations
import __future__

import ast
import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Final, TypeAlias

from ckworkflow.compiler.alias import Reach, captures
from ckworkflow.compiler.fences import Check, Judge, Knowledge, Need
from ckworkflow.compiler.kinds import CONTAINERS
from ckworkflow.compiler.proof import gather_members
from ckworkflow.compiler.scope import BindingKind, own_nodes, short
from ckworkflow.compiler.sites import Callee
from ckworkflow.compiler.source import future_flags

__all__ = ["Decisions", "TurnFence", "decide"]

_ANNOTATIONS_FLAG: Final = __future__.annotations.compiler_flag

_PLAIN_TARGETS: Final = (ast.Name, ast.Tuple, ast.List, ast.Starred, ast.expr_context)

_Try: TypeAlias = ast.Try | ast.TryStar


@dataclass(frozen=True, slots=True)
class TurnFence:
    """How a loop with lazy awaits fences its turns.

    Attributes:
        sources: Expressions that must be exact builtins for the turns to go unfenced; empty: what is
            iterated.
        checks: Questions to names, each of which makes every turn fenced.
        caller: Whether a caller in another task may hold what is iterated.
        deep: Whether the elements must be plain as well, for they are unpacked.
        always: Why every turn is fenced in any case, or `None`.
    """

    sources: tuple[ast.expr, ...] = ()
    checks: tuple[tuple[Check, str], ...] = ()
    caller: bool = False
    deep: bool = False
    always: str | None = None


@dataclass(slots=True)
class Decisions:
    """What the walk has found.

    Attributes:
        fences: Before which statements to wait, and why; a `while` waits before each test.
        turns: The loops that fence their turns.
        lent: Expressions whose value leaves the body while the world may hold it.
    """

    fences: dict[ast.stmt, Need] = field(default_factory=dict)
    turns: dict[ast.For, TurnFence] = field(default_factory=dict)
    lent: set[ast.expr] = field(default_factory=set)


def decide(known: Knowledge) -> Decisions:
    """Place the fences, and turn those awaits strict that share a statement with one."""
    while True:
        walk = _Walk(known)
        walk.run()
        if not walk.turned:
            return walk.decisions


@dataclass(frozen=True, slots=True)
class _State:
    """What is certain at a point of the body. Where control never comes, everything is."""

    bound: frozenset[str]
    settled: bool = False
    live: bool = True


class _Walk:
    def __init__(self, known: Knowledge) -> None:
        self._known = known
        self._body = known.body
        self._proof = known.proof
        self._deferred = self._purely_deferred()
        self._loops: list[list[_State]] = []  # the states at the breaks of each loop around
        self._uncertain = {
            local.name
            for local in self._body.names.values()
            if any(binding.kind is BindingKind.DELETED for binding in local.bindings)
        }
        self.decisions = Decisions()
        self.turned = False

    def run(self) -> None:
        """Walk the whole body."""
        parameters = [
            local.name
            for local in self._body.names.values()
            if any(binding.kind is BindingKind.PARAMETER for binding in local.bindings)
        ]
        self._block(self._body.node.body, _State(frozenset(parameters) - self._uncertain))

    def _purely_deferred(self) -> set[str]:
        """Names that hold nothing but deferred values of steps."""
        return {
            local.name
            for local in self._body.names.values()
            if local.bindings and all(self._is_step_value(binding.value) for binding in local.bindings)
        }

    def _is_step_value(self, value: ast.expr | None) -> bool:
        if not isinstance(value, ast.Await) or not self._proof.is_lazy(value):
            return False
        call = value.value
        if self._body.callee(call) is Callee.GATHER and isinstance(call, ast.Call):
            return all(self._body.callee(member) is Callee.STEP for member in gather_members(call))
        return self._body.callee(call) is Callee.STEP

    # Statements.

    def _block(self, statements: Iterable[ast.stmt], state: _State) -> _State:
        for statement in statements:
            state = self._statement(statement, state)
        return state

    def _statement(self, node: ast.stmt, state: _State) -> _State:
        match node:
            case ast.If():
                after = self._header(node, state, lambda judge: judge.inspect(node.test))
                return _merge(self._block(node.body, after), self._block(node.orelse, after))
            case ast.While():
                return self._while(node, state)
            case ast.For() | ast.AsyncFor():
                return self._for(node, state)
            case ast.With() | ast.AsyncWith():
                return self._with(node, state)
            case ast.Try() | ast.TryStar():
                return self._try(node, state)
            case ast.Match():
                return self._match(node, state)
            case ast.Break():
                if self._loops:
                    self._loops[-1].append(state)
                return replace(state, live=False)
            case ast.Continue():
                return replace(state, live=False)
            case ast.Return() | ast.Raise():
                return replace(self._simple(node, state), live=False)
        return self._simple(node, state)

    def _simple(self, node: ast.stmt, state: _State) -> _State:
        after = self._header(node, state, lambda judge: self._judge_simple(node, judge))
        names: set[str] = set()
        match node:
            case ast.Assign(targets=targets):
                names = _stored_names(targets)
            case ast.AugAssign(target=target) | ast.AnnAssign(target=target, value=ast.expr()):
                names = {target.id} if isinstance(target, ast.Name) else set()
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                names = {name}
            case ast.Import(names=aliases) | ast.ImportFrom(names=aliases):
                names = {(alias.asname or alias.name).partition(".")[0] for alias in aliases}
        return self._binding(after, names)

    def _judge_simple(self, node: ast.stmt, judge: Judge) -> None:  # noqa: C901, PLR0912  # one case a kind of statement
        match node:
            case ast.Expr(value=value):
                judge.touch(value)
            case ast.Return(value=value):
                judge.touch(value)
                self._lend(value, judge)
            case ast.Assign(targets=targets, value=value):
                if any(isinstance(target, ast.Tuple | ast.List) for target in targets):
                    judge.unpack(value)
                else:
                    judge.touch(value)
                for target in targets:
                    judge.store(target)
            case ast.AnnAssign(target=target, value=ast.expr() as value):
                judge.touch(value)
                judge.store(target)
            case ast.AugAssign(target=target, value=value):
                if not isinstance(target, ast.Name) and any(
                    isinstance(n, ast.Await) for n in ast.walk(value)
                ):
                    judge.fence(f"`{short(target)}` is read before the await")
                judge.inspect(_loaded(target))
                judge.inspect(value)
                judge.store(target)
            case ast.Delete(targets=targets):
                for target in targets:
                    judge.store(target)
            case ast.Assert(test=test, msg=message):
                judge.inspect(test)
                judge.sometimes(lambda: judge.inspect(message))
            case ast.Raise(exc=ast.expr() as error, cause=cause):
                judge.touch(error)
                judge.touch(cause)
                judge.fence(f"`{short(node)}` makes an exception")
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                self._judge_definition(node, judge)
            case ast.ClassDef() | ast.Import() | ast.ImportFrom():
                judge.fence(f"`{short(node)}` runs code")

    def _judge_definition(self, node: ast.FunctionDef | ast.AsyncFunctionDef, judge: Judge) -> None:
        if node.decorator_list:
            judge.fence(f"`@{short(node.decorator_list[0])}` is called")
        arguments = node.args
        for default in [*arguments.defaults, *arguments.kw_defaults]:
            judge.touch(default)
        if not future_flags(self._body.function.__code__) & _ANNOTATIONS_FLAG:
            annotations = [
                inner.annotation for inner in ast.walk(arguments) if isinstance(inner, ast.arg)
            ]
            for annotation in [*annotations, node.returns]:
                if annotation is not None and not isinstance(annotation, ast.Constant | ast.Name):
                    judge.fence(f"the annotation `{short(annotation)}` is evaluated")

    def _lend(self, value: ast.expr | None, judge: Judge) -> None:
        if value is None or (
            self._known.kinds.of(value) is not None and self._known.kinds.of(value) not in CONTAINERS
        ):
            return
        holders, reach = self._known.aliases.holders(value)
        if any(Reach.WORLD in held for held in [reach, *holders.values()]):
            judge.lent.append(value)

    def _header(self, node: ast.stmt, state: _State, judging: Callable[[Judge], None]) -> _State:
        """Judge what a statement evaluates itself, and settle what becomes of its awaits."""
        if not state.live:
            return state
        whole = getattr(node, "value", None)
        while True:
            judge = self._judge(state)
            judging(judge)
            need = judge.need
            turning = (
                judge.lazy
                if need.always
                else [a for a in judge.lazy if a is not whole]
                if need.checks
                else []
            )
            for awaited in turning:
                self._proof.make_strict(
                    awaited, f"it shares `{short(node)}` with a fence: {need.reason}"
                )
                self.turned = True
            if not turning:
                break
        if need:
            self.decisions.fences[node] = need
        self.decisions.lent.update(judge.lent)
        settled = False if judge.lazy else judge.settled or need.always is not None
        return self._binding(replace(state, settled=settled), judge.certain)

    def _judge(self, state: _State) -> Judge:
        return Judge(self._known, bound=state.bound, settled=state.settled, deferred=self._deferred)

    def _binding(self, state: _State, names: Iterable[str]) -> _State:
        local = frozenset(names) & self._body.names.keys()
        return replace(state, bound=(state.bound | local) - self._uncertain)

    def _has_lazy(self, nodes: Iterable[ast.AST]) -> bool:
        return any(self._proof.is_lazy(inner) for node in nodes for inner in own_nodes(node))

    # Blocks.

    def _while(self, node: ast.While, state: _State) -> _State:
        head = replace(state, settled=state.settled and not self._has_lazy([node]))
        endless = isinstance(node.test, ast.Constant) and bool(node.test.value)
        after = head if endless else self._header(node, head, lambda judge: judge.inspect(node.test))
        self._loops.append([])
        self._block(node.body, after)
        breaks = self._loops.pop()
        ended = replace(after, live=False) if endless else after
        return _merge(self._block(node.orelse, ended), *breaks)

    def _for(self, node: ast.For | ast.AsyncFor, state: _State) -> _State:
        lazy = self._has_lazy(node.body)
        after = self._header(node, state, lambda judge: self._judge_iteration(node, judge, lazy=lazy))
        if isinstance(node, ast.For) and lazy and (turns := self._turns(node, state.bound)) is not None:
            self.decisions.turns[node] = turns
        head = replace(after, settled=after.settled and not lazy)
        self._loops.append([])
        self._block(node.body, self._binding(head, _stored_names([node.target])))
        breaks = self._loops.pop()
        return _merge(self._block(node.orelse, head), *breaks)

    def _judge_iteration(self, node: ast.For | ast.AsyncFor, judge: Judge, *, lazy: bool) -> None:
        if isinstance(node, ast.AsyncFor):
            judge.touch(node.iter)
            judge.fence(f"each turn of `{short(node)}` runs the iterator's code")
        elif lazy:
            # A name's turns, the first one too, ask about its object themselves.
            if not isinstance(node.iter, ast.Name) or self._body.local(node.iter) is None:
                judge.touch(node.iter)
        elif isinstance(node.target, ast.Name):
            judge.iterate(node.iter)
        else:
            judge.inspect(node.iter)  # each element is unpacked
        judge.store(node.target)

    def _turns(self, node: ast.For, bound: frozenset[str]) -> TurnFence | None:
        """How the turns of a loop are fenced; `None` if it runs over a list of the body's own."""
        if not all(isinstance(part, _PLAIN_TARGETS) for part in ast.walk(node.target)):
            return TurnFence(always=f"`{short(node.target)}` is set at each turn")
        iterable = node.iter
        sources = self._turn_sources(iterable)
        # A view or an iterator of exact builtins, which is asked at run time, is as much the world's as those are.
        of = ast.Tuple(list(sources), ast.Load()) if sources else iterable
        holders, rest = self._known.aliases.holders(of)
        held = {name: reach for name, reach in holders.items() if reach and "@" not in name}
        checks = tuple(
            (Check.LOOSE if Reach.WORLD in reach else Check.SHARED, name) for name, reach in held.items()
        )
        if isinstance(iterable, ast.Name) and self._body.key(iterable) is None:
            checks, rest = ((Check.LOOSE, iterable.id),), Reach.NOBODY
        elif Reach.WORLD in rest or not held.keys() <= bound:
            return TurnFence(always=f"`{short(iterable)}` may be changed by the world")
        depth = sum(isinstance(part, ast.Tuple | ast.List) for part in ast.walk(node.target))
        fence = TurnFence(
            sources, checks, caller=Reach.CALLER in rest, deep=depth > (1 if sources else 0)
        )
        is_own = self._known.kinds.of(iterable) in CONTAINERS and not (checks or rest or fence.deep)
        return None if is_own else fence

    def _turn_sources(self, iterable: ast.expr) -> tuple[ast.expr, ...]:
        match iterable:
            case ast.Call(
                func=ast.Name(id="enumerate" | "zip" | "reversed"), args=args, keywords=[]
            ) if self._body.is_builtin(iterable.func) and all(
                isinstance(source, ast.Name) for source in args
            ):
                return tuple(args)
            case ast.Call(
                func=ast.Attribute(value=ast.Name() as source, attr="items" | "keys" | "values")
            ):
                return (source,)
        return ()

    def _with(self, node: ast.With | ast.AsyncWith, state: _State) -> _State:
        def judging(judge: Judge) -> None:
            judge.fence(f"`{short(node)}` runs code when it begins and ends")
            for item in node.items:
                judge.touch(item.context_expr)
                if item.optional_vars is not None:
                    judge.store(item.optional_vars)

        after = self._header(node, state, judging)
        targets = [item.optional_vars for item in node.items if item.optional_vars is not None]
        end = self._block(node.body, self._binding(after, _stored_names(targets)))
        # __exit__ may swallow an exception from anywhere in the block.
        return _merge(after, end)

    def _try(self, node: _Try, state: _State) -> _State:
        foreign = next(
            (handler for handler in node.handlers if not self._is_plain_handler(handler.type)), None
        )
        if foreign is not None:
            why = f"`except {short(foreign.type or foreign)}` (line {foreign.lineno}) runs code when it catches"
            for inner in (inner for statement in node.body for inner in own_nodes(statement)):
                if isinstance(inner, ast.Await) and self._proof.is_lazy(inner):
                    self._proof.make_strict(inner, why)
                    self.turned = True
            state = self._header(node, state, lambda judge: judge.fence(why))
        breaks = [len(states) for states in self._loops]
        end = self._block(node.orelse, self._block(node.body, state))
        caught = replace(state, settled=state.settled and not self._has_lazy(node.body))
        ends = [self._handler(handler, caught) for handler in node.handlers]
        after = _merge(end, *ends)
        if not node.finalbody:
            return after
        before = [*node.body, *node.handlers, *node.orelse]
        entry = replace(state, settled=state.settled and not self._has_lazy(before))
        final = self._block(node.finalbody, entry)
        quiet = not self._has_lazy(node.finalbody)
        for states, first in zip(self._loops, breaks, strict=True):
            # A break from within runs the finally on its way out.
            states[first:] = [replace(left, settled=left.settled and quiet) for left in states[first:]]
        return _State(
            bound=after.bound | final.bound,
            settled=final.settled or (after.settled and quiet),
            live=after.live and final.live,
        )

    def _handler(self, node: ast.ExceptHandler, state: _State) -> _State:
        if node.name is None:
            return self._block(node.body, state)
        breaks = [len(states) for states in self._loops]
        end = self._block(node.body, self._binding(state, {node.name}))
        gone = {node.name}  # Python deletes the name on every way out
        for states, first in zip(self._loops, breaks, strict=True):
            states[first:] = [replace(left, bound=left.bound - gone) for left in states[first:]]
        return replace(end, bound=end.bound - gone)

    def _is_plain_handler(self, node: ast.expr | None) -> bool:
        """Whether matching an exception against an expression runs no code."""
        match node:
            case None:
                return True
            case ast.Name(id=name):
                # A class under its own name; a name for a class may come to mean another.
                value = self._body.resolve(node)
                return isinstance(value, type) and value.__name__ == name
            case ast.Attribute():
                return isinstance(self._body.resolve(node), type)
            case ast.Tuple(elts=elements):
                return all(self._is_plain_handler(element) for element in elements)
        return False

    def _match(self, node: ast.Match, state: _State) -> _State:
        def judging(judge: Judge) -> None:
            judge.inspect(node.subject)
            for case in node.cases:
                judge.pattern(case.pattern)
                judge.sometimes(functools.partial(judge.inspect, case.guard))

        after = self._header(node, state, judging)
        ends = [
            self._block(case.body, self._binding(after, captures(case.pattern))) for case in node.cases
        ]
        return _merge(after, *ends)


def _merge(*states: _State) -> _State:
    """What is certain where several ways meet."""
    live = [state for state in states if state.live]
    if not live:
        return replace(states[0], live=False)
    return _State(
        bound=frozenset.intersection(*(state.bound for state in live)),
        settled=all(state.settled for state in live),
    )


def _stored_names(targets: Iterable[ast.expr]) -> set[str]:
    nodes = (node for target in targets for node in ast.walk(target))
    return {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}


def _loaded(target: ast.Name | ast.Attribute | ast.Subscript) -> ast.expr:
    """What an augmented assignment reads, judged as the object that it is part of."""
    return target if isinstance(target, ast.Name) else target.value
