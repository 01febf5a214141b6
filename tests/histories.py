"""Histories: all that is left of runs - their rows, what their steps did, and what happened to them in the order of commits.

That order is noted by the database itself: triggers write a mark for each request to cancel, each attempt that begins or is over (recorded, given back, lost with
its worker), each step and each run that ends. A transaction that writes one holds the lock of its run, so of one run the numbers of marks are the order in
which its transactions took that lock, and no clock is asked.
"""

from __future__ import annotations

import sqlite3
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from crash_everywhere.site import FINAL, Reader
from effects import Effect, effects_of
from nemesis.tuning import pid_of

ASKED, BEGUN, OVER = "asked", "begun", "over"

_SQLITE = """
CREATE TABLE marks (number INTEGER PRIMARY KEY AUTOINCREMENT, run_id TEXT, what TEXT, node_id TEXT, attempt INTEGER);
CREATE TRIGGER mark_request AFTER UPDATE ON runs WHEN OLD.cancel_requested_at IS NULL AND NEW.cancel_requested_at IS NOT NULL
BEGIN INSERT INTO marks (run_id, what) VALUES (NEW.id, 'asked'); END;
CREATE TRIGGER mark_end AFTER UPDATE ON runs WHEN NEW.finished_at IS NOT NULL
AND (OLD.finished_at IS NOT NEW.finished_at OR OLD.status <> NEW.status)
BEGIN INSERT INTO marks (run_id, what) VALUES (NEW.id, NEW.status); END;
CREATE TRIGGER mark_first AFTER INSERT ON nodes WHEN NEW.kind = 'step' AND NEW.status = 'running'
BEGIN INSERT INTO marks (run_id, what, node_id, attempt) VALUES (NEW.run_id, 'begun', NEW.node_id, NEW.attempt); END;
CREATE TRIGGER mark_attempt AFTER UPDATE ON nodes WHEN NEW.kind = 'step' AND OLD.attempt < NEW.attempt
BEGIN INSERT INTO marks (run_id, what, node_id, attempt) VALUES (NEW.run_id, 'begun', NEW.node_id, NEW.attempt); END;
CREATE TRIGGER mark_record AFTER UPDATE ON nodes WHEN NEW.kind = 'step' AND OLD.status <> NEW.status
AND NEW.status IN ('completed', 'failed')
BEGIN INSERT INTO marks (run_id, what, node_id, attempt) VALUES (NEW.run_id, NEW.status, NEW.node_id, NEW.attempt); END;
CREATE TRIGGER mark_over AFTER UPDATE ON nodes WHEN NEW.kind = 'step' AND OLD.owner IS NOT NULL AND NEW.owner IS NULL
BEGIN INSERT INTO marks (run_id, what, node_id, attempt) VALUES (NEW.run_id, 'over', NEW.node_id, NEW.attempt); END;
"""
_POSTGRES = """
CREATE TABLE marks (number BIGSERIAL PRIMARY KEY, run_id TEXT, what TEXT, node_id TEXT, attempt INTEGER);
CREATE FUNCTION mark_run() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
IF OLD.cancel_requested_at IS NULL AND NEW.cancel_requested_at IS NOT NULL THEN
INSERT INTO marks (run_id, what) VALUES (NEW.id, 'asked'); END IF;
IF NEW.finished_at IS NOT NULL AND (OLD.finished_at IS DISTINCT FROM NEW.finished_at OR OLD.status <> NEW.status) THEN
INSERT INTO marks (run_id, what) VALUES (NEW.id, NEW.status); END IF;
RETURN NULL; END $$;
CREATE FUNCTION mark_node() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
IF NEW.kind <> 'step' THEN RETURN NULL; END IF;
IF TG_OP = 'INSERT' THEN
IF NEW.status = 'running' THEN
INSERT INTO marks (run_id, what, node_id, attempt) VALUES (NEW.run_id, 'begun', NEW.node_id, NEW.attempt); END IF;
RETURN NULL; END IF;
IF OLD.attempt < NEW.attempt THEN
INSERT INTO marks (run_id, what, node_id, attempt) VALUES (NEW.run_id, 'begun', NEW.node_id, NEW.attempt); END IF;
IF OLD.status <> NEW.status AND NEW.status IN ('completed', 'failed') THEN
INSERT INTO marks (run_id, what, node_id, attempt) VALUES (NEW.run_id, NEW.status, NEW.node_id, NEW.attempt); END IF;
IF OLD.owner IS NOT NULL AND NEW.owner IS NULL THEN
INSERT INTO marks (run_id, what, node_id, attempt) VALUES (NEW.run_id, 'over', NEW.node_id, NEW.attempt); END IF;
RETURN NULL; END $$;
CREATE TRIGGER mark_run AFTER UPDATE ON runs FOR EACH ROW EXECUTE FUNCTION mark_run();
CREATE TRIGGER mark_node AFTER INSERT OR UPDATE ON nodes FOR EACH ROW EXECUTE FUNCTION mark_node();
"""


