"""A race between a request to cancel and a step that ends is decided once, whatever is killed.

In each round a step stands at a gate. The gate is opened and the request sent at about the same moment: the time between
the two follows what the last rounds came to, so that each side is as often too late as the other. The step is the last of its
run (which then is completed or cancelled), or the one before (then the last one begins or never does). Meanwhile workers, and the
program that asks, are killed with `kill -9`.

What is judged is the order of commits (`histories.py`), the effects of steps, the answers of `cancel`, and a replay.
"""

from __future__ import annotations

import os
import random
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import totals
from effects import effects_of
from histories import ASKED, BEGUN, OVER, Histories, History
from worker_home import WorkerHome

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

IS_SOAK = os.environ.get("CKWORKFLOW_SOAK", "") not in {"", "0"}
SEED = int(os.environ["CKWORKFLOW_SEED"])
KINDS = {"waits": "waited_for", "tells": "told", "leaves": "left_alone"}
"""Workflows, by what their last step does when its await is cancelled, with that step."""
ROUNDS = (999 if IS_SOAK else 249) // len(KINDS) + 1
ROUNDS_OF_A_KILL = 10
VICTIMS = ["worker", "sender", "worker", "worker and sender"]
AHEAD = 4
"""So many runs are under way at the same time, and meet a kill."""
FAIR = 0.1
"""Of the rounds that could have ended so, so many did, at least."""
OPTIONS = ("--pool=threads", "--concurrency=8")


class Aim:
    """How long after the gate is opened the request is sent, in seconds; it learns to hit the same moment."""

    STEP, SPREAD = 0.0004, 0.002

    def __init__(self, chance: random.Random) -> None:
        self._chance, self._middle = chance, 0.0

    def draw(self) -> float:
        return self._middle + self._chance.uniform(-self.SPREAD, self.SPREAD)

    def learn(self, *, was_late: bool) -> None:
        self._middle += -self.STEP if was_late else self.STEP


