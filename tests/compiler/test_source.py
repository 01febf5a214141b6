"""A body is rewritten only when its source is proved to be its own."""

from __future__ import annotations

import importlib.util
import linecache
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any, cast

import pytest

from ckworkflow import compiler
from ckworkflow.definition import classify
from compiler import bodies
from compiler.plain import Ops
from compiler.steps import ping

BODY = """\
from ckworkflow import step

@step
async def ping():
    return "pong"

async def body(value=1):
    await ping()
    return value
"""

Load = Callable[[str], ModuleType]


@pytest.fixture
def load(tmp_path: Path) -> Iterator[Load]:
    """Import a module of this text."""
    names = []

    def load_text(text: str) -> ModuleType:
        name = f"compiled_{tmp_path.name}_{len(names)}"
        names.append(name)
        path = tmp_path / f"{name}.py"
        path.write_text(text)
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None
        assert spec.loader is not None
        module = sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    yield load_text
    for name in names:
        del sys.modules[name]
    linecache.clearcache()


def compile_function(
    function: FunctionType, source: compiler.BodySource | None = None
) -> compiler.CompiledBody:
    source = source or compiler.capture_source(function)
    return compiler.compile_body(function, source, classify=classify, ops=Ops(suspicious=False))


def test_a_function_of_a_file_is_rewritten(load: Load) -> None:
    body = compile_function(load(BODY).body)

    assert body.rewritten
    assert [site.lazy for site in body.awaits] == [True]


def test_a_file_that_was_edited_since_the_import_is_not_believed(load: Load) -> None:
    module = load(BODY)
    path = Path(module.__file__ or "")
    path.write_text(BODY.replace("return value", "return value + 1"))

    body = compile_function(module.body)

    assert not body.rewritten
    assert body.function is module.body
    assert body.why_not == "its file does not compile to the function that was imported"


def test_a_file_that_no_longer_parses_is_not_believed(load: Load) -> None:
    module = load(BODY)
    Path(module.__file__ or "").write_text(BODY + "def (")

    body = compile_function(module.body)

    assert not body.rewritten
    assert "does not parse" in (body.why_not or "")


def test_what_was_captured_at_the_import_counts_after_an_edit(load: Load) -> None:
    module = load(BODY)
    source = compiler.capture_source(module.body)
    Path(module.__file__ or "").write_text("# all gone\n")

    assert compile_function(module.body, source).rewritten


def test_a_function_without_a_file_stays_as_it_is() -> None:
    names: dict[str, Any] = {}
    exec(compile(BODY, "<made up>", "exec"), names)

    body = compile_function(names["body"])

    assert compiler.capture_source(names["body"]) is None
    assert not body.rewritten
    assert body.function is names["body"]
    assert "source" in (body.why_not or "")


def test_the_hash_is_of_the_function_alone(load: Load) -> None:
    first = compiler.capture_source(load(BODY).body)
    moved = compiler.capture_source(load("import os\n\n" + BODY + "\nX = 1\n").body)
    edited = compiler.capture_source(load(BODY.replace("value=1", "value=2")).body)

    assert first is not None
    assert moved is not None
    assert edited is not None
    assert first.source_hash == moved.source_hash
    assert first.source_hash != edited.source_hash


@pytest.mark.parametrize(
    "line",
    [
        "seen = locals()",
        "seen = eval('1')",
        "exec('x = 1')",
        "seen = globals()",
        "seen = vars()",
        "seen = dir()",
        "seen = sys._getframe()",
        "seen = inspect.currentframe()",
    ],
)
def test_a_body_that_can_look_at_itself_is_left_alone(load: Load, line: str) -> None:
    text = "import inspect, sys\n" + BODY.replace(
        "    await ping()\n", f"    await ping()\n    {line}\n"
    )
    module = load(text)

    body = compile_function(module.body)

    assert not body.rewritten
    assert "can look at the body itself" in (body.why_not or "")
    assert [site.lazy for site in body.awaits] == [False]


def test_a_warning_of_the_source_is_not_shown_again(load: Load) -> None:
    text = BODY.replace("return value", "return value is 1")
    with pytest.warns(SyntaxWarning):
        module = load(text)

    assert compile_function(module.body).rewritten  # and warnings are errors here


def test_future_imports_are_kept(load: Load) -> None:
    text = "from __future__ import annotations\n" + BODY.replace(
        "body(value=1)", "body(value: Nothing = 1)"
    )

    body = compile_function(load(text).body)

    assert body.rewritten
    assert body.function.__annotations__ == {"value": "Nothing"}


def test_an_error_of_the_body_shows_its_own_file_and_line(load: Load) -> None:
    module = load(BODY.replace("return value", "return value / 0"))
    function = compile_function(module.body).function

    with pytest.raises(ZeroDivisionError) as caught:
        drive(function())

    last = caught.traceback[-1]
    assert (str(last.path), last.lineno + 1) == (module.__file__, 9)
    assert str(last.statement).strip() == "return value / 0"


def test_a_closure_that_differs_by_turn_of_a_loop_is_not_taken_for_constant(load: Load) -> None:
    text = (
        BODY
        + """
def make():
    made = []
    for number in range(2):
        async def closure():
            await ping()
            return number
        made.append(closure)
    return made
"""
    )
    body = compile_function(load(text).make()[0])

    assert [(fence.line, fence.conditional) for fence in body.fences] == [(16, False)]


def drive(coroutine: Any) -> Any:
    """Run a coroutine that never waits."""
    try:
        coroutine.send(None)
    except StopIteration as stop:
        return stop.value
    raise AssertionError("it waits")


def test_a_body_that_the_compiler_fails_on_is_strict_with_one_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> object:
        raise RecursionError

    monkeypatch.setattr("ckworkflow.compiler.body.decide", fail)
    function = cast("FunctionType", bodies.greet.function)
    found = compiler.compile_body(
        function, compiler.capture_source(function), classify=classify, ops=Ops(suspicious=False)
    )

    assert found.function is function
    assert not found.rewritten
    assert [record.levelname for record in caplog.records] == ["WARNING"]


def test_a_body_that_uses_our_names_is_left_alone() -> None:
    found = compiler.compile_body(
        takes_our_name,
        compiler.capture_source(takes_our_name),
        classify=classify,
        ops=Ops(suspicious=False),
    )

    assert found.function is takes_our_name


async def takes_our_name(__ckw__: int) -> int:
    return __ckw__


ERROR = ValueError


async def catches_by_another_name() -> None:
    try:
        await ping()
        await ping()
    except ERROR:
        pass


def test_a_handler_that_may_come_to_mean_another_class_lets_nothing_run_ahead() -> None:
    found = compiler.compile_body(
        catches_by_another_name,
        compiler.capture_source(catches_by_another_name),
        classify=classify,
        ops=Ops(suspicious=False),
    )

    assert [site.lazy for site in found.awaits] == [False, False]
    assert any("except ERROR" in site.reason for site in found.awaits)