@dataclass(frozen=True, slots=True)
class Mark:
    """Something that happened to a run: `asked`, an attempt has `begun` or is `over`; a step or (without a node) the run has ended."""

    number: int
    what: str
    node_id: str | None
    attempt: int | None


@dataclass(frozen=True, slots=True)
class Node:
    """A step as its row is."""

    name: str
    status: str
    attempt: int
    output: str | None
    delivered: int | None
    is_cancelled: bool
    finished_at: Any
    owner: str | None


@dataclass(slots=True)
class History:
    """What is left of one run. `nodes` are by name, `ended` are attempts without a result: node, number, outcome, owner."""

    run_id: str
    status: str
    output: str | None
    error: str | None
    requested_at: Any
    cancel_delivered: int | None
    wake_at: Any
    nodes: dict[str, Node] = field(default_factory=dict)
    ids: dict[str, str] = field(default_factory=dict)
    """The names of steps, by their places."""
    ended: list[tuple[str, int, str, str]] = field(default_factory=list)
    marks: list[Mark] = field(default_factory=list)
    effects: list[Effect] = field(default_factory=list)

    def number(self, what: str, name: str | None = None, *, last: bool = False) -> int | None:
        """The number of the first (or last) mark of this kind, of the run or of a step; `None`: there is none."""
        found = [
            mark.number
            for mark in self.marks
            if mark.what == what and (mark.node_id and self.ids.get(mark.node_id)) == name
        ]
        return (found[-1] if last else found[0]) if found else None

    def labels(self, *labels: str) -> list[int]:
        """Where in the file of its effects those with these labels are."""
        return [place for place, each in enumerate(self.effects) if each.label in labels]

    def faults(self, killed: Collection[int]) -> Iterator[str]:
        """What is wrong with any run, whatever it was to do; `killed` are the workers that were."""
        ends = [mark.what for mark in self.marks if mark.node_id is None and mark.what in FINAL]
        if ends != [self.status]:
            yield f"the run is {self.status} and has ended as {ends}"
        if self.wake_at is not None:
            yield "the run has ended and has a wake_at"
        if len([mark for mark in self.marks if mark.what == ASKED]) > 1:
            yield "the run was asked twice"
        if (self.requested_at is None) != (self.cancel_delivered is None):
            yield f"of the request at {self.requested_at} the body was told as {self.cancel_delivered}"
        begun = {(mark.node_id, mark.attempt) for mark in self.marks if mark.what == BEGUN}
        for place, count in Counter(
            (each.key, each.attempt, each.label) for each in self.effects
        ).items():
            if count > 1 and not place[2].endswith("…"):
                yield f"attempt {place[1]} had its effect {place[2]!r} {count} times"
        of_process = defaultdict(set)
        for each in self.effects:
            of_process[each.node_id, each.attempt].add(each.group)
            if (each.node_id, each.attempt) not in begun:
                yield f"{each} is of an attempt that has not begun"
        for place, groups in of_process.items():
            if len(groups) > 1:
                yield f"attempt {place} ran in {len(groups)} processes"
        for node_id, attempt, outcome, owner in self.ended:
            if outcome == "lost" and pid_of(owner) not in killed:
                yield f"attempt {attempt} of {node_id} was lost by {owner}, which was not killed"
        for node_id, name in self.ids.items():
            yield from self._wrong_attempts(node_id, name)

    def _wrong_attempts(self, node_id: str, name: str) -> Iterator[str]:
        node = self.nodes[name]
        if node.owner is not None:
            yield f"{name} still runs"
        numbers = [number for place, number, *_ in self.ended if place == node_id]
        if node.status == "completed":
            numbers.append(node.attempt)
            if not any((each.node_id, each.attempt) == (node_id, node.attempt) for each in self.effects):
                yield f"{name} is completed, and its attempt {node.attempt} had no effect"
        if node.status != "abandoned" and sorted(numbers) != list(range(1, node.attempt + 1)):
            yield f"{name} has had {node.attempt} attempts, and has those with the numbers {numbers}"
        records = [
            mark
            for mark in self.marks
            if mark.node_id == node_id and mark.what in {"completed", "failed"}
        ]
        if len(records) > 1:
            yield f"{name} was recorded {len(records)} times"

    def __str__(self) -> str:
        lines = [
            f"{self.run_id} {self.status} {self.output or self.error}, told {self.cancel_delivered}"[
                :300
            ]
        ]
        lines += [f"  {node}" for node in self.nodes.values()]
        lines += [f"  {ended}" for ended in self.ended]
        lines.append("  " + ", ".join(
            f"{mark.number} {mark.what} {self.ids.get(mark.node_id or '', '')} {mark.attempt or ''}" for mark in self.marks
        ))  # fmt: skip
        shown = self.effects if len(self.effects) < 40 else [*self.effects[:10], *self.effects[-30:]]
        lines.append("  " + ", ".join(f"{each.label} {each.attempt} by {each.group}" for each in shown))
        return "\n".join(lines)


