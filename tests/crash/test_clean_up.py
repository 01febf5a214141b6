"""Clean-up never overtakes: a refund comes after the last effect of the charge that it is for, whatever is killed.

Ten tries at a time: each has a charge that is told to stop, by a deadline or by a request, and takes its time. In each batch the
worker of one try is killed with `kill -9` at one of the moments of `MOMENTS`, and with it the charges of all tries that it has. The
order of effects is that of their lines in one file for each run.
"""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import totals
from effects import Effect, effects_of
from histories import BEGUN, OVER, Histories, History
from worker_home import WorkerHome

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

IS_SOAK = os.environ.get("CKWORKFLOW_SOAK", "") not in {"", "0"}
SEED = int(os.environ["CKWORKFLOW_SEED"])
TRIES = 200 if IS_SOAK else 50
BATCH = 10
MOMENTS = ["busy", "stops…", "charges…", "busy", "charged", "stops…", "busy", "refunds"]
"""What the try whose worker is killed has just done; "busy": each charge is to stop, and none can."""
CHARGES = ("charges…", "stops…", "charged")
REFUNDS = ("refunds", "refunded")
STEPS = ("charge", "charge_plainly")
OPTIONS = ("--pool=threads", "--concurrency=12")


class Tries:
    """All tries of a test.

    Attributes:
        ids: The runs.
        killed: The workers that were killed.
        hit: In how many tries the worker of the charge was killed, by what that had done by then.
    """

    def __init__(self, home: WorkerHome, how: str, chance: random.Random) -> None:
        self.home, self._how, self._chance = home, how, chance
        self.ids: list[str] = []
        self.killed: set[int] = set()
        self.hit = Counter[str]()
        self.wrong: list[str] = []
        self.program = home.start_program()
        self._workers = {worker.pid: worker for worker in (self._start_worker() for _ in range(2))}

    def _start_worker(self) -> Any:
        return self.home.start_worker(*OPTIONS)

    def run(self) -> None:
        for number in range(TRIES // BATCH):
            self._batch(f"{number}.busy", MOMENTS[number % len(MOMENTS)])

    def _effects(self, run_id: str) -> list[Effect]:
        return effects_of(self.home.folder, run_id)

    def _has(self, run_id: str, label: str, count: int = 1) -> bool:
        return sum(each.label == label for each in self._effects(run_id)) >= count

    def _batch(self, busy: str, moment: str) -> None:
        file = self.home.folder / busy
        if moment == "busy":
            file.touch()
        batch = [
            self.program.start(
                f"clean_up_flows:{self._how}_{'finally' if number % 2 else 'except'}", busy
            )
            for number in range(BATCH)
        ]
        self.ids += batch
        victims = self._chance.sample(batch, BATCH)
        if moment == "charges…":
            self._kill(self._first(victims, moment, self._chance.randint(1, 10)), batch)
        if self._how == "request":
            for run_id in batch:
                self._first([run_id], "charges…")
                self.program.ask("cancel", run_id, {"reason": "enough"})
        if moment == "busy":
            self._kill(self._first(victims, "stops…", self._chance.randint(1, 20)), batch)
            file.unlink()
        elif moment != "charges…":
            count = self._chance.randint(1, 4) if moment == "stops…" else 1
            self._kill(self._first(victims, moment, count), batch)

    def _first(self, run_ids: list[str], label: str, count: int = 1) -> str:
        """Wait for so many effects of one of these runs: some have no charge, where a worker is too busy until the deadline."""
        found: str = self.home.wait_for(
            lambda: next((run_id for run_id in run_ids if self._has(run_id, label, count)), None),
            f"{label} of {run_ids}",
        )
        return found

    def _kill(self, victim: str, batch: list[str]) -> None:
        """Kill the worker of a try; note what it did in all of them by then."""
        worker = self._workers.pop(self._effects(victim)[-1].group, None)
        if worker is None:  # it was killed in the batch before
            return
        self.home.kill(worker)
        self.killed.add(worker.pid)
        for run_id in batch:
            lines = self._effects(run_id)
            charges = [each for each in lines if each.label in CHARGES]
            if charges and charges[-1].group == worker.pid and len(lines) and lines[-1] is charges[-1]:
                self.hit[charges[-1].label] += 1
        another = self._start_worker()
        self._workers[another.pid] = another


def faults(history: History, how: str) -> Iterator[str]:
    """What is wrong with a try."""
    charges, refunds = history.labels(*CHARGES), history.labels(*REFUNDS)
    if not refunds:
        yield "nothing was refunded"
    elif charges and charges[-1] > refunds[0]:
        yield f"a charge had its effect {charges[-1]} after the first of the refund, {refunds[0]}"
    step = next((name for name in STEPS if name in history.nodes), None)
    if step is not None:
        begun, over = (history.number(what, step, last=True) for what in (BEGUN, OVER))
        refunded = history.number(BEGUN, "refund")
        if over is None or refunded is None or not begun < over < refunded:
            yield f"{step} has begun at {begun} and ended at {over}, and refund has begun at {refunded}"
        node = history.nodes[step]  # abandoned: it was lost with its worker before it was told
        if node.is_cancelled == (node.status == "abandoned"):
            yield f"{step} was not told to stop"
    elif charges:
        yield "charges had effects, and none has begun"
    if "refund" not in history.nodes or history.nodes["refund"].status != "completed":
        yield "refund was not completed"
    if history.status != ("completed" if how == "deadline" else "cancelled"):
        yield f"the run is {history.status}"
    if how == "deadline" and history.output != '"refunded"':
        yield f"the run has returned {history.output}"


@pytest.mark.parametrize("place", ["embedded", "servers"])
@pytest.mark.parametrize("how", ["deadline", "request"])
def test_a_refund_never_comes_before_the_last_effect_of_its_charge(
    make_noted_home: Callable[[str, str], tuple[WorkerHome, Histories]],
    record_property: Callable[[str, object], None], place: str, how: str,
) -> None:  # fmt: skip
    home, histories = make_noted_home(place, "clean_up_flows")
    tries = Tries(home, how, random.Random(f"{SEED} {place} {how}"))
    tries.run()
    home.wait_for(histories.are_over, "the end of all runs")

    found, wrong = histories.read(), []
    assert found.keys() == set(tries.ids)
    for run_id, history in found.items():
        faulty = [*history.faults(tries.killed), *faults(history, how)]
        end = tries.program.ask("replay", run_id)
        if (end["status"], end["says"]) != (history.status, history.output or end["says"]):
            faulty.append(f"a replay ends as {end}")
        if faulty:
            wrong.append("\n".join([*faulty, str(history)]))
    hit = tries.hit
    totals.record(
        record_property, "clean-up after what it cleans up", f"{place}, {how}", tries=TRIES, workers_killed=len(tries.killed),
        killed_while_it_charged=hit["charges…"], while_it_stopped=hit["stops…"], between_it_and_its_refund=hit["charged"],
        wrong=len(wrong),
    )  # fmt: skip
    assert not wrong, f"seed {SEED}\n" + "\n\n".join(wrong)
    assert hit["stops…"] >= TRIES / 20, hit
    assert hit["charges…"] >= TRIES / 50, hit
