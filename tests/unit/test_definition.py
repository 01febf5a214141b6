"""`@step` and `@workflow`: names, options, calls inside and outside a body, the registry."""

from __future__ import annotations

import asyncio
import functools
import importlib
import inspect
import pydoc
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

import pytest
from celery.utils.time import get_exponential_backoff_interval

from ckworkflow import body, compiler, definition, tracing
from ckworkflow.definition import (
    Registry,
    StepOptions,
    SyncStep,
    check_main,
    classify,
    registry,
    step,
    workflow,
)
from ckworkflow.errors import (
    HookContextError,
    InvalidDurationError,
    MainModuleError,
    UnserializableValueError,
    WorkflowCallError,
    WorkflowNotRegisteredError,
)
from ckworkflow.model import NodeKind, RunId

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Iterator

START = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


@pytest.fixture(autouse=True)
def clean_registry() -> Iterator[None]:
    steps, workflows = dict(registry.steps), dict(registry.workflows)
    yield
    registry.steps.clear(), registry.workflows.clear()
    registry.steps.update(steps), registry.workflows.update(workflows)


@step
async def greet(user_id: str, again: bool = False, *, loud: bool = False) -> str:
    """Say hello."""
    return f"hello {user_id} {again} {loud}"


@step
def add(one: int, other: int = 1) -> int:
    return one + other


@workflow
async def greeting(user_id: str) -> str:
    """Greet a user."""
    return await greet(user_id)


def trace(make_body: Callable[[], Coroutine[Any, Any, Any]], run_id: str = "run") -> tracing.Trace:
    """What a body comes to before anything is recorded."""
    tracer = tracing.Tracer(RunId(run_id), make_body, started_at=START)
    try:
        return tracer.resume()
    finally:
        tracer.close()


def traced_error(make_body: Callable[[], Coroutine[Any, Any, Any]]) -> BaseException:
    end = trace(make_body).end
    assert end is not None
    assert end.error is not None
    return end.error


# -- outside a body --------------------------------------------------------------------------------


def test_a_step_is_the_plain_function_outside_a_body() -> None:
    assert asyncio.run(greet("1", loud=True)) == "hello 1 False True"
    assert add(1) == 2  # type: ignore[comparison-overlap]


def test_a_step_called_by_a_step_is_the_plain_function() -> None:
    @step(name="outer")
    async def outer(number: int) -> Any:
        return add(number, 5), await greet("2")

    assert asyncio.run(outer(1)) == (6, "hello 2 False False")


def test_a_workflow_called_outside_a_body_names_start() -> None:
    with pytest.raises(WorkflowCallError, match=r"run = await start\(greeting, \.\.\.\)"):
        greeting("1")

    async def in_a_loop() -> None:
        await greeting("1")

    with pytest.raises(WorkflowCallError):
        asyncio.run(in_a_loop())


def test_a_definition_looks_like_its_function() -> None:
    for made, name in ((greet, "greet"), (greeting, "greeting")):
        assert (made.__name__, made.__qualname__, made.__module__) == (name, name, __name__)  # type: ignore[attr-defined]
        assert made.__wrapped__ is made.function  # type: ignore[attr-defined]
    assert greet.__doc__ == "Say hello."
    assert str(inspect.signature(greet)).startswith("(user_id: 'str', again: 'bool' = False, *, loud")
    assert repr(greet) == f"<step {__name__}.greet>"


def test_the_default_name_is_the_place_in_the_code_and_name_overrides_it() -> None:
    @step(name="a-step")
    def named() -> None: ...

    @workflow(name="a-workflow")
    async def flow() -> None: ...

    assert greet.name == f"{__name__}.greet"
    assert greeting.name == f"{__name__}.greeting"
    assert (named.name, flow.name) == ("a-step", "a-workflow")
    assert registry.require_step("a-step") is named
    assert registry.require_workflow("a-workflow") is flow


@pytest.mark.parametrize("bad", ["a\0b", "a\ud83db"])
@pytest.mark.parametrize("define", [step, workflow])
def test_a_name_that_no_database_holds_is_refused_when_the_module_is_imported(
    define: Any, bad: str
) -> None:
    async def nothing() -> None: ...

    with pytest.raises(ValueError, match=r"cannot be named 'a\\.+b'.*Take that out of its `name=`"):
        define(name=bad)(nothing)


def test_a_definition_knows_its_file_and_line() -> None:
    assert greet.site.file == __file__
    assert Path(__file__).read_text().splitlines()[greet.site.line - 1] == "@step"
    assert str(greet.site) == f"{__file__}:{greet.site.line}"


