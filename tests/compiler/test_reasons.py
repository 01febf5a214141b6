"""What the compiler says in words: the text of `ckworkflow plan`."""

from __future__ import annotations

import inspect

import pytest

from ckworkflow import compiler
from compiler import bodies
from compiler.plain import Ops
from compiler.test_table import compiled, original


def awaits(name: str) -> list[str]:
    workflow = getattr(bodies, name)
    first = original(workflow).__code__.co_firstlineno
    return [relative(site.reason, first) for site in body(name).awaits if not site.lazy]


def fences(name: str) -> list[str]:
    return [fence.reason for fence in body(name).fences if not fence.conditional]


def body(name: str) -> compiler.CompiledBody:
    return compiled(getattr(bodies, name), Ops(suspicious=False))


def relative(reason: str, first: int) -> str:
    """A reason with its line counted from the first line of the body."""
    for line in range(first, first + 40):
        reason = reason.replace(f"(line {line})", f"(line +{line - first})")
    return reason


@pytest.mark.parametrize(
    ("name", "reasons"),
    [
        ("tests_truth", ["`if verified` (line +5) looks at the result of verify"]),
        (
            "tests_identity",
            ["`return 'none' if found is None else 'some'` (line +5) looks at the result of echo"],
        ),
        (
            "keeps_a_projection_in_a_name",
            ["`title = channel.name` (line +5) looks at the result of create_channel"],
        ),
        ("captured_by_a_lambda", ["`found` is used in a nested function, class or generator"]),
        ("deletes_the_name", ["`found` is also deleted (line +6)"]),
        (
            "unpacks_a_result",
            ["`first, second = await fetch_numbers(2)` (line +4) unpacks the result of fetch_numbers"],
        ),
        (
            "two_names_at_once",
            ["`one = two = await echo(value)` (line +4) gives it to more than one name"],
        ),
        ("holds_a_lock", ["leaving `with lock` (line +5) may tell when it completes"]),
        (
            "awaits_a_plain_coroutine",
            ["`helper` is not known to be a step, a workflow, sleep or gather"],
        ),
        (
            "gather_of_unknown",
            ["its member `helper(value)` is not known to be a step, a workflow or sleep"],
        ),
        ("gather_with_return_exceptions", ["return_exceptions turns failures into values"]),
        (
            "calls_a_helper_in_an_argument",
            ["it shares `await send(note('x'))` with a fence: it calls `note`"],
        ),
        ("awaits_in_a_comprehension", ["it stands inside a comprehension"]),
    ],
)
def test_a_strict_await_says_who_looks(name: str, reasons: list[str]) -> None:
    assert awaits(name) == reasons


@pytest.mark.parametrize(
    ("name", "reasons"),
    [
        ("calls_a_helper", ["it calls `note`"]),
        ("logs", ["it calls `logger.info`"]),
        ("reads_the_clock", ["`now()` reads the clock", "`later.year` may run code, or change"]),
        ("reads_a_rebound_global", ["`FLAG` may be bound anew by someone else"]),
        ("holds_a_lock", ["`with lock` runs code when it begins and ends"]),
        ("key_callback", ["it calls `max`"]),
        ("raises_between_steps", ["it calls `FatalError`"]),
        (
            "sets_an_attribute",
            ["it calls `Channel`", "`channel.name` is set on an object that may see it"],
        ),
    ],
)
def test_a_fence_says_what_would_see_the_world(name: str, reasons: list[str]) -> None:
    assert fences(name) == reasons


def test_a_conditional_fence_says_what_it_asks() -> None:
    found = [fence.reason for fence in body("reads_module_state").fences if fence.conditional]

    assert found[0] == "`STATE` may be changed by the world, `STATE` may not be a plain value"


def test_a_site_is_where_the_await_is_written() -> None:
    lines, first = inspect.getsourcelines(original(bodies.greet))

    for site in body("greet").awaits:
        assert lines[site.line - first][site.column :].startswith(site.text[: len("await s")])
