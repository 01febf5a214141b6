"""Experiments: one run, killed at a given point (and, when it is brought back, again), and taken to its end."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from crash_everywhere.oracle import faults
from crash_everywhere.site import (
    CLIENT,
    FINAL,
    WORKER,
    Child,
    Combination,
    Seen,
    Site,
    StuckError,
    wait_for,
)
from effect_flows import Flow

SLOW_SECONDS = 5.0
"""A run that needs longer than this after the restart was found by luck and not by design."""


@dataclass(slots=True)
class Tally:
    """What experiments came to.

    Attributes:
        experiments: How many there were.
        points: How many points were reached and killed at.
        killed_at: What was about to happen, or had just happened, at each.
        repeated: Kills after which a step ran again, as it must: they came between effect and record.
        slowest: The longest that a run took from the restart to its end, and after which kill.
    """

    experiments: int = 0
    points: int = 0
    killed_at: list[str] = field(default_factory=list)
    repeated: int = 0
    slowest: tuple[float, str] = (0.0, "")
    wrong: list[str] = field(default_factory=list)

    def add(self, other: Tally) -> None:
        self.experiments += other.experiments
        self.points += other.points
        self.killed_at += other.killed_at
        self.repeated += other.repeated
        self.slowest = max(self.slowest, other.slowest)
        self.wrong += other.wrong


class Bench:
    """A site with its processes up, and the experiments on it.

    The process that brought a run to its end is the one that the next experiment kills: it is idle then, and a
    restart is saved.
    """

    def __init__(self, site: Site) -> None:
        self.site = site
        self.worker = self._up(site.start_worker())
        self.client = self.worker if site.is_embedded else self._up(site.start_client())

    def _up(self, child: Child) -> Child:
        self.site.wait_until_ready(child)
        return child

    def close(self) -> None:
        self.site.close()

    def kill_at(self, flow: Flow, deadly: Sequence[int], *, role: int = WORKER) -> Tally:
        """Run a workflow and kill at points of it.

        Args:
            flow: The workflow.
            deadly: The number of the deadly point for the first process, and then for each that follows it,
                which counts from its own start.
            role: Who is killed: the worker, or the program that starts the run.

        Returns:
            What it came to; its `points` are those that were reached.
        """
        site, tally = self.site, Tally(experiments=1)
        victim = self.client if role == CLIENT else self.worker
        site.wait_until_settled(self.worker)
        site.control.arm(deadly[0], role=role)
        run_id = site.start(self.client, flow)
        crashes: list[Seen] = []
        began = time.monotonic()
        for following in (*deadly[1:], None):
            if not self._follow(run_id, victim):
                break
            tally.points += 1
            trace = site.control.trace()
            if len(trace) < deadly[tally.points - 1]:
                raise StuckError(f"the process died by itself\n{site.logs()}")
            tally.killed_at.append(trace[-1])
            site.control.disarm()
            site.clear_away(victim)
            if run_id is not None:
                crashes.append(site.see(run_id))
                site.reader.close()
            if following is not None:
                site.control.arm(following, role=role)
            began = time.monotonic()
            victim = self._restart(role)
        site.control.disarm()
        if run_id is not None:
            self._follow(run_id, victim)
            if crashes:
                self._judge(tally, flow, run_id, crashes, time.monotonic() - began)
        site.forget_dead()
        return tally

    def _follow(self, run_id: str | None, victim: Child) -> bool:
        """Wait until a run has ended and nothing of it is left, or its victim is dead; whether it is."""
        if run_id is not None:
            wait_for(
                lambda: victim.is_dead or self.site.status(run_id) in FINAL,
                lambda: f"the end of {run_id}:\n{self.site.see(run_id)}\n{self.site.logs()}",
            )
        self.site.wait_until_quiet(victim)
        return victim.is_dead

    def _restart(self, role: int) -> Child:
        if role == CLIENT:
            self.client = self._up(self.site.start_client())
            return self.client
        self.worker = self.site.start_worker()
        self.site.wait_until_ready(self.worker)
        if self.site.is_embedded:
            self.client = self.worker
        return self.worker

    def _judge(self, tally: Tally, flow: Flow, run_id: str, crashes: list[Seen], seconds: float) -> None:
        where = f"{flow.name} on {self.site.combination}, killed {', then '.join(tally.killed_at)}"
        end = self.site.see(run_id)
        found = list(faults(flow, crashes, end))
        tally.slowest = (seconds, where)
        if crashes and seconds > SLOW_SECONDS:
            found.append(f"it took {seconds:.1f} s from the restart to the end of the run")
        labels = [line.label for line in end.effects]
        tally.repeated = int(any(labels.count(label) > count for label, count in flow.effects.items()))
        if found:
            then = "\n".join(f"after the kill: {crash}" for crash in crashes)
            tally.wrong.append(
                "\n".join([where, *(f"- {text}" for text in found), then, f"at the end: {end}"])
            )

    def count(self, flow: Flow) -> int:
        """Run a workflow undisturbed; how many points it has."""
        self.site.wait_until_settled(self.worker)
        self.site.count_only()
        run_id = self.site.start(self.client, flow)
        assert run_id is not None
        self._follow(run_id, self.worker)
        found = len(self.site.control.trace())
        self.site.control.disarm()
        end = self.site.see(run_id)
        assert not list(faults(flow, [], end)), end
        return found


class Benches:
    """The benches of a test process, each made when first asked for and replaced when a run got stuck on it.

    Args:
        make: Makes a site.
    """

    def __init__(self, make: Callable[[Combination], Site]) -> None:
        self._make = make
        self._benches: dict[Combination, Bench] = {}

    def at(self, combination: Combination) -> Bench:
        if combination not in self._benches:
            self._benches[combination] = Bench(self._make(combination))
        return self._benches[combination]

    def discard(self, combination: Combination) -> None:
        self._benches.pop(combination).close()

    def close(self) -> None:
        for bench in self._benches.values():
            bench.close()
        self._benches.clear()

    def kill_at(
        self, combination: Combination, flow: Flow, deadly: Sequence[int], *, role: int = WORKER
    ) -> Tally:
        """As `Bench.kill_at`; a run that gets stuck is a wrong one, and what comes next has a site of its own."""
        try:
            return self.at(combination).kill_at(flow, deadly, role=role)
        except StuckError as error:
            trace = "\n".join(self.at(combination).site.control.trace())
            self.discard(combination)
            where = f"{flow.name} on {combination}, killed at {list(deadly)}"
            wrong = [f"{where}\n- {error}\npoints:\n{trace}"]
            return Tally(1, len(deadly), ["?"] * len(deadly), wrong=wrong)
        except BaseException:
            self.discard(combination)  # or the next test would find it in the middle of this one
            raise

    def count(self, combination: Combination, flow: Flow) -> int:
        """As `Bench.count`."""
        try:
            return self.at(combination).count(flow)
        except BaseException:
            self.discard(combination)
            raise

    def kill_everywhere(
        self,
        combination: Combination,
        flow: Flow,
        *,
        role: int = WORKER,
        also: Callable[[], int] | None = None,
    ) -> Tally:
        """Kill at every point, one after the other, until the workflow ends before the next one is reached.

        Args:
            combination: Where.
            flow: The workflow.
            role: As in `Bench.kill_at`.
            also: Draws where the next process is killed, which brings the run back; reached or not.
        """
        total = Tally()
        for number in itertools.count(1):
            deadly = [number] if also is None else [number, also()]
            found = self.kill_at(combination, flow, deadly, role=role)
            total.add(found)
            if not found.points:
                break
        return total