def test_sync_and_async_steps_are_told_apart() -> None:
    assert greet.is_async
    assert not add.is_async
    assert isinstance(add, SyncStep)
    assert not isinstance(greet, SyncStep)


def test_a_step_under_staticmethod_works() -> None:
    class Tools:
        @staticmethod
        @step(name="Tools.double")
        def double(number: int) -> int:
            return number * 2

    assert Tools.double(2) == 4  # type: ignore[comparison-overlap]
    assert Tools.double.qualname.endswith("Tools.double")


# -- what cannot be decorated ----------------------------------------------------------------------


async def agen() -> Any:
    yield 1


def gen() -> Any:
    yield 1


def plain() -> None: ...


class Callable_:
    async def __call__(self) -> None: ...


class Cog:
    async def remind(self, user_id: str) -> None: ...


@pytest.mark.parametrize(
    ("decorator", "function", "reason"),
    [
        (workflow, Cog.remind, r"cannot go over Cog\.remind, a method: .* with ids in place of `self`"),
        (step(name="remind"), Cog.remind, r"@step cannot go over Cog\.remind, a method"),
        (workflow, plain, r"@workflow needs an `async def`, and plain is a `def`"),
        (workflow, agen, "which is a generator"),
        (workflow, gen, "which is a generator"),
        (step, gen, "which is a generator: a step has one result"),
        (step, agen, "which is a generator"),
        (step, Callable_(), "@step goes over a function, and this is a Callable_"),
        (step, functools.partial(plain), "this is a partial"),
        (step, staticmethod(plain), "this is a staticmethod.* Put other decorators above @step"),
        (step, Callable_, "this is a type"),
        (step, "name", r"@step takes its options by keyword: @step\(name='name'\)"),
        (workflow, "name", r"@workflow\(name='name'\)"),
        (step, greet, "has its decorator already"),
        (workflow, greeting, "has its decorator already"),
    ],
)
def test_what_is_not_a_function_of_the_right_kind_is_refused(
    decorator: Any, function: Any, reason: str
) -> None:
    with pytest.raises(TypeError, match=reason):
        decorator(function)


# -- options ---------------------------------------------------------------------------------------


def test_a_step_has_celerys_options_with_our_defaults() -> None:
    assert greet.options == StepOptions()
    assert (greet.options.max_retries, greet.options.retry_delay) == (3, timedelta(seconds=1))

    @step(
        name="configured", max_retries=5, retry_delay="1 minute", timeout=2.5, queue="bot", rate_limit="10/m",
        priority=3,
    )  # fmt: skip
    async def configured() -> None: ...

    assert configured.options == StepOptions(
        max_retries=5,
        retry_delay=timedelta(minutes=1),
        timeout=timedelta(seconds=2.5),
        queue="bot",
        rate_limit="10/m",
        priority=3,
    )


@pytest.mark.parametrize(
    ("options", "error", "reason"),
    [
        ({"max_retries": -1}, ValueError, r"step\(max_retries=-1\): max_retries must be 0 or more"),
        ({"max_retries": True}, ValueError, "must be 0 or more"),
        ({"max_retries": None}, ValueError, "must be 0 or more"),
        ({"retry_delay": "1 month"}, InvalidDurationError, "no fixed length"),
        ({"retry_delay": -1}, InvalidDurationError, "negative"),
        ({"retry_backoff": -2}, ValueError, "True, False or a whole number"),
        ({"retry_backoff": 1.5}, ValueError, "True, False or a whole number"),
        ({"retry_backoff_max": 0}, ValueError, "1 or more"),
        ({"timeout": 0}, ValueError, "longer than 0, or None"),
        ({"timeout": "soon"}, InvalidDurationError, "'soon'"),
        ({"queue": ""}, ValueError, "name of a queue"),
        ({"rate_limit": "often"}, ValueError, "'10/m'"),
        ({"rate_limit": 10}, ValueError, "'10/m'"),
        ({"priority": 256}, ValueError, "0 to 255"),
        ({"name": " "}, ValueError, "a name must be text"),
        (
            {"max_retry": 3},
            TypeError,
            "step.. has no option 'max_retry'; its options are name, max_retries",
        ),
    ],
)
def test_an_option_that_makes_no_sense_is_refused_when_the_module_is_imported(
    options: dict[str, Any], error: type[Exception], reason: str
) -> None:
    with pytest.raises(error, match=reason):
        step(**options)(plain)  # type: ignore[operator]