class Histories:
    """The database of a home, which notes marks from now on.

    Args:
        url: Of a database that has its tables, and no runs yet.
        effects: The folder of effects.
    """

    def __init__(self, url: str, effects: Path) -> None:
        self.reader, self._effects = Reader(url), effects
        if self.reader.is_sqlite:
            with closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as file:
                file.executescript(_SQLITE)
        else:
            import psycopg

            with closing(psycopg.connect(url.replace("+psycopg", ""), autocommit=True)) as server:
                server.execute(_POSTGRES)

    def are_over(self) -> bool:
        """Whether every run has ended, and each of its steps."""
        live = self.reader.all("SELECT id FROM runs WHERE status NOT IN (?, ?, ?) LIMIT 1", *FINAL)
        return not live and not self.reader.all(
            "SELECT run_id FROM nodes WHERE owner IS NOT NULL LIMIT 1"
        )

    def read(self) -> dict[str, History]:
        """All runs, by their ids."""
        found = {
            row[0]: History(*row)
            for row in self.reader.all(
                "SELECT id, status, output, error, cancel_requested_at, cancel_delivered, wake_at FROM runs"
            )
        }
        for run_id, node_id, name, *rest in self.reader.all(
            "SELECT run_id, node_id, name, status, attempt, output, delivered, cancelled_at, finished_at, owner "
            "FROM nodes WHERE kind = 'step' ORDER BY position"
        ):
            status, attempt, output, delivered, cancelled_at, finished_at, owner = rest
            short, history = name.rpartition(".")[2], found[run_id]
            history.ids[node_id] = short
            history.nodes[short] = Node(
                short, status, attempt, output, delivered, cancelled_at is not None, finished_at, owner
            )
        for run_id, *rest in self.reader.all(
            "SELECT run_id, node_id, attempt, outcome, owner FROM attempts"
        ):
            found[run_id].ended.append(tuple(rest))
        for run_id, *rest in self.reader.all(
            "SELECT run_id, number, what, node_id, attempt FROM marks ORDER BY number"
        ):
            found[run_id].marks.append(Mark(*rest))
        for run_id, history in found.items():
            history.effects = effects_of(self._effects, run_id)
        return found
