"""The Python blocks of a page of the documentation, run in the order in which a reader meets them.

A test names each block by words that it shows, and says how it is run: as a module, as a piece of a body, or as a piece of a command.
A block that the test leaves out fails it, and so does a line that was never reached. The blocks of a page share one namespace, to which the test adds what the page takes for
granted. Each is compiled at its own lines of the page, so that a traceback names them.
"""

from __future__ import annotations

import ast
import functools
import inspect
import itertools
import re
import shutil
import sys
import tempfile
import textwrap
import threading
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, FrameType, ModuleType
from typing import Any

import pytest

from ckworkflow import Workflow, client, workflow
from ckworkflow.background import SpareThreads
from ckworkflow.codec import classes
from ckworkflow.testing import Environment, process
from environments import in_environment

__all__ = ["ROOT", "Block", "Page", "blocks_of", "pages_with_blocks", "snippets_of", "tested_pages"]

ROOT = Path(__file__).parent.parent
FOLDERS = ("*.md", "docs/*.md", "docker/*.md", "examples/**/*.md")
tested_pages: set[str] = set()
_numbers = itertools.count()


@dataclass(frozen=True)
class Block:
    """A block, without the indentation of a list that it stands in."""

    page: str
    line: int
    """Of its first line of code, in the page."""
    code: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks_of(page: str) -> list[Block]:
    found, opened = [], None
    lines = (ROOT / page).read_text().splitlines()
    for number, line in enumerate(lines, start=1):
        if opened is None and (start := re.match(r"( *)```(py|python|python3|pycon)\b", line)):
            opened = number + 1, start[1]
        elif opened is not None and line == f"{opened[1]}```":
            code = "\n".join(lines[opened[0] - 1 : number - 1]) + "\n"
            found.append(Block(page, opened[0], re.sub(f"^{opened[1]}", "", code, flags=re.MULTILINE)))
            opened = None
    assert opened is None, f"{page}:{opened and opened[0]} opens a block that nothing closes"
    return found


def pages_with_blocks() -> set[str]:
    files = {str(path.relative_to(ROOT)) for pattern in FOLDERS for path in ROOT.glob(pattern)}
    return {file for file in files if blocks_of(file)}


@contextmanager
def _without_new_classes() -> Iterator[None]:
    """Forget the classes that are registered inside: other tests use their names."""
    tables: list[dict[Any, Any]] = [classes.registered, classes.registered_names]
    before = [dict(table) for table in tables]
    try:
        yield
    finally:
        for table, known in zip(tables, before, strict=True):
            table.clear()
            table.update(known)


def snippets_of(
    page: str,
) -> Callable[[Callable[[Page, Environment], Awaitable[None]]], Callable[[], None]]:
    """Make a test of a coroutine function that runs the blocks of a page, in an environment of its own."""
    tested_pages.add(page)

    def decorate(run: Callable[[Page, Environment], Awaitable[None]]) -> Callable[[], None]:
        @functools.wraps(run)
        def test() -> None:
            folder = Path(tempfile.mkdtemp(prefix="ckworkflow-docs-"))
            snippets = Page(page, folder)
            try:
                with snippets.watched(), _without_new_classes():
                    in_environment(lambda env: run(snippets, env))
                snippets.must_be_done()
            finally:
                sys.modules.pop(snippets.names.__name__, None)
                shutil.rmtree(folder)

        # pytest would take the parameters of what it wraps for fixtures.
        del test.__wrapped__  # type: ignore[attr-defined]
        return test

    return decorate


