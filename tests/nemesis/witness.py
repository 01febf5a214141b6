"""The witness: looks at the database while everything breaks, and judges what is left.

While it goes on: what is recorded never changes and never goes away, and no live run is without `wake_at`. At the
end: every run that was started is there and ended right, each recorded step has one result on record, and an
attempt was lost, or an effect had twice, only where its worker had died or had been stopped beyond its lease.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import Any

from crash_everywhere.site import FINAL
from effect_flows import FLOWS, Flow
from effects import Effect, effects_of
from nemesis.cluster import Cluster
from nemesis.tuning import HEARTBEAT_SECONDS, LEASE_SECONDS

SLACK_SECONDS = 0.05


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
        """The runs that have not ended, as lines."""
        rows = self._cluster.reader.all(
            "SELECT id, workflow, status, wake_at, dispatches FROM runs WHERE status NOT IN (?, ?, ?)",
            *FINAL,
        )
        return [" ".join(map(str, row)) for row in rows]

    # --- the end -------------------------------------------------------------------------------------

    def judge(self) -> None:
        """Look at every run, once all have ended."""
        reader = self._cluster.reader
        runs = reader.all("SELECT id, workflow, status, output, error FROM runs")
        outcomes: dict[str, dict[tuple[str, int], tuple[str, str, float]]] = defaultdict(dict)
        for run_id, node_id, attempt, outcome, owner, at in reader.all(
            "SELECT run_id, node_id, attempt, outcome, owner, extract(epoch FROM finished_at) FROM attempts"
        ):
            outcomes[run_id][node_id, attempt] = (outcome, owner, float(at))
        missing = self._cluster.started - {row[0] for row in runs}
        self.wrong += [f"{run_id} was started and is not there" for run_id in missing]
        for run_id, workflow, *end in runs:
            flow = FLOWS[workflow.rpartition(".")[2]]
            effects = effects_of(self._cluster.effects_folder, run_id)
            for fault in (
                *_wrong_end(flow, *end),
                *_wrong_attempts(outcomes[run_id]),
                *self._unexplained_losses(outcomes[run_id]),
                *self._wrong_effects(flow, effects, outcomes[run_id]),
            ):
                self.wrong.append(f"{workflow} {run_id}: {fault}")

    def _unexplained_losses(
        self, outcomes: dict[tuple[str, int], tuple[str, str, float]]
    ) -> Iterator[str]:
        for (node_id, attempt), (outcome, owner, at) in outcomes.items():
            if outcome == "lost":
                self._cluster.counts["attempts lost with their worker"] += 1
                pid = int(owner.split(":")[-2])
                if not self._was_troubled(pid, self._cluster.group_of(pid), 0, at):
                    yield f"attempt {attempt} of {node_id} was lost, and nothing was done to its worker {owner}"

    def _wrong_effects(
        self, flow: Flow, effects: list[Effect], outcomes: dict[tuple[str, int], tuple[str, str, float]]
    ) -> Iterator[str]:
        labels = Counter(effect.label for effect in effects)
        for label, count in flow.effects.items():
            if labels[label] < count and label not in flow.optional:
                yield f"{label!r} ran {labels[label]} times and not {count}"
        for label in labels.keys() - flow.effects.keys():
            yield f"{label!r} ran, and must not"
        by_key: dict[str, list[Effect]] = defaultdict(list)
        for effect in effects:
            by_key[effect.key].append(effect)
        for found in by_key.values():
            # Those that had to fail and are on record as such are no repetition.
            again = [e for e in found if outcomes.get((e.node_id, e.attempt), ("",))[0] != "retried"]
            for earlier in again[:-1]:
                self._cluster.counts["side effects repeated after a death"] += 1
                later = found[found.index(earlier) + 1]
                if not self._was_troubled(earlier.pid, earlier.group, earlier.at, later.at):
                    yield (
                        f"{earlier.label!r} ran again ({earlier} and {later}), and nothing was done to its worker:\n"
                        f"{self._cluster.events_between(earlier.at, later.at)}"
                    )

    def _was_troubled(self, pid: int, group: int, since: float, until: float) -> bool:
        """Whether a process had died, or been stopped for a lease, between two moments."""
        return any(
            trouble.group == group
            and trouble.pid in {None, pid}
            # A beat may have been due when the process was stopped.
            and trouble.until - trouble.since >= LEASE_SECONDS - HEARTBEAT_SECONDS - SLACK_SECONDS
            and trouble.since <= until
            and trouble.until >= since
            for trouble in self._cluster.troubles
        )


def _wrong_end(flow: Flow, status: str, output: str | None, error: str | None) -> Iterator[str]:
    if flow.error is not None:
        if status != "failed" or flow.error not in (error or ""):
            yield f"is {status} ({output or error}) and not failed with {flow.error!r}"
    elif status != "completed" or json.loads(output or "null") != flow.result:
        yield f"is {status} ({output or error}) and not completed with {flow.result!r}"


def _wrong_attempts(outcomes: dict[tuple[str, int], tuple[str, str, float]]) -> Iterator[str]:
    recorded = Counter(
        node_id
        for (node_id, _), (outcome, _, _) in outcomes.items()
        if outcome in {"completed", "failed"}
    )
    for node_id, count in recorded.items():
        if count > 1:
            yield f"{node_id} was recorded {count} times"
