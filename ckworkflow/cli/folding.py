"""Folding: of a long run, the many steps that have ended well are told in one line."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Final

from ckworkflow.drawing import words
from ckworkflow.model import NodeStatus

if TYPE_CHECKING:
    from ckworkflow.model import StepInfo

__all__ = ["fold"]

LONGEST: Final = 20
"""So many completed nodes in a row are all shown."""
SHOWN: Final = 5
"""Of more, so many at either end."""
NAMES: Final = 3


def fold(lines: Sequence[str], steps: Sequence[StepInfo]) -> Iterator[str]:
    """Give the lines of a table of nodes, without the middle of each long stretch that is completed.

    Args:
        lines: One for each of them.
        steps: The nodes, in their order.
    """
    at = 0
    for is_completed, stretch in groupby(steps, lambda step: step.status is NodeStatus.COMPLETED):
        count = len(list(stretch))
        if not is_completed or count <= LONGEST:
            yield from lines[at : at + count]
        else:
            first, last = at + SHOWN, at + count - SHOWN
            yield from lines[at:first]
            yield _told(steps[first:last])
            yield from lines[last : at + count]
        at += count


def _told(steps: Sequence[StepInfo]) -> str:
    counts = Counter(words.last_part(step.name) for step in steps)
    named = [f"{count:,} {name}" for name, count in counts.most_common(NAMES)]
    if len(counts) > NAMES:
        named.append(f"{sum(counts.values()) - sum(n for _, n in counts.most_common(NAMES)):,} others")
    return f"… {len(steps):,} more, completed: {', '.join(named)} (--all shows them)"