@pytest.mark.parametrize("factor", [True, 1, 3])
@pytest.mark.parametrize("attempt", [1, 2, 5, 50, 5000])
def test_backoff_is_celerys(factor: int, attempt: int) -> None:
    options = StepOptions(retry_backoff=factor, retry_backoff_max=100, retry_jitter=False)
    celerys = get_exponential_backoff_interval(int(factor), attempt - 1, 100)
    assert options.delay_after(attempt) == timedelta(seconds=celerys)


def test_without_backoff_every_pause_is_the_same() -> None:
    options = StepOptions(retry_delay=timedelta(seconds=7))
    assert [options.delay_after(attempt) for attempt in (1, 2, 9)] == [timedelta(seconds=7)] * 3


def test_jitter_draws_from_zero_up_to_the_pause() -> None:
    options = StepOptions(retry_backoff=True)
    drawn: list[int] = []

    def randrange(stop: int) -> int:
        drawn.append(stop)
        return stop - 1

    assert options.delay_after(4, randrange=randrange) == timedelta(seconds=8)
    assert drawn == [9]
    assert timedelta(0) <= options.delay_after(4) <= timedelta(seconds=8)


# -- in a body -------------------------------------------------------------------------------------


def test_a_step_called_in_a_body_is_a_node() -> None:
    async def flow() -> None:
        await greet("1", loud=True)

    (node,) = trace(flow).nodes
    assert (node.kind, node.name) == (NodeKind.STEP, greet.name)
    assert node.args == {"args": ["1"], "kwargs": {"loud": True}}
    assert node.line == flow.__code__.co_firstlineno + 1


def test_a_sync_step_is_awaited_in_a_body_as_well() -> None:
    async def flow() -> None:
        await add(1, other=2)

    (node,) = trace(flow).nodes
    assert node.name == add.name


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        (lambda: greet(), r"^greet\(\) missing a required argument: 'user_id' \(line \d+ of test_"),  # type: ignore[call-arg]
        (
            lambda: greet("1", True, False),
            r"^greet\(\) too many positional arguments \(line \d+ of test_",
        ),  # type: ignore[call-arg]
        (
            lambda: greet("1", noisy=True),
            r"^greet\(\) got an unexpected keyword argument 'noisy' \(line \d+ of test_",
        ),  # type: ignore[call-arg]
        (
            lambda: greet("1", user_id="2"),
            r"^greet\(\) multiple values for argument 'user_id' \(line \d+ of test_",
        ),  # type: ignore[misc]
        (lambda: greeting(), r"^greeting\(\) missing a required argument"),  # type: ignore[call-arg]
    ],
)
def test_bad_arguments_raise_at_the_call(call: Callable[[], Awaitable[Any]], reason: str) -> None:
    async def flow() -> str:
        try:
            awaitable = call()
        except TypeError as error:
            raise ValueError(str(error)) from None
        await awaitable
        return "not here"

    with pytest.raises(ValueError, match=reason):
        raise traced_error(flow)


def test_an_argument_that_cannot_be_stored_raises_at_the_call_with_its_path() -> None:
    async def flow() -> None:
        await greet("1", [object()])  # type: ignore[arg-type]

    error = traced_error(flow)
    assert isinstance(error, UnserializableValueError)
    assert error.path == "args[1][0]"


def test_a_workflow_called_in_a_body_is_inlined() -> None:
    async def flow() -> None:
        await greeting("7")

    (node,) = trace(flow).nodes
    assert (node.name, node.args) == (greet.name, {"args": ["7"], "kwargs": {}})


def test_a_sleep_in_a_body_is_a_node() -> None:
    async def flow() -> None:
        await asyncio.gather(body.sleep("5 seconds"), body.sleep(datetime(2027, 1, 1, tzinfo=UTC)))

    nodes = trace(flow).nodes
    assert [node.kind for node in nodes] == [NodeKind.SLEEP, NodeKind.SLEEP]
    assert nodes[0].args == {"seconds": 5.0}
    assert nodes[0].line == flow.__code__.co_firstlineno + 1


def test_now_random_and_uuid4_are_the_same_in_every_replay() -> None:
    async def flow() -> list[Any]:
        return [body.now(), body.random(), body.random(), body.uuid4(), body.uuid4()]

    first, second, other = (trace(flow, run).end for run in ("a", "a", "b"))
    assert first is not None
    assert second is not None
    assert other is not None
    from ckworkflow import codec

    at, *values = codec.decode(first.result)
    assert at == START
    assert all(0 <= number < 1 for number in values[:2])
    assert [value.version for value in values[2:]] == [4, 4]
    assert all(isinstance(value, UUID) for value in values[2:])
    assert len(set(values)) == 4
    assert first.result == second.result
    assert first.result != other.result


