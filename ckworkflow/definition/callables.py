"""`@step` and `@workflow`: functions that know their name, their options and where they are called.

Called in the body of a workflow a step is a node of its run and a workflow is inlined; called anywhere else
a step is the plain function, and a workflow says to `start` it.

Not here: what a call in a body records (`ckworkflow.tracing`).
"""

from __future__ import annotations

import asyncio
import copy
import functools
import hashlib
import inspect
import marshal
import os
import sys
from collections.abc import Callable, Coroutine
from typing import (
    TYPE_CHECKING,
    Any,
    ClassVar,
    Final,
    Generic,
    Literal,
    NamedTuple,
    ParamSpec,
    Protocol,
    Self,
    TypeAlias,
    TypeVar,
    Unpack,
    cast,
    overload,
)

from ckworkflow import body, compiler, tracing
from ckworkflow.definition.options import CallKeywords, OnCancel, StepKeywords, StepOptions
from ckworkflow.definition.registration import registry
from ckworkflow.errors import ArgumentsChangedError, WorkflowCallError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Mapping, Sequence
    from types import CodeType, FrameType, FunctionType

__all__ = ["Definition", "Site", "Step", "SyncStep", "Workflow", "classify", "step", "workflow"]

# Calls are typed `Coroutine[None, None, R]`: with `Any` in there mypy takes the results of
# `asyncio.gather(one(), other())` for `Any`, and the body would lose its types.
P = ParamSpec("P")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)

AsyncFunction: TypeAlias = Callable[P, Coroutine[Any, Any, R]]
"""An `async def`, as the decorators take it."""


class Site(NamedTuple):
    """Where a function is written."""

    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


class Definition:
    """What steps and workflows have in common.

    Attributes:
        kind: `step` or `workflow`.
        name: What the database and Celery call it: module and qualified name, or the `name=` given.
        function: The function under the decorator.
        module: Its module.
        qualname: Its name in there.
        site: Its file and line.
        executions: The modules whose code is under way, each with what tells one execution of it from another.
        signature: Its parameters.
    """

    kind: ClassVar[Literal["step", "workflow"]]

    def __init__(self, function: Callable[..., Any], name: str | None) -> None:
        # First, because it copies the attributes of the function over ours.
        functools.update_wrapper(cast("Callable[..., object]", self), function)
        self.function = function
        self.module, self.qualname = function.__module__, function.__qualname__
        self.name = f"{self.module}.{self.qualname}" if name is None else _checked_name(self.kind, name)
        self.site = _site(function)
        # Not that of what another decorator has wrapped: it is this function that is called.
        self.signature = inspect.signature(function, follow_wrapped=False)
        self._fitting = _fitting(self.signature)
        self.executions = _executions(function)

    @property
    def place(self) -> str:
        """Where it is imported from, `module:qualname`: the same after a reload."""
        return f"{self.module}:{self.qualname}"

    def bind(
        self, args: tuple[object, ...], kwargs: Mapping[str, object], *, frame: FrameType | None = None
    ) -> None:
        """Check arguments against the signature.

        Args:
            args: Those without names.
            kwargs: Those with names.
            frame: The body that calls, whose line the error names.

        Raises:
            TypeError: Python would not call the function with them.
        """
        if not kwargs and len(args) in self._fitting:
            return
        try:
            self.signature.bind(*args, **kwargs)
        except TypeError as error:
            place = "" if frame is None else f" (line {frame.f_lineno} of {_file_of(frame)})"
            msg = f"{self.qualname}() {error}{place}"
            raise TypeError(msg) from None

    def check_stored(self, args: Sequence[object], kwargs: Mapping[str, object]) -> None:
        """Check arguments that were stored by a release of which the signature may have been another.

        Raises:
            ArgumentsChangedError: Python would not call the function with them.
        """
        try:
            self.signature.bind(*args, **kwargs)
        except TypeError as error:
            raise ArgumentsChangedError(self.kind, self.name, str(error)) from None

    def __get__(self, instance: object, owner: type | None = None) -> Self:
        """Bind to nothing. That it is there lets `help()` and Sphinx take this for a function, and show its docs."""
        return self

    def __repr__(self) -> str:
        return f"<{self.kind} {self.name}>"


