"""Totals: what long tests have counted, summed up at the end of the report, also under `pytest -n`.

A test hands over its counts with `record`; they travel as a user property of its report, and `report` (called
by `conftest.py` in the process that prints) adds up those of one section and row.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from typing import Any

PROPERTY = "totals"
LIKE = "workflows"
"""A count that is not summed up over the rows: they are the same in each."""


def record(
    record_property: Callable[[str, object], None], section: str, row: str, *, longest: tuple[float, str] | None = None,
    notes: list[str] | None = None, **counts: int,
) -> None:  # fmt: skip
    """Hand over the counts of a test.

    Args:
        record_property: The fixture of pytest.
        section: The heading under which they are printed.
        row: Counts of one row are added up.
        longest: Seconds and where; of one row the longest is printed.
        notes: Lines that are printed as they are.
        counts: What was counted.
    """
    found = {"section": section, "row": row, "counts": counts, "longest": longest, "notes": notes or []}
    record_property(PROPERTY, json.dumps(found))


def report(reporter: Any) -> None:
    """Print all totals, if there are any."""
    sections: dict[str, dict[str, dict[str, Any]]] = {}
    for outcome in ("passed", "failed"):
        for test in reporter.stats.get(outcome, ()):
            for name, value in getattr(test, "user_properties", ()):
                if name == PROPERTY:
                    _add(sections, json.loads(value))
    for section, rows in sections.items():
        reporter.section(section, bold=True)
        for row, found in sorted(rows.items()):
            counts = ", ".join(
                f"{count} {name.replace('_', ' ')}" for name, count in found["counts"].items()
            )
            seconds, where = found["longest"] or (0.0, "")
            reporter.write_line(
                f"{row}: {counts}" + (f"; longest {seconds:.2f} s ({where})" if where else "")
            )
            for note in dict.fromkeys(found["notes"]):
                reporter.write_line(f"  {note}")
        if len(rows) > 1:
            sums = Counter[str]()
            for found in rows.values():
                sums.update({name: count for name, count in found["counts"].items() if name != LIKE})
            told = ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in sums.items())
            reporter.write_line(f"in all {len(rows)}: {told}")


def _add(sections: dict[str, dict[str, dict[str, Any]]], found: dict[str, Any]) -> None:
    rows = sections.setdefault(found["section"], {})
    sum_ = rows.setdefault(found["row"], {"counts": {}, "longest": None, "notes": []})
    for name, count in found["counts"].items():
        sum_["counts"][name] = sum_["counts"].get(name, 0) + count
    if found["longest"] is not None:
        sum_["longest"] = max(sum_["longest"] or [0.0, ""], list(found["longest"]))
    sum_["notes"] += found["notes"]
