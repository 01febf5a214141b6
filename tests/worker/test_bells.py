"""Bells: how one process wakes the consumers of another that share a broker file."""

from __future__ import annotations

import os
import select
import socket
import subprocess
import sys
import tempfile
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ckworkflow.worker.broker import bells

if TYPE_CHECKING:
    from collections.abc import Iterator

FILE = (7, 42)
PATIENCE_SECONDS = 10.0
RING = f"from ckworkflow.worker.broker import bells; bells.ring({FILE})"


@pytest.fixture(autouse=True)
def place(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A short folder in place of the machine's, for this process and those that it starts."""
    with tempfile.TemporaryDirectory(prefix="ckw") as folder:
        path = Path(folder)
        monkeypatch.setenv("TMPDIR", folder)
        monkeypatch.setattr(tempfile, "tempdir", folder)
        monkeypatch.setattr(bells, "_folders", {})
        yield path


def hung() -> bells.Bell:
    bell = bells.hang(FILE)
    assert bell is not None
    return bell


def is_rung(bell: bells.Bell, seconds: float = 0.0) -> bool:
    return bool(select.select([bell], [], [], seconds)[0])


def ring_elsewhere() -> None:
    subprocess.run([sys.executable, "-c", RING], check=True, env=os.environ | {"PYTHONPATH": ""})


def test_a_bell_is_rung_by_another_process_and_silent_once_it_is_answered() -> None:
    with closing(hung()) as bell:
        assert not is_rung(bell)
        ring_elsewhere()
        ring_elsewhere()
        assert is_rung(bell, PATIENCE_SECONDS)
        bell.answer()
        assert not is_rung(bell)


def test_a_process_does_not_ring_its_own_bells_but_a_forked_child_does() -> None:
    with closing(hung()) as bell:
        bells.ring(FILE)
        assert not is_rung(bell)
        if (pid := os.fork()) == 0:
            bells.ring(FILE)
            bell.close()  # the parent's
            os._exit(0)
        os.waitpid(pid, 0)
        assert is_rung(bell, PATIENCE_SECONDS)
        bell.answer()
        ring_elsewhere()  # it is there still
        assert is_rung(bell, PATIENCE_SECONDS)


def test_the_bell_of_a_process_that_was_killed_is_taken_down_by_who_rings_next(place: Path) -> None:
    if (pid := os.fork()) == 0:
        hung()
        os.kill(os.getpid(), 9)
    os.waitpid(pid, 0)
    left = list(place.glob("*/*/*"))
    assert len(left) == 1

    bells.ring(FILE)

    assert not left[0].parent.exists()


def test_a_bell_that_is_taken_down_leaves_nothing(place: Path) -> None:
    one, two = hung(), hung()
    one.close()
    assert len(list(place.glob("*/*/*"))) == 1
    two.close()

    assert not list(place.glob("*/*"))
    hung().close()


def test_a_bell_that_nobody_answers_does_not_hold_up_who_rings() -> None:
    with closing(hung()):
        for _ in range(3):
            subprocess.run(
                [sys.executable, "-c", f"{RING}\nfor _ in range(500): bells.ring({FILE})"],
                check=True, timeout=60, env=os.environ | {"PYTHONPATH": ""},
            )  # fmt: skip


def test_without_anybody_to_hear_nothing_happens_and_nothing_is_made(place: Path) -> None:
    bells.ring(FILE)

    assert not list(place.glob("*/*"))


def test_a_folder_that_others_can_write_is_not_used(place: Path) -> None:
    ours = place / f"ckworkflow-{os.getuid()}"
    ours.mkdir()
    ours.chmod(0o777)

    assert bells.hang(FILE) is None
    bells.ring(FILE)


def test_a_path_too_long_for_a_socket_means_no_bell(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deep = place / ("d" * 120)
    deep.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(deep))

    assert bells.hang(FILE) is None


def test_a_system_without_such_sockets_has_no_bells(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(socket, "AF_UNIX")

    assert bells.hang(FILE) is None
    bells.ring(FILE)