@pytest.mark.parametrize(
    ("call", "instead"),
    [
        (lambda: body.sleep(1), r"sleep\(\) cannot be used here.*asyncio\.sleep"),
        (body.now, r"now\(\) cannot be used here.*datetime\.now\(UTC\)"),
        (body.random, r"random\.random\(\)"),
        (body.uuid4, r"uuid\.uuid4\(\)"),
    ],
)
def test_outside_a_body_they_say_what_to_use(call: Callable[[], Any], instead: str) -> None:
    with pytest.raises(HookContextError, match=instead):
        call()


@pytest.mark.parametrize("duration", ["1 month", -1, datetime(2026, 1, 1)])  # noqa: DTZ001
def test_a_bad_sleep_raises_at_the_call_wherever_it_is(duration: Any) -> None:
    with pytest.raises(InvalidDurationError):
        body.sleep(duration)


def test_the_compiler_is_told_what_a_name_stands_for() -> None:
    kinds = compiler.Callee
    assert classify(greet) is classify(add) is kinds.STEP
    assert classify(greeting) is kinds.WORKFLOW
    assert classify(body.sleep) is kinds.SLEEP
    assert classify(asyncio.gather) is kinds.GATHER
    assert classify(body.now) is kinds.NOW
    assert classify(body.random) is classify(body.uuid4) is kinds.PURE
    for other in (asyncio.sleep, print, None, [], {"a": 1}, greet.function):
        assert classify(other) is None


def test_the_body_of_a_workflow_is_compiled_once_at_first_use() -> None:
    assert greeting.body is greeting.body
    assert greeting.body.function.__name__ == "greeting"


def test_the_source_hash_changes_with_the_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "from ckworkflow.definition import workflow\n\n@workflow\nasync def flow():\n    return {}\n"
    monkeypatch.syspath_prepend(tmp_path)

    def load(name: str, result: int) -> str:
        (tmp_path / f"{name}.py").write_text(text.format(result))
        module = importlib.import_module(name)
        del sys.modules[name]
        digest: str = module.flow.source_hash
        return digest

    assert load("hash_one", 1) == load("hash_same", 1)
    assert load("hash_one", 1) != load("hash_two", 2)


def test_a_workflow_without_source_has_a_hash_all_the_same() -> None:
    def made(result: int) -> str:
        namespace: dict[str, Any] = {"__name__": "made", "workflow": workflow}
        exec(f"@workflow\nasync def flow(): return {result}", namespace)
        digest: str = namespace["flow"].source_hash
        return digest

    assert made(1) == made(1)
    assert made(1) != made(2)


# -- the registry ----------------------------------------------------------------------------------


def made_in(module: str, qualname: str, name: str | None = None) -> Any:
    def function() -> None: ...

    function.__module__, function.__qualname__ = module, qualname
    return definition.Step(function, name=name)


def test_a_definition_from_the_same_place_replaces() -> None:
    names = Registry()
    old, new = made_in("bot", "greet", "g"), made_in("bot", "greet", "g")
    names.register(old)
    names.register(new)
    assert names.require_step("g") is new


def test_another_function_may_not_take_a_name() -> None:
    names = Registry()
    names.register(made_in("bot", "greet", "g"))
    with pytest.raises(
        ValueError, match=r"Two steps are named 'g': bot:greet .*\.py:\d+\) and bot:other"
    ):
        names.register(made_in("bot", "other", "g"))


def test_a_step_and_a_workflow_may_share_a_name() -> None:
    @step(name="shared")
    def one() -> None: ...

    @workflow(name="shared")
    async def other() -> None: ...

    assert registry.require_step("shared") is one
    assert registry.require_workflow("shared") is other


def test_what_is_not_registered_is_named() -> None:
    for require, kind in ((Registry().require_step, "step"), (Registry().require_workflow, "workflow")):
        with pytest.raises(WorkflowNotRegisteredError, match=rf"knows no {kind} named 'nope'"):
            require("nope")


def test_later_registrations_are_told_until_told_no_more() -> None:
    names = Registry()
    heard: list[Any] = []
    first, again, later = made_in("a", "a"), made_in("a", "a"), made_in("b", "b")
    end = names.on_register(heard.append)
    names.register(first)
    names.register(again)
    end()
    end()
    names.register(later)
    assert heard == [first, again]


def test_a_definition_of_the_main_script_is_found_out() -> None:
    check_main(greet)
    with pytest.raises(
        MainModuleError, match=r"'__main__\.greet' is defined in __main__ .*Move it to a module"
    ):
        check_main(made_in("__main__", "greet"))