class Race:
    """The rounds of one workflow.

    Attributes:
        answers: What `cancel` said of each run: `True`, `False`, or `None` where its caller was killed and the run had ended when
            the next one asked.
        killed: The workers that were killed.
    """

    def __init__(self, home: WorkerHome, kind: str, chance: random.Random) -> None:
        self.home, self._kind, self._chance = home, kind, chance
        self.answers: dict[str, bool | None] = {}
        self.killed: set[int] = set()
        self.senders_killed = 0
        self._aims = {"last": Aim(chance), "before": Aim(chance)}
        self._program = home.start_program()
        self._workers = {worker.pid: worker for worker in (self._start_worker() for _ in range(2))}
        self._started = 0

    def _start_worker(self) -> Any:
        return self.home.start_worker(*OPTIONS)

    def run(self) -> None:
        """All rounds, and the end of their runs."""
        ahead: deque[tuple[str, str, Path]] = deque()
        for number in range(ROUNDS):
            while len(ahead) < min(AHEAD, ROUNDS - number):
                ahead.append(self._start())
            victim = None
            if number % ROUNDS_OF_A_KILL == ROUNDS_OF_A_KILL - 1:
                victim = VICTIMS[number // ROUNDS_OF_A_KILL % len(VICTIMS)]
            self._round(*ahead.popleft(), victim)

    def _start(self) -> tuple[str, str, Path]:
        number, self._started = self._started, self._started + 1
        aimed_at = "before" if number % 3 == 2 else "last"
        gate = f"{number}.open"
        gates = (gate, "") if aimed_at == "before" else ("", gate)
        workflow = self._kind + ("_and_cleans_up" if number % 2 else "")
        run_id = self._program.start(f"cancel_race_flows:{workflow}", *gates)
        return run_id, aimed_at, self.home.folder / gate

    def effects(self, run_id: str, label: str) -> list[Any]:
        return [each for each in effects_of(self.home.folder, run_id) if each.label == label]

    def _round(self, run_id: str, aimed_at: str, gate: Path, victim: str | None) -> None:
        self.home.wait_for(lambda: self.effects(run_id, aimed_at), f"{aimed_at} of {run_id}")
        aim = self._aims[aimed_at]
        delay = aim.draw()

        def ask() -> None:
            self._program.begin("cancel", run_id, {"reason": "enough"})

        actions = [gate.touch, ask] if delay > 0 else [ask, gate.touch]
        if victim is not None and "worker" in victim:
            group = self.effects(run_id, aimed_at)[-1].group
            actions.insert(self._chance.randint(0, 2), lambda: self._kill_worker(group))
        for place, action in enumerate(actions):
            if place:
                spin(abs(delay))
            action()
        if victim is not None and "sender" in victim:
            spin(self._chance.uniform(0, 0.004))
            self._kill_sender()
            answer = self._program.cancel(run_id, reason="enough") or None
        else:
            answer = self._program.answer()
        self.answers[run_id] = answer
        if victim is None:
            is_late = answer is False if aimed_at == "last" else bool(self.effects(run_id, "last"))
            aim.learn(was_late=is_late)

    def _kill_worker(self, group: int) -> None:
        worker = self._workers.pop(group, None)
        if worker is not None:
            self.home.kill(worker)
            self.killed.add(group)
            worker = self._start_worker()
            self._workers[worker.pid] = worker

    def _kill_sender(self) -> None:
        self.home.kill(self._program.process)
        self.senders_killed += 1
        self._program = self.home.start_program()

    def replays(self, run_id: str) -> tuple[str, str]:
        end = self._program.ask("replay", run_id)
        return end["status"], end["says"]


def spin(seconds: float) -> None:
    """Let a moment pass that is shorter than what a sleep can hit."""
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        pass


def faults(history: History, answer: bool | None, last: str) -> Iterator[str]:
    """What is wrong with the run of one round.

    Args:
        history: What is left of it.
        answer: What `cancel` said.
        last: The name of its last step.
    """
    asked, step = history.number(ASKED), history.nodes.get(last)
    is_completed = step is not None and step.status == "completed"
    if history.status not in {"completed", "cancelled"}:
        yield f"it is {history.status}"
    if answer is True and asked is None:
        yield "cancel said True, and nobody has asked"
    if answer is False and (asked is not None or history.status != "completed"):
        yield "cancel said False of a run that had not ended"
    if history.status == "cancelled" and asked is None:
        yield "it is cancelled, and nobody has asked"
    for mark in history.marks:
        name = history.ids.get(mark.node_id or "")
        if asked is not None and mark.what == BEGUN and mark.number > asked and name != "give_back":
            yield f"{name} has begun after the request"
    was_told_first = (
        step is not None and step.delivered is not None and history.cancel_delivered is not None
        and step.delivered < history.cancel_delivered
    )  # fmt: skip
    if history.status == "completed":
        if not is_completed or history.output != step.output:
            yield f"it is completed, and its last step is {step}"
        if history.labels("given back"):
            yield "it is completed, and has cleaned up"
        if asked is not None and not (was_told_first and step.finished_at <= history.requested_at):
            yield "it is completed, and the request came first"
    else:
        if was_told_first and is_completed:
            yield "it is cancelled, and its body was told of its last step first"
        begun, over = (history.number(what, last, last=True) for what in (BEGUN, OVER))
        if last == "waited_for" and begun is not None:
            if over is None or not begun < over < history.number(history.status):
                yield "it has ended before its last step, for which its await waits"


def is_cleaned_up(history: History, number: int) -> bool:
    """Whether a run has what its workflow says of cleaning up; every second one does that."""
    wanted = bool(number % 2) and history.status == "cancelled"
    return wanted == ("give_back" in history.nodes and history.nodes["give_back"].status == "completed")


def outcome(history: History, last: str) -> str:
    """Where in the life of its last step the request came."""
    asked = history.number(ASKED)
    if asked is None:
        return "ended before"
    begun, ended = history.number(BEGUN, last), history.number("completed", last)
    if begun is None:
        return "asked before it began"
    if history.status == "completed":
        return "asked, and told of the end first"
    if ended is not None and ended < asked:
        return "asked after its record"
    return "asked while it ran"


@pytest.mark.parametrize("place", ["embedded", "servers"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_request_against_the_last_step_is_decided_once(
    make_noted_home: Callable[[str, str], tuple[WorkerHome, Histories]],
    record_property: Callable[[str, object], None], place: str, kind: str,
) -> None:  # fmt: skip
    home, histories = make_noted_home(place, "cancel_race_flows")
    race = Race(home, kind, random.Random(f"{SEED} {place} {kind}"))
    race.run()
    home.wait_for(histories.are_over, "the end of all runs")

    last, found, wrong = KINDS[kind], histories.read(), []
    assert found.keys() == race.answers.keys()
    for number, (run_id, answer) in enumerate(race.answers.items()):
        history = found[run_id]
        faulty = [*history.faults(race.killed), *faults(history, answer, last)]
        if not is_cleaned_up(history, number):
            faulty.append("it has cleaned up, and should not have, or the other way round")
        status, says = race.replays(run_id)
        if status != history.status or (status == "completed" and says != history.output):
            faulty.append(f"a replay ends as {status}: {says}")
        if faulty:
            wrong.append("\n".join([*faulty, str(history)]))
    count = Counter(outcome(history, last) for history in found.values())
    completed = sum(history.status == "completed" for history in found.values())
    totals.record(
        record_property, "requests against last steps", f"{place}, {kind}", rounds=ROUNDS, completed=completed,
        cancelled=ROUNDS - completed, workers_killed=len(race.killed), programs_killed=race.senders_killed, wrong=len(wrong),
        **{name.replace(",", "").replace(" ", "_"): number for name, number in count.items()},
    )  # fmt: skip
    assert not wrong, f"seed {SEED}\n" + "\n\n".join(wrong)
    least = FAIR * ROUNDS
    assert completed >= least, count
    assert ROUNDS - completed >= least, count
    assert count["asked before it began"] >= least / 3, count
    assert count["asked while it ran"] + count["asked after its record"] >= least / 3, count
