"""Interrupts: signals of the prefork pool raise while a step runs, and cut nothing else in two."""

from __future__ import annotations

import signal
import threading
from typing import TYPE_CHECKING

import pytest
from billiard import common, pool
from billiard.exceptions import SoftTimeLimitExceeded

from ckworkflow.worker.process import interrupts

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(autouse=True)
def as_in_a_pool_process() -> Iterator[None]:
    """The handlers that the pool sets."""
    before = {number: signal.getsignal(number) for number in (signal.SIGUSR1, signal.SIGTERM)}
    signal.signal(signal.SIGUSR1, pool.soft_timeout_sighandler)
    signal.signal(signal.SIGTERM, common._shutdown_cleanup)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)
    common.clear_terminate_handler_fired()


def test_a_limit_raises_where_a_step_runs() -> None:
    with interrupts.deferred(), pytest.raises(SoftTimeLimitExceeded), interrupts.allowed:
        signal.raise_signal(signal.SIGUSR1)


def test_a_limit_that_comes_before_the_step_raises_when_it_begins() -> None:
    with interrupts.deferred():
        signal.raise_signal(signal.SIGUSR1)
        with pytest.raises(SoftTimeLimitExceeded), interrupts.allowed:
            pytest.fail("nothing of the step was to run")


def test_a_limit_that_comes_after_the_step_is_dropped() -> None:
    with interrupts.deferred():
        with interrupts.allowed:
            pass
        signal.raise_signal(signal.SIGUSR1)


def test_after_the_message_a_limit_raises_as_ever() -> None:
    with interrupts.deferred():
        pass
    with pytest.raises(SoftTimeLimitExceeded):
        signal.raise_signal(signal.SIGUSR1)


def test_a_request_to_exit_is_raised_again_when_what_was_begun_is_done() -> None:
    done = []
    with pytest.raises(SystemExit):
        with interrupts.deferred():
            with pytest.raises(SystemExit), interrupts.allowed:
                signal.raise_signal(signal.SIGTERM)
            assert interrupts.is_leaving()
            done.append("released")
    assert done
    assert not interrupts.is_leaving()


def test_a_request_to_exit_that_comes_between_steps_waits_for_the_record() -> None:
    done = []
    with pytest.raises(SystemExit):
        with interrupts.deferred():
            signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGUSR1)  # the weaker of the two
            assert interrupts.is_leaving()
            done.append("recorded")
    assert done


def test_waiting_goes_on_until_it_is_over_whatever_a_signal_raises() -> None:
    is_over, lock, told = threading.Event(), threading.Lock(), []
    lock.acquire()

    def interrupt(error: BaseException) -> None:
        told.append(type(error))
        if len(told) == 1:
            threading.Thread(target=signal.pthread_kill, args=(main, signal.SIGUSR1)).start()
        else:
            is_over.set()
            lock.release()

    main = threading.main_thread().ident
    assert main is not None
    with interrupts.deferred():
        threading.Thread(target=signal.pthread_kill, args=(main, signal.SIGUSR1)).start()
        interrupts.wait(lock, is_over.is_set, interrupt)

    assert told == [SoftTimeLimitExceeded, SoftTimeLimitExceeded]


def test_on_other_threads_nothing_is_taken_over() -> None:
    def defer() -> None:
        with interrupts.deferred():
            pass

    thread = threading.Thread(target=defer)
    thread.start()
    thread.join()

    assert signal.getsignal(signal.SIGUSR1) is pool.soft_timeout_sighandler
