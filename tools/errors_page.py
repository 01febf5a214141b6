"""Write docs/errors.md from the docstrings of `ckworkflow/errors.py`: `python tools/errors_page.py > docs/errors.md`."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator

from ckworkflow import errors

HEAD = """# Errors

The errors that ckworkflow defines, in the order of [`ckworkflow/errors.py`](../ckworkflow/errors.py), from whose docstrings this page is made.
All are `CkWorkflowError`s and can be imported from `ckworkflow.errors`. A message says what happened, why, and what to do; the values in it are
attributes. A decorator that is given something it cannot take raises a plain `TypeError` or `ValueError`, and a step's error whose class cannot
be made again comes back as a `RecordedError` with its text.

| error | what it means | it is also a |
|---|---|---|
"""
FOOT = """
## Attributes with an explanation

"""


def classes() -> Iterator[type[Exception]]:
    """The classes of the module, in its order."""
    for found in vars(errors).values():
        if (
            inspect.isclass(found)
            and found.__module__ == errors.__name__
            and issubclass(found, Exception)
        ):
            yield found


def parts(docs: str) -> tuple[str, str]:
    """The first paragraph of a docstring on one line, and its section of attributes."""
    first, _, rest = docs.partition("\n\n")
    attributes = re.search(r"^Attributes:\n((?:    .*\n?)+)", rest, re.MULTILINE)
    return " ".join(first.split()), attributes.group(1) if attributes else ""


def attributes_of(section: str) -> Iterator[str]:
    """The attributes of a section as items of a list."""
    for name, text in re.findall(r"^    (\w+): (.*(?:\n        .*)*)", section, re.MULTILINE):
        yield f"- `{name}`: {' '.join(text.split())}"


def page() -> str:
    """The page."""
    rows, lists = [], []
    for found in classes():
        meaning, section = parts(inspect.getdoc(found) or "")
        builtins = [base.__name__ for base in found.__mro__ if base.__module__ == "builtins"]
        others = [name for name in builtins if name not in {"Exception", "BaseException", "object"}]
        rows.append(f"| `{found.__name__}` | {meaning} | {', '.join(f'`{name}`' for name in others)} |")
        items = list(attributes_of(section))
        if items:
            lists.append("\n".join([f"**{found.__name__}**", "", *items]))
    return HEAD + "\n".join(rows) + "\n" + FOOT + "\n\n".join(lists) + "\n"


if __name__ == "__main__":
    print(page(), end="")  # noqa: T201  # what it is for