class Page:
    """The blocks that are still to be run, and what those before have defined.

    Attributes:
        name: The page, from the root of the project.
        names: A module with what the blocks have defined so far.
    """

    def __init__(self, name: str, folder: Path) -> None:
        self._left = blocks_of(name)
        self._folder = folder
        self._to_reach: set[int] = set()
        self._reached: set[int] = set()
        self.name = name
        # Two steps of one name are refused, also where a test is run twice.
        self.names = ModuleType(f"{re.sub(r'[^a-z]', '_', name.lower())}_{next(_numbers)}")
        sys.modules[self.names.__name__] = self.names

    def assume(self, **names: Any) -> None:
        """Define what the page takes for granted."""
        vars(self.names).update(names)

    def define(self, shows: str) -> None:
        """Run the next block as a module."""
        block = self._next(shows)
        try:
            exec(self._compiled(block, block.code), vars(self.names))
        except BaseException as error:
            error.add_note(f"in the block at {block}")
            raise

    async def run(
        self, shows: str, before: Mapping[str, Callable[[], Awaitable[object]]] | None = None
    ) -> dict[str, Any]:
        """Run the next block as a piece of an async function.

        Args:
            shows: Words of the block.
            before: What is done before a statement, by words of it.

        Returns:
            The values of the statements that are expressions, by their text.
        """
        self._ran = self._next(shows)
        return await self._run(self._ran, before or {})

    async def run_again(self) -> dict[str, Any]:
        """Do the same with the block that was run last, where it assumes something else now."""
        return await self._run(self._ran, {})

    async def _run(
        self, block: Block, before: Mapping[str, Callable[[], Awaitable[object]]]
    ) -> dict[str, Any]:
        values: dict[str, Any] = {}
        left = dict(before)
        for statement in ast.parse(block.code).body:
            text = ast.unparse(statement)
            for words in [words for words in left if words in text]:
                await left.pop(words)()
            try:
                value = await self._value(block, statement)
            except BaseException as error:
                error.add_note(f"in the block at {block}: {text}")
                raise
            if isinstance(statement, ast.Expr):
                values[text] = value
        assert not left, f"{block} has no statement with {list(left)}"
        return values

    async def _value(self, block: Block, statement: ast.stmt) -> Any:
        is_expression = isinstance(statement, ast.Expr)
        tree: ast.AST = (
            ast.Expression(statement.value)
            if isinstance(statement, ast.Expr)
            else ast.Module([statement], [])
        )
        ast.increment_lineno(tree, block.line - 1)
        code = compile(
            tree, self._file(block, block.code), "eval" if is_expression else "exec",
            flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True,
        )  # fmt: skip
        found = eval(code, vars(self.names))
        return await found if code.co_flags & inspect.CO_COROUTINE else found

    def body(self, shows: str, *parameters: str, gives: str = "None") -> Workflow[..., Any]:
        """Make a workflow whose body is the next block.

        Args:
            shows: Words of the block.
            *parameters: Names that the block assumes and that are the arguments of the workflow.
            gives: What the workflow returns after the block, as Python.
        """
        block = self._next(shows)
        code = (
            f"@_workflow(name='{self.names.__name__}.line_{block.line}')\n"
            f"async def _body({', '.join(parameters)}):\n"
            f"{textwrap.indent(block.code, '    ')}"
            f"    return {gives}\n"
        )
        self.assume(_workflow=workflow)
        exec(self._compiled(block, code, lines_before=2), vars(self.names))
        return self.names._body

    def define_workflow(self, code: str) -> None:
        """Add a workflow that is not in the page, to call what is."""
        self.assume(_workflow=workflow)
        file = self._folder / f"added_{next(_numbers)}.py"
        file.write_text(f"@_workflow\n{code}\n")
        exec(compile(file.read_text(), str(file), "exec", dont_inherit=True), vars(self.names))

    def is_run_by(self, test: str, shows: str) -> None:
        """Leave the next block to another test, as `file::function`."""
        block = self._next(shows)
        file, _, function = test.partition("::")
        tree = ast.parse((ROOT / file).read_text())
        functions = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
        assert function in functions, f"{block} is left to {file}::{function}, which does not exist"

    def must_be_done(self) -> None:
        assert not self._left, f"no test runs the block at {self._left[0]}"
        missed = sorted(self._to_reach - self._reached)
        assert not missed, (
            f"the test never comes to {', '.join(f'{self.name}:{line}' for line in missed)}"
        )

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Note which lines of the page are run, here and on threads that begin meanwhile."""

        def in_block(frame: FrameType, event: str, argument: object) -> Any:
            self._reached.add(frame.f_lineno)
            return in_block

        def anywhere(frame: FrameType, event: str, argument: object) -> Any:
            return in_block if frame.f_code.co_filename.startswith(f"{self._folder}/line_") else None

        before = sys.gettrace(), threading.gettrace()
        with pytest.MonkeyPatch.context() as patch:
            # Bodies are begun and plain steps run on threads of these, and those of earlier tests are not watched.
            patch.setattr(client._threads, "_threads", SpareThreads())
            patch.setattr(process, "_threads", SpareThreads())
            sys.settrace(anywhere)
            threading.settrace(anywhere)
            try:
                yield
            finally:
                sys.settrace(before[0])
                threading.settrace(before[1])  # type: ignore[arg-type]

    def _next(self, shows: str) -> Block:
        assert self._left, f"{self.name} has no further block; the test expects one that shows {shows!r}"
        block = self._left.pop(0)
        assert shows in block.code, (
            f"the test expects a block that shows {shows!r}, and the next one, at {block}, is\n{block.code}"
        )
        return block

    def _file(self, block: Block, code: str, lines_before: int = 0) -> str:
        """Write code to a file in which it has the lines that it has in the page."""
        file = self._folder / f"line_{block.line}_of_{Path(self.name).stem}.py"
        file.write_text("\n" * (block.line - 1 - lines_before) + code)
        compiled = compile(
            "\n" * (block.line - 1) + block.code, str(file), "exec",
            flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True,
        )  # fmt: skip
        self._to_reach |= {line for line in _lines_of(compiled) if line >= block.line}
        return str(file)

    def _compiled(self, block: Block, code: str, lines_before: int = 0) -> CodeType:
        file = self._file(block, code, lines_before)
        return compile(Path(file).read_text(), file, "exec", dont_inherit=True)


def _lines_of(code: CodeType) -> Iterator[int]:
    """The lines with something to run, in functions too."""
    for _, _, line in code.co_lines():
        if line is not None:
            yield line
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _lines_of(constant)
