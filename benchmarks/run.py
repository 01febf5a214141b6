"""Run the benchmarks: `python benchmarks/run.py --help`.

For each broker and database each workload is done by ours, the peers, ours, the peers, ... and its rows are
printed as soon as they are known.

Not here: what is done (`workloads.py`), by whom (`peers.py`), and what the figures amount to (`report.py`).
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import platform
import signal
import sys
import tempfile
import time
import timeit
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import curves
import peers
import servers
from peers import Choice, Ground
from report import COLUMNS, Row, cells, line
from sides import Side, SideError
from workloads import DBOS, RAW, WORKLOADS, Workload

BROKERS = ("embedded", "redis", "rabbitmq")
DATABASES = ("sqlite", "postgresql")
QUICK = (("embedded", "sqlite"), ("redis", "postgresql"))
"""What a quick run looks at: the default of one bot, and the usual choice for production."""
CURVED = ("embedded", "redis")
BUSY = 0.7
"""Load average from which somebody else is at work here."""
SOURCE = Path(__file__).parent.parent


def main() -> int:
    """Parse the command line, run, write JSON; the exit code is 1 when a workload could not be measured."""
    options = _options()
    # Told to end, it must first end its servers and processes, some of which are stopped.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    print(_heading(options), flush=True)
    print(line(COLUMNS), flush=True)
    began = time.monotonic()
    rows: list[Row] = []
    drawn: list[curves.Curve] = []
    failures = 0
    for broker, database in options.grounds:
        try:
            with _ground(broker, database) as ground:
                failures += _combination(ground, options, rows)
                if broker in CURVED:
                    failures += _growth(ground, options, rows, drawn)
        except servers.MissingServerError as missing:
            print(f"{broker} + {database} is not measured: {missing}.", flush=True)
        _write(options, rows, drawn)
    judged = [row for row in rows if row.bar is not None]
    met = sum(row.verdict == "met" for row in judged)
    print(
        f"{met} of {len(judged)} bars met; {failures} failures; took {time.monotonic() - began:.0f} s."
    )
    if options.json:
        print(f"Everything that was measured is in {options.json}.")
    return 1 if failures else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    names = [each.name for each in WORKLOADS] + [each.name for each in curves.PLANS]
    parser.add_argument(
        "--broker",
        action="append",
        choices=BROKERS,
        help="repeatable; default: all, or with --quick two pairs",
    )
    parser.add_argument(
        "--database", action="append", choices=DATABASES, help="repeatable; default: both"
    )
    parser.add_argument(
        "--only",
        action="append",
        metavar="NAME",
        help=f"workloads whose name begins so: {', '.join(names)}",
    )
    parser.add_argument("--rounds", type=int, default=3, help="turns of each side (default: 3)")
    parser.add_argument(
        "--quick", action="store_true", help="smaller sizes, no extras, DBOS only where a bar names it"
    )
    parser.add_argument("--size", type=int, help="one size for whatever is measured, to try something")
    parser.add_argument("--no-peers", action="store_true", help="ours alone")
    parser.add_argument("--no-dbos", action="store_true", help="raw Celery alone beside ours")
    parser.add_argument(
        "--curves", action="store_true", help="also how cost grows with size, the growth-... (long)"
    )
    parser.add_argument(
        "--source", type=Path, metavar="DIR", help="measure the ckworkflow of another checkout"
    )
    parser.add_argument("--json", type=Path, help="where to write everything that was measured")
    options = parser.parse_args()
    for name in options.only or []:
        if not any(each.startswith(name) for each in names):
            parser.error(f"no workload is named {name!r}; there are {', '.join(names)}")
    options.grounds = QUICK
    if options.broker or options.database or not options.quick:
        options.grounds = tuple(
            itertools.product(options.broker or BROKERS, options.database or DATABASES)
        )
    # Beats an installed one, in every child; our own checkout as well, wherever it was installed from.
    os.environ["PYTHONPATH"] = str((options.source or SOURCE).resolve())
    return options


def _heading(options: argparse.Namespace) -> str:
    where = (
        f"Python {platform.python_version()}, {os.cpu_count()} cores, files in {tempfile.gettempdir()}"
    )
    texts = [
        f"{where}, {options.rounds} rounds; ratios are ours / peer (lowest-highest of one round).",
        f"A million additions in a loop take {_loop_ms():.0f} ms here.",
    ]
    if not peers.is_dbos_here() and not options.no_peers and not options.no_dbos:
        texts.append(
            "DBOS is not compared: it is not installed (pip install -r benchmarks/requirements.txt)."
        )
    load = os.getloadavg()[0]
    if load > BUSY:
        texts.append(f"The machine is busy (load {load:.1f}): trust the ratios, not the figures.")
    return "\n".join(texts)


def _loop_ms() -> float:
    """How fast the machine is at what most of a step is: the interpreter."""
    return 1e3 * min(timeit.repeat("n += 1", "n = 0", number=1_000_000, repeat=5))


@contextlib.contextmanager
def _ground(broker: str, database: str) -> Iterator[Ground]:
    with contextlib.ExitStack() as stack:
        ground = Ground(broker, database)
        if broker == "redis":
            ground.redis = stack.enter_context(servers.redis_server())
        if broker == "rabbitmq":
            ground.rabbitmq = stack.enter_context(servers.rabbitmq_server())
            with contextlib.suppress(servers.MissingServerError):
                ground.redis = stack.enter_context(servers.redis_server())  # the peer's result backend
        if database == "postgresql":
            ground.postgres = stack.enter_context(servers.postgres_server())
        yield ground


class Bench:
    """The sides on one ground. Those that leave nothing behind are started once and used again.

    A peer is stopped while it waits for its turn, so all of its variants may stay.
    """

    def __init__(self, ground: Ground, options: argparse.Namespace) -> None:
        self.ground, self.options = ground, options
        self._running: dict[tuple[str, str], Side] = {}

    def side(self, choice: Choice) -> Side:
        """Return the side of a choice, warm and at rest."""
        key = (choice.name, choice.setting)
        if key not in self._running:
            self._running[key] = self._started(choice)
        return self._running[key]

    def _started(self, choice: Choice) -> Side:
        """Start a side. A client of raw Celery may miss its very first result: then once more, and told."""
        try:
            return Side(choice.make()).__enter__()
        except SideError as error:
            if choice.name == "ours":
                raise
            print(f"{choice.name}, {choice.setting} did not start: once more\n{error}", file=sys.stderr)
            return Side(choice.make()).__enter__()

    def close(self) -> None:
        """End all of them; the next workload starts new ones."""
        for side in self._running.values():
            side.close()
        self._running.clear()

    def run(self, workload: Workload) -> Iterator[Row]:
        """Do a workload with all sides in turn.

        Raises:
            SideError: One of them failed.
        """
        size = self.options.size or (workload.quick if self.options.quick else workload.full)
        wanted: Mapping[str, Sequence[Choice]] = {}
        if not self.options.no_peers:
            is_judged = any(DBOS in metric.bars for metric in workload.metrics)
            has_dbos = peers.is_dbos_here() and not self.options.no_dbos
            has_dbos = has_dbos and (is_judged or not self.options.quick)
            wanted = peers.rivals(self.ground, workload, has_dbos=has_dbos)
        chosen = {"ours": peers.ours(self.ground, workload.settings)}
        for name, choices in wanted.items():
            chosen[name] = choices[0] if workload.is_fresh else self._fastest(workload, choices, size)
        if not workload.is_fresh:
            self._measure(workload, chosen["ours"], max(size // 10, 1))  # warms it up
        figures: dict[str, list[Sequence[float]]] = {name: [] for name in chosen}
        for _ in range(self.options.rounds):
            for name, choice in chosen.items():
                figures[name].append(self._measure(workload, choice, size))
        if workload.settings:
            self._running.pop(
                (chosen["ours"].name, chosen["ours"].setting)
            ).close()  # of no use to others
        return rows_of(workload, self.ground, figures, {n: c.setting for n, c in chosen.items()})

    def _measure(self, workload: Workload, choice: Choice, size: int) -> Sequence[float]:
        if workload.is_fresh:
            with Side(choice.make()) as fresh:
                return workload.measure(fresh, size)
        with self.side(choice).turn() as side:
            return workload.measure(side, size)

    def _fastest(self, workload: Workload, choices: Sequence[Choice], size: int) -> Choice:
        """Try the variants of a peer, which warms them up, and return the fastest."""
        tried: list[tuple[float, Choice]] = []
        for choice in choices:
            figure = self._measure(workload, choice, max(size // 10, 1))[0]
            if len(choices) > 1:
                figure = self._measure(workload, choice, max(size // 3, 1))[0]
            tried.append((figure, choice))
        return (max if workload.is_rate else min)(tried, key=lambda pair: pair[0])[1]


def _combination(ground: Ground, options: argparse.Namespace, rows: list[Row]) -> int:
    """Do the wanted workloads on one broker and database; return how many failed."""
    failures = 0
    bench = Bench(ground, options)
    with contextlib.closing(bench):
        for workload in _wanted(options):
            try:
                for row in bench.run(workload):
                    rows.append(row)
                    print(line(cells(row)), flush=True)
            except SideError as error:
                failures += 1
                bench.close()
                _tell(workload.name, ground, error)
    return failures


def _wanted(options: argparse.Namespace) -> list[Workload]:
    if options.only:
        return [each for each in WORKLOADS if each.name.startswith(tuple(options.only))]
    return [each for each in WORKLOADS if not (options.quick and each.is_extra)]


def rows_of(
    workload: Workload, ground: Ground, figures: Mapping[str, Sequence[Sequence[float]]],
    settings: Mapping[str, str],
) -> Iterator[Row]:  # fmt: skip
    """Return a row for each figure and peer; without a peer, the bars that need none are judged."""
    names = [name for name in figures if name != "ours"] or [""]
    for index, metric in enumerate(workload.metrics):
        mine = [each[index] for each in figures["ours"]]
        for name in names:
            bar = metric.bars.get(name.split()[0] if name else RAW)
            if not name and bar is not None and bar.is_ratio:
                bar = None
            yield Row(
                workload.name, metric.name, metric.unit, ground.broker, ground.database, name,
                settings.get(name, ""), mine, [each[index] for each in figures.get(name, [])], bar,
            )  # fmt: skip


def _tell(name: str, ground: Ground, error: SideError) -> None:
    """Say in one line that something failed, and where the whole story is."""
    with tempfile.NamedTemporaryFile(
        "w", prefix="ckworkflow-bench-failed-", suffix=".log", delete=False
    ) as log:
        log.write(str(error))
    first = str(error).splitlines()[0]
    print(f"{name} on {ground.broker} + {ground.database} FAILED: {first} (see {log.name})", flush=True)


# --- growth -------------------------------------------------------------------------------------------------


def _growth(
    ground: Ground, options: argparse.Namespace, rows: list[Row], drawn: list[curves.Curve]
) -> int:
    failures = 0
    for plan in curves.PLANS:
        is_named = any(plan.name.startswith(name) for name in options.only or [])
        if not (is_named or (options.curves and not options.only)):
            continue
        try:
            curve = curves.draw(ground, plan, is_quick=options.quick, has_peers=not options.no_peers)
        except SideError as error:
            failures += 1
            _tell(plan.name, ground, error)
            continue
        drawn.append(curve)
        for row in curves.rows(plan, curve):
            rows.append(row)
            print(line(cells(row)), flush=True)
    return failures


def _write(options: argparse.Namespace, rows: Sequence[Row], drawn: Sequence[curves.Curve]) -> None:
    if not options.json:
        return
    machine = {
        "python": platform.python_version(),
        "system": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
    }
    data: dict[str, Any] = {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine,
        "rounds": options.rounds,
        "sizes": str(options.size or ("quick" if options.quick else "full")),
        "rows": [row.to_json() for row in rows],
        "curves": [curve.to_json() for curve in drawn],
    }
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(data, indent=1, allow_nan=False) + "\n")


def _processor() -> str:
    with contextlib.suppress(OSError):
        for text in Path("/proc/cpuinfo").read_text().splitlines():
            if text.startswith("model name"):
                return text.partition(":")[2].strip()
    return platform.processor() or "unknown"


if __name__ == "__main__":
    sys.exit(main())