def _fitting(signature: inspect.Signature) -> range:
    """How many arguments without names fit a signature if there are no others."""
    parameters = signature.parameters.values()
    if any(each.kind is each.KEYWORD_ONLY and each.default is each.empty for each in parameters):
        return range(0)
    plain = [each for each in parameters if each.kind <= each.POSITIONAL_OR_KEYWORD]
    needed = sum(each.default is each.empty for each in plain)
    is_open = any(each.kind is each.VAR_POSITIONAL for each in parameters)
    return range(needed, sys.maxsize if is_open else len(plain) + 1)


def _executions(function: Callable[..., object]) -> dict[str, object]:
    """The module of a function and those on the way to its definition, by name, each with its spec.

    A reload gives a module another spec. Not only the function's own module counts: one that calls the factory of
    another is reloaded as well.
    """
    spaces = [getattr(function, "__globals__", {})]
    frame: FrameType | None = sys._getframe(1)  # noqa: SLF001  # there is no other way to learn who calls
    while frame is not None:
        spaces.append(frame.f_globals)
        frame = frame.f_back
    return {str(space.get("__name__")): space.get("__spec__") or space for space in reversed(spaces)}


class Step(Definition, Generic[P, R_co]):
    """A function that runs once, is recorded, and is one Celery task of its own name.

    Attributes:
        options: How it is run.
        is_async: Whether it runs on the worker's loop; else in a thread.
    """

    kind = "step"

    def __init__(
        self,
        function: Callable[P, object],
        *,
        name: str | None = None,
        options: StepOptions | None = None,
    ) -> None:
        super().__init__(function, name)
        self.options = StepOptions() if options is None else options
        self._call_options: dict[str, Any] = {}
        self.is_async = inspect.iscoroutinefunction(function)

    def with_options(self, **options: Unpack[CallKeywords]) -> Self:
        """Return this step as one call of it is to be run: `await charge.with_options(max_retries=0)(order)`.

        The options are stored with the call, so a change of `@step(...)` in a later deploy does not change them. Outside of the body
        of a workflow they mean nothing.

        Args:
            **options: Those of `@step` that are not the task's, which all calls share: `max_retries`, `retry_delay`,
                `retry_backoff`, `retry_backoff_max`, `retry_jitter`, `timeout`, `discord_errors`, `on_cancel`.

        Raises:
            TypeError: There is no such option, or it is the task's.
            ValueError: The value of one makes no sense.
            InvalidDurationError: `retry_delay` or `timeout` is no time span.
        """
        made = copy.copy(self)
        made.options = self.options.changed(options)
        made._call_options = {**self._call_options, **options}  # noqa: SLF001  # its own
        return made

    @property
    def on_cancel(self) -> OnCancel:
        """What becomes of an attempt that runs when its await is cancelled."""
        return self.options.on_cancel or (OnCancel.WAIT if self.is_async else OnCancel.TELL)

    def __call__(self, /, *args: P.args, **kwargs: P.kwargs) -> Coroutine[None, None, R_co]:
        """In the body of a workflow: give the awaitable of this step. Elsewhere: call the function."""
        tracer = tracing.current()
        result: object
        if tracer is None:
            result = self.function(*args, **kwargs)
        else:
            frame = sys._getframe(1)  # noqa: SLF001  # where the body calls: what is shown of a boundary
            try:
                self.bind(args, kwargs, frame=frame)
                result = tracer.step_call(
                    self.name, args, kwargs, frame=frame, options=self._call_options
                )
            except Exception:
                if not tracing.holds_part([*args, *kwargs.values()]):
                    raise
                # Python would have worked out the parts first, and one of them may have no value.
                result = tracer.later(self, args, kwargs, line=frame.f_lineno)
        # An awaitable in a body, whatever the function gives elsewhere.
        return cast("Coroutine[None, None, R_co]", result)


class SyncStep(Step[P, R_co]):
    """A step whose function is not async: typed as in a body, where its call is awaited."""

    if TYPE_CHECKING:

        def __call__(  # type: ignore[override]  # noqa: D102  # it promises less: elsewhere it gives the plain result
            self, /, *args: P.args, **kwargs: P.kwargs
        ) -> Awaitable[R_co]: ...


