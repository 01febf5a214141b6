"""The witness: looks at the database while everything breaks, and judges what is left.

While it goes on: what is recorded never changes and never goes away, and no live run is without `wake_at`. At the
end: every run that was started is there and ended right, each recorded step has one result on record, each effect
is that of the attempt on record, of one that had to fail, or of one that was lost, and an attempt was lost only where
its worker had died or had been silent beyond its lease while it had it.

An attempt may be lost without that in one case, and only if it had no effect: the database went away just when it
was to say that the step was claimed.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from crash_everywhere.site import FINAL
from effect_flows import FLOWS, ONLY_CHILDREN, Flow
from effects import Effect, effects_of
from nemesis.cluster import Cluster
from nemesis.tuning import HEARTBEAT_SECONDS, LEASE_SECONDS, pid_of

SLACK_SECONDS = 0.05


@dataclass(frozen=True, slots=True)
class Ended:
    """How an attempt ended that gave no result, when it began, and when that was on record."""

    outcome: str
    owner: str
    since: float
    at: float


class Witness:
    """See the module."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._recorded: dict[tuple[str, str], tuple[Any, ...]] = {}
        self._ended: dict[str, tuple[Any, ...]] = {}
        self.looks = 0
        self.wrong: list[str] = []

    @property
    def record_count(self) -> int:
        return len(self._recorded)

    def look(self) -> bool:
        """Look once; `False` while the database is down."""
        import psycopg

        reader = self._cluster.reader
        try:
            nodes = reader.all(
                "SELECT run_id, node_id, status, output, error FROM nodes WHERE status IN ('completed', 'failed')"
            )
            ended = reader.all(
                "SELECT id, status, output, error FROM runs WHERE status IN (?, ?, ?)", *FINAL
            )
            forgotten = reader.all(
                "SELECT id FROM runs WHERE wake_at IS NULL AND status NOT IN (?, ?, ?)", *FINAL
            )
        except psycopg.OperationalError:
            reader.close()
            return False
        self._compare(
            self._recorded, {(row[0], row[1]): tuple(row[2:]) for row in nodes}, "the record of"
        )
        self._compare(self._ended, {row[0]: tuple(row[1:]) for row in ended}, "the end of")
        self.wrong += [f"{run_id} lives and has no wake_at" for (run_id,) in forgotten]
        self.looks += 1
        return True

    def _compare(self, known: dict[Any, Any], found: dict[Any, Any], what: str) -> None:
        for key, value in known.items():
            if found.get(key) != value:
                self.wrong.append(f"{what} {key} was {value} and is {found.get(key)}")
        known.update(found)

    def unfinished(self) -> list[str]:
        """The runs that have not ended, and the attempts that have not, as lines.

        A run may end while a step of it still runs: in a `gather` whose other member fails. Its effect may be there and
        its record not yet, for as long as the worker waits for a database that was away, or until its death is found.
        """
        reader = self._cluster.reader
        runs = reader.all(
            "SELECT id, workflow, status, wake_at, dispatches FROM runs WHERE status NOT IN (?, ?, ?)",
            *FINAL,
        )
        steps = reader.all(
            "SELECT run_id, node_id, name, status, attempt, owner FROM nodes WHERE owner IS NOT NULL"
        )
        return [" ".join(map(str, row)) for row in (*runs, *steps)]

    # --- the end -------------------------------------------------------------------------------------

    def judge(self) -> None:
        """Look at every run, once nothing is unfinished."""
        reader = self._cluster.reader
        runs = reader.all("SELECT id, parent, workflow, status, output, error FROM runs")
        attempts: dict[str, dict[tuple[str, int], Ended]] = defaultdict(dict)
        for run_id, node_id, number, *rest in reader.all(
            "SELECT run_id, node_id, attempt, outcome, owner, extract(epoch FROM started_at)::float, "
            "extract(epoch FROM finished_at)::float FROM attempts"
        ):
            attempts[run_id][node_id, number] = Ended(*rest)
        last: dict[str, dict[str, int]] = defaultdict(dict)
        for run_id, node_id, number in reader.all(
            "SELECT run_id, node_id, attempt FROM nodes WHERE finished_at IS NOT NULL"
        ):
            last[run_id][node_id] = number
        missing = self._cluster.started - {row[0] for row in runs}
        self.wrong += [f"{run_id} was started and is not there" for run_id in missing]
        notes = reader.all("SELECT sender, kind, receiver FROM notes")
        self.wrong += [f"{sender} has not told {receiver}: {kind}" for sender, kind, receiver in notes]
        for run_id, parent, workflow, *end in runs:
            flow = (FLOWS | ONLY_CHILDREN)[workflow.rpartition(".")[2]]
            if run_id in self._cluster.cancelled or parent in self._cluster.cancelled:
                flow = replace(flow, optional=frozenset(flow.effects))
                if end[0] == "cancelled":
                    flow = replace(flow, ends=end[0])
            effects = effects_of(self._cluster.effects_folder, run_id)
            for fault in (
                *_wrong_end(flow, *end),
                *_wrong_attempts(attempts[run_id]),
                *self._unexplained_losses(attempts[run_id], effects),
                *self._wrong_effects(flow, effects, attempts[run_id], last[run_id]),
            ):
                self.wrong.append(f"{workflow} {run_id}: {fault}")

    def _unexplained_losses(
        self, attempts: dict[tuple[str, int], Ended], effects: list[Effect]
    ) -> Iterator[str]:
        had_effect = {(effect.node_id, effect.attempt) for effect in effects}
        for place, ended in attempts.items():
            if ended.outcome != "lost":
                continue
            group = self._cluster.group_of(ended.owner)
            if self._was_troubled(pid_of(ended.owner), group, ended.since, ended.at):
                self._cluster.counts["attempts lost with their worker"] += 1
            elif place not in had_effect and self._was_database_away(ended.since):
                self._cluster.counts["claims that the database did not answer"] += 1
            else:
                yield (
                    f"attempt {place[1]} of {place[0]} was lost, and nothing was done to its worker {ended.owner} "
                    f"of group {group}:\n"
                    f"{self._cluster.events_between(ended.since, ended.at)}"
                )

    def _wrong_effects(
        self,
        flow: Flow,
        effects: list[Effect],
        attempts: dict[tuple[str, int], Ended],
        last: dict[str, int],
    ) -> Iterator[str]:
        labels = Counter(effect.label for effect in effects)
        for label, count in flow.effects.items():
            if labels[label] < count and label not in flow.optional:
                yield f"{label!r} ran {labels[label]} times and not {count}"
        for label in labels.keys() - flow.effects.keys():
            yield f"{label!r} ran, and must not"
        for (node_id, number), count in Counter((e.node_id, e.attempt) for e in effects).items():
            if count > 1:
                yield f"attempt {number} of {node_id} had its effect {count} times"
            outcome = attempts[node_id, number].outcome if (node_id, number) in attempts else None
            if outcome == "lost":
                self._cluster.counts["side effects of attempts that were lost"] += 1
            elif outcome not in {"retried", "failed"} and last.get(node_id) != number:
                yield f"attempt {number} of {node_id} had its effect, is {outcome}, and {last.get(node_id)} is on record"

    def _was_troubled(self, pid: int, group: int, since: float, until: float) -> bool:
        """Whether a process had died, or been silent for a lease, between two moments."""
        # A heartbeat may have been due when the process was stopped.
        least = LEASE_SECONDS - HEARTBEAT_SECONDS - SLACK_SECONDS
        return any(
            end - begin >= least and begin <= until and end >= since - SLACK_SECONDS
            for begin, end in self._silences(pid, group)
        )

    def _silences(self, pid: int, group: int) -> Iterator[tuple[float, float]]:
        """When a process could not say that it lives; an outage alone is no excuse, as then nobody could."""
        spans = [(begin, end, False) for begin, end in self._cluster.outages]
        spans += [
            (trouble.since, trouble.until, True)
            for trouble in self._cluster.troubles
            if trouble.group == group and trouble.pid in {None, pid}
        ]
        merged: list[list[Any]] = []
        for begin, end, is_stop in sorted(spans):
            if merged and begin - merged[-1][1] <= HEARTBEAT_SECONDS + SLACK_SECONDS:
                merged[-1][1] = max(merged[-1][1], end)
                merged[-1][2] |= is_stop
            else:
                merged.append([begin, end, is_stop])
        return ((begin, end) for begin, end, is_stop in merged if is_stop)

    def _was_database_away(self, at: float) -> bool:
        return any(begin - 1 <= at <= end + 1 for begin, end in self._cluster.outages)


def _wrong_end(flow: Flow, status: str, output: str | None, error: str | None) -> Iterator[str]:
    if flow.ends is not None:
        if status != flow.ends:
            yield f"is {status} ({output or error}) and not {flow.ends}"
    elif flow.error is not None:
        if status != "failed" or flow.error not in (error or ""):
            yield f"is {status} ({output or error}) and not failed with {flow.error!r}"
    elif status != "completed" or json.loads(output or "null") != flow.result:
        yield f"is {status} ({output or error}) and not completed with {flow.result!r}"


def _wrong_attempts(attempts: dict[tuple[str, int], Ended]) -> Iterator[str]:
    recorded = Counter(
        node_id for (node_id, _), ended in attempts.items() if ended.outcome in {"completed", "failed"}
    )
    for node_id, count in recorded.items():
        if count > 1:
            yield f"{node_id} was recorded {count} times"