def made_by_a_factory(number: int, **options: Any) -> Any:
    @step(name="made by a factory", **options)
    async def made() -> int:
        return number

    return made


def test_a_factory_cannot_make_two_steps_of_one_name() -> None:
    first = made_by_a_factory(1)
    with pytest.raises(
        ValueError, match=r"named 'made by a factory': .*made is defined twice, at .*\.py:\d+, each time"
    ):
        made_by_a_factory(2)

    assert registry.steps[first.name] is first


def test_two_functions_of_one_place_and_name_are_both_pointed_at() -> None:
    @step(name="one place")
    def one() -> None: ...

    here = one.site.line
    with pytest.raises(ValueError, match=rf"at \S+\.py:{here} and at \S+\.py:{here + 6}\. "):

        @step(name="one place")  # type: ignore[no-redef]
        def one() -> int: ...  # noqa: F811


def test_the_options_are_a_part_of_what_a_name_means() -> None:
    def make(retries: int) -> None:
        @step(name="one function, two options", max_retries=retries)
        def made() -> None: ...

    make(1)
    make(1)
    with pytest.raises(ValueError, match="defined twice"):
        make(2)


@pytest.mark.parametrize("decorator", [step, workflow])
def test_what_a_function_defines_needs_a_name(decorator: Any) -> None:
    async def inner() -> None: ...

    with pytest.raises(
        ValueError, match=r"<locals>\.inner \(.*\.py:\d+\) needs an explicit name"
    ) as caught:
        decorator(inner)
    assert f"Write @{decorator.__name__}(name=...)" in str(caught.value)
    assert decorator(name=f"an inner {decorator.__name__}")(inner).function is inner


def test_a_lambda_needs_a_name() -> None:
    with pytest.raises(ValueError, match="<lambda> .* needs an explicit name"):
        step(lambda x: x + 1)
    assert step(name="a lambda")(lambda x: x + 1)(1) == 2


def test_one_function_under_one_name_may_be_defined_again() -> None:
    def plain_one() -> int:
        return 1

    named = step(name="plain one")
    assert named(plain_one)() == named(plain_one)() == 1


def test_a_step_over_a_decorator_has_the_signature_that_is_called() -> None:
    def with_client(function: Any) -> Any:
        @functools.wraps(function)
        async def wrapper(*args: Any) -> Any:
            return await function("client", *args)

        return wrapper

    @step(name="signature of a wrapper")
    @with_client
    async def send(client: str, text: str) -> str:
        return f"{client} {text}"

    send.bind(("hi",), {})


def test_a_step_may_have_a_parameter_named_self() -> None:
    @step(name="self by keyword")
    def named(self: int) -> int:
        return self

    assert named(self=3) == 3


@pytest.mark.parametrize("docs", ["Greet a user.", None])
def test_help_of_a_definition_shows_the_function(docs: str | None) -> None:
    async def greet(user_id: str, *, again: bool = False) -> int:
        return 1

    greet.__doc__ = docs
    for made in (step(name="helped")(greet), workflow(name="helped")(greet)):
        text = pydoc.plain(pydoc.render_doc(made))
        assert "greet(user_id: " in text
        assert ("Greet a user." in text) is (docs is not None)
        assert "__call__" not in text
        assert type("Holder", (), {"made": made})().made is made  # it binds to nothing


def _none() -> None: ...
def _two(a: int, b: int) -> None: ...
def _default(a: int, b: int = 2) -> None: ...
def _only_by_place(a: int, /, b: int = 2) -> None: ...
def _any_number(a: int, *rest: int) -> None: ...
def _by_name(a: int, *, b: int) -> None: ...
def _by_name_or_not(a: int, *, b: int = 2, **rest: int) -> None: ...


@pytest.mark.parametrize("named", [{}, {"a": 1}, {"b": 1}, {"c": 1}])
@pytest.mark.parametrize("count", range(4))
@pytest.mark.parametrize(
    "function", [_none, _two, _default, _only_by_place, _any_number, _by_name, _by_name_or_not]
)
def test_arguments_are_refused_where_python_refuses_them(
    function: Callable[..., None], count: int, named: dict[str, int]
) -> None:
    made = step(name=f"bound {function.__name__}")(function)
    args = tuple(range(count))
    try:
        function(*args, **named)
    except TypeError:
        with pytest.raises(TypeError, match=f"^{function.__name__}"):
            made.bind(args, named)
    else:
        made.bind(args, named)