class Workflow(Definition, Generic[P, R_co]):
    """An `async def` whose every step is recorded, so that its runs survive any crash."""

    kind = "workflow"

    def __init__(self, function: AsyncFunction[P, R_co], *, name: str | None = None) -> None:
        super().__init__(function, name)
        # Now, while the source on disk is the one that was imported.
        self._plain = cast("FunctionType", function)
        self._source = compiler.capture_source(self._plain)

    def __call__(self, /, *args: P.args, **kwargs: P.kwargs) -> Coroutine[None, None, R_co]:
        """In the body of another workflow: inline this one into the same run.

        Raises:
            WorkflowCallError: Called anywhere else, where `start` is meant.
        """
        tracer = tracing.current()
        if tracer is None:
            raise WorkflowCallError(self.name)
        frame = sys._getframe(1)  # noqa: SLF001  # as in `Step`
        self.bind(args, kwargs, frame=frame)
        function = self.body.function
        call = tracer.workflow_call(lambda: function(*args, **kwargs), self.name, frame=frame)
        return cast("Coroutine[None, None, R_co]", call)

    @functools.cached_property
    def body(self) -> compiler.CompiledBody:
        """The function as tracing runs it: rewritten where laziness is proved, else as it is."""
        return compiler.compile_body(self._plain, self._source, classify=classify, ops=tracing.ops)

    @functools.cached_property
    def source_hash(self) -> str:
        """What changes when the source of the body does."""
        if self._source is not None:
            return self._source.source_hash
        code: CodeType = inspect.unwrap(self.function).__code__
        return hashlib.sha256(marshal.dumps(code)).hexdigest()


def classify(value: object) -> compiler.Callee | None:
    """Return what a value is to the body of a workflow that calls it; `None` for anything else."""
    if isinstance(value, Step):
        return compiler.Callee.STEP
    if isinstance(value, Workflow):
        return compiler.Callee.WORKFLOW
    # By identity: a value of the user's may have any `==` and no hash.
    return next((callee for function, callee in _CALLEES if function is value), None)


_CALLEES: Final[tuple[tuple[object, compiler.Callee], ...]] = (
    (body.sleep, compiler.Callee.SLEEP),
    (asyncio.gather, compiler.Callee.GATHER),
    (body.now, compiler.Callee.NOW),
    (body.random, compiler.Callee.PURE),
    (body.uuid4, compiler.Callee.PURE),
)
tracing.recognise(lambda value: classify(value) is not None)


class _StepDecorator(Protocol):
    @overload
    def __call__(  # type: ignore[overload-overlap]  # as `step`
        self, function: AsyncFunction[P, R], /
    ) -> Step[P, R]: ...
    @overload
    def __call__(self, function: Callable[P, R], /) -> SyncStep[P, R]: ...


@overload
def step(  # type: ignore[overload-overlap]  # an async function is both; the first that fits is meant
    function: AsyncFunction[P, R], /
) -> Step[P, R]: ...
@overload
def step(function: Callable[P, R], /) -> SyncStep[P, R]: ...
@overload
def step(*, name: str | None = ..., **options: Unpack[StepKeywords]) -> _StepDecorator: ...
def step(
    function: Callable[..., object] | None = None,
    /,
    *,
    name: str | None = None,
    **options: Unpack[StepKeywords],
) -> object:
    """Make a step of a function: `@step`, or `@step(max_retries=5, timeout="1 minute")`.

    A step does work on the world. Awaited in the body of a workflow it runs as a Celery task, is retried when
    it fails, and is recorded: what has a record never runs again. Called anywhere else (a test, another
    step) it is the plain function.

    Args:
        function: An `async def`, which runs on the worker's loop, or a `def`, which runs in a thread.
        name: What the database and Celery call it; by default its module and qualified name. Give one where
            the function may move: runs that wait know it by its name. A lambda and a function in a function need one.
        options: See `StepOptions`: `max_retries` (3), `retry_delay` (1 s), `retry_backoff`,
            `retry_backoff_max`, `retry_jitter`, `timeout`, `queue`, `rate_limit`, `priority`, `discord_errors`, `on_cancel`.

    Raises:
        TypeError: Not a function, a generator, or an unknown option.
        ValueError: An option makes no sense, or the name is taken.
    """
    parsed = StepOptions.parse(options)

    def decorate(function: Callable[..., object]) -> Step[..., object]:
        _check_function("step", function, name)
        cls = Step if inspect.iscoroutinefunction(function) else SyncStep
        made: Step[..., object] = cls(function, name=name, options=parsed)
        registry.register(made)
        return made

    return decorate if function is None else decorate(function)


