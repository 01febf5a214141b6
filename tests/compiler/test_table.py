"""The table of bodies: what the compiler says of each, and that each still is the body it was."""

from __future__ import annotations

import functools
import io
import re
import tokenize
from pathlib import Path
from types import FunctionType
from typing import Any

import pytest

from ckworkflow import compiler
from ckworkflow.definition import Workflow, classify
from compiler import bodies
from compiler.bodies import CASES, Case
from compiler.plain import Ops, outcome, plain

UNTOUCHED = {"decorated_below": "another decorator", "sees_its_locals": "`locals`"}


def original(workflow: Workflow[..., Any]) -> FunctionType:
    assert isinstance(workflow.function, FunctionType)
    return workflow.function


def compiled(workflow: Workflow[..., Any], ops: object) -> compiler.CompiledBody:
    function = original(workflow)
    return compiler.compile_body(function, compiler.capture_source(function), classify=classify, ops=ops)


@functools.cache
def all_compiled(*, suspicious: bool) -> dict[str, FunctionType]:
    """Every body of the table, rewritten, by the name of its workflow."""
    ops = Ops(suspicious=suspicious)
    return {case.workflow.name: compiled(case.workflow, ops).function for case in CASES}


def expected() -> dict[int, list[str]]:
    """The words of the comments of the table, by line."""
    text = Path(bodies.__file__).read_text()
    found: dict[int, list[str]] = {}
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            words = re.split(r",\s*", token.string.lstrip("# ").partition("#")[0].strip())
            if set(words) <= {"lazy", "strict", "fence", "fence?"}:
                found[token.start[0]] = words
    return found


EXPECTED = expected()
each_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


def test_the_table_has_at_least_eighty_bodies_of_different_names() -> None:
    assert len(CASES) >= 80
    assert len({case.name for case in CASES}) == len(CASES)


@each_case
def test_awaits_and_fences_are_where_the_table_says(case: Case) -> None:
    body = compiled(case.workflow, Ops(suspicious=False))
    code = original(case.workflow).__code__
    last = max(line for _, _, line in code.co_lines() if line is not None)
    lines = range(code.co_firstlineno, last + 1)

    said: dict[int, list[str]] = {}
    for site in body.awaits:
        said.setdefault(site.line, []).append("lazy" if site.lazy else "strict")
    for fence in body.fences:
        # A fence that depends on the values met is in the table only where it is the point.
        word = "fence?" if fence.conditional else "fence"
        if word == "fence" or word in EXPECTED.get(fence.line, []):
            if word == "fence" or word not in said.setdefault(fence.line, []):
                said.setdefault(fence.line, []).append(word)

    assert said == {line: words for line, words in EXPECTED.items() if line in lines}, "\n".join(
        map(str, [*body.awaits, *body.fences])
    )


@each_case
def test_a_body_is_rewritten_unless_it_could_tell(case: Case) -> None:
    body = compiled(case.workflow, Ops(suspicious=False))

    if case.name in UNTOUCHED:
        assert not body.rewritten
        assert body.function is original(case.workflow)
        assert UNTOUCHED[case.name] in (body.why_not or "")
    else:
        assert body.rewritten, body.why_not
        assert body.why_not is None


@each_case
def test_every_await_and_fence_has_its_reason_in_words(case: Case) -> None:
    body = compiled(case.workflow, Ops(suspicious=False))

    assert all(site.reason and site.text.startswith("await ") for site in body.awaits)
    assert all(fence.reason for fence in body.fences)


@pytest.mark.parametrize("suspicious", [False, True], ids=["trusting", "suspicious"])
@each_case
def test_with_every_await_plain_a_rewritten_body_is_the_body_it_was(
    case: Case, suspicious: bool
) -> None:
    rewritten = all_compiled(suspicious=suspicious)

    with plain(bodies, original):
        before = outcome(original(case.workflow), case.args)
    with plain(bodies, lambda workflow: rewritten[workflow.name]):
        after = outcome(rewritten[case.workflow.name], case.args)

    assert after == before


@each_case
def test_with_a_step_failing_a_rewritten_body_fails_like_the_body_it_was(case: Case) -> None:
    rewritten = all_compiled(suspicious=False)
    with plain(bodies, original):
        _, calls, _ = outcome(original(case.workflow), case.args)

    for call in calls:
        with plain(bodies, original):
            before = outcome(failing(original(case.workflow), call), case.args)
        with plain(bodies, lambda workflow: rewritten[workflow.name]):
            after = outcome(failing(rewritten[case.workflow.name], call), case.args)

        assert after == before, f"with {call} failing"


def failing(function: FunctionType, call: tuple[Any, ...]) -> Any:
    async def run(*args: Any) -> Any:
        bodies.steps.FAULTS.add(call)
        return await function(*args)

    return run


@each_case
def test_a_rewritten_function_is_the_original_to_every_eye(case: Case) -> None:
    function = original(case.workflow)
    rewritten = compiled(case.workflow, Ops(suspicious=False)).function

    for name in ("__name__", "__qualname__", "__module__", "__doc__", "__defaults__", "__kwdefaults__"):
        assert getattr(rewritten, name) == getattr(function, name)
    assert rewritten.__globals__ is function.__globals__
    assert rewritten.__annotations__ is function.__annotations__
    old, new = function.__code__, rewritten.__code__
    assert (new.co_filename, new.co_firstlineno, new.co_qualname) == (
        old.co_filename,
        old.co_firstlineno,
        old.co_qualname,
    )
    assert new.co_varnames[: new.co_argcount] == old.co_varnames[: old.co_argcount]
    cells = dict(zip(new.co_freevars, rewritten.__closure__ or (), strict=True))
    for name, cell in zip(old.co_freevars, function.__closure__ or (), strict=True):
        assert cells.get(name, cell) is cell
    assert {line for *_, line in new.co_lines()} - {None} <= {line for *_, line in old.co_lines()}