class _WorkflowDecorator(Protocol):
    def __call__(self, function: AsyncFunction[P, R], /) -> Workflow[P, R]: ...


@overload
def workflow(function: AsyncFunction[P, R], /) -> Workflow[P, R]: ...
@overload
def workflow(*, name: str | None = ...) -> _WorkflowDecorator: ...
def workflow(function: Callable[..., object] | None = None, /, *, name: str | None = None) -> object:
    """Make a workflow of an `async def`: `@workflow`, or `@workflow(name="onboarding")`.

    Its body decides which steps run and in which order, and may be run again at any time; so it awaits steps,
    `sleep`, `asyncio.gather` and other workflows, and leaves all work on the world to steps.

    Args:
        function: An `async def`.
        name: What the database calls it; by default its module and qualified name.

    Raises:
        TypeError: Not an `async def`.
        ValueError: The name is taken.
    """

    def decorate(function: Callable[..., object]) -> Workflow[..., object]:
        _check_function("workflow", function, name)
        if not inspect.iscoroutinefunction(function):
            msg = (
                f"@workflow needs an `async def`, and {function.__qualname__} is a `def`. Write `async def "
                f"{function.__name__}(...)`; any decorator in between must return an async function, too."
            )
            raise TypeError(msg)
        made: Workflow[..., object] = Workflow(function, name=name)
        registry.register(made)
        return made

    return decorate if function is None else decorate(function)


def _check_function(kind: str, function: object, name: str | None) -> None:
    if isinstance(function, str):
        msg = f"@{kind} takes its options by keyword: @{kind}(name={function!r})"
        raise TypeError(msg)
    if isinstance(function, Definition):
        msg = f"{function!r} has its decorator already: a function is a step or a workflow, once"
        raise TypeError(msg)
    if not inspect.isfunction(function):
        what = f"{type(function).__name__} {function!r}"
        msg = f"@{kind} goes over a function, and this is a {what}. Put other decorators above @{kind}."
        raise TypeError(msg)
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        msg = (
            f"@{kind} cannot go over {function.__qualname__}, which is a generator: a {kind} has one result. "
            f"Return a list instead of using `yield`."
        )
        raise TypeError(msg)
    owner = function.__qualname__.rpartition(".")[0]
    names = function.__code__.co_varnames[: function.__code__.co_argcount]
    if owner and not owner.endswith("<locals>") and names[:1] in (("self",), ("cls",)):
        msg = (
            f"@{kind} cannot go over {function.__qualname__}, a method: a run outlives the object, and a worker has none to "
            f"call it on. Define it outside of the class, with ids in place of `{names[0]}`."
        )
        raise TypeError(msg)
    if name is None and "<" in function.__qualname__:
        msg = (
            f"{function.__module__}.{function.__qualname__} ({_site(function)}) needs an explicit name: lambdas and nested "
            f"functions share one qualified name, and runs in the database know a {kind} by its name alone. Write "
            f"@{kind}(name=...), a different one for each."
        )
        raise ValueError(msg)


def _checked_name(kind: str, name: object) -> str:
    if not isinstance(name, str) or not name.strip():
        msg = f"@{kind}(name={name!r}): a name must be text, and not empty"
        raise ValueError(msg)
    return name


def _file_of(frame: FrameType) -> str:
    return os.path.basename(frame.f_code.co_filename)  # noqa: PTH119  # it may be no path


def _site(function: Callable[..., object]) -> Site:
    code: CodeType = inspect.unwrap(function).__code__
    return Site(code.co_filename, code.co_firstlineno)
