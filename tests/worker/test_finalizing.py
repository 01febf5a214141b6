"""A start and a worker that starts, at once, in a process whose app nobody has used yet: a bot whose first command comes early."""

from __future__ import annotations

import subprocess
import sys

from worker_home import TESTS

RACE = """
import sys
import threading
sys.path.insert(0, {tests!r})
from celery import Celery
from ckworkflow import WorkflowPlugin, canvas, step

@step
async def greets() -> None: ...

for _ in range(100):
    app = Celery("bot", broker="memory://")
    WorkflowPlugin(app)
    threads = [
        threading.Thread(target=call, daemon=True)
        for call in (app.finalize, lambda: canvas.task_of(app, greets.name), lambda: canvas.queue_of(app, greets.name))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive(), "they wait for each other"
print("done")
"""

CROSSED = """
import sys
import threading
import time
sys.path.insert(0, {tests!r})
from celery import Celery
from ckworkflow import WorkflowPlugin, step

@step
async def greets() -> None: ...

app = Celery("bot", broker="memory://")
looking = Celery.__dict__["tasks"].lock  # of whoever looks at the tasks first

def is_held():
    if looking.acquire(blocking=False):
        looking.release()
        return False
    return True

def look():
    is_finalizing.wait()
    app.tasks

def wait_for_who_looks(**_):
    is_finalizing.set()
    end = time.monotonic() + 20
    while not is_held() and time.monotonic() < end:
        time.sleep(0.001)

is_finalizing = threading.Event()
app.on_after_finalize.connect(wait_for_who_looks, weak=False)
WorkflowPlugin(app)
threads = [threading.Thread(target=call, daemon=True) for call in (app.finalize, look)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join(20)
    assert not thread.is_alive(), "they wait for each other"
assert greets.name in app.tasks
print("done")
"""


def test_steps_are_registered_while_somebody_else_looks_at_the_tasks_of_an_app() -> None:
    done = subprocess.run(
        [sys.executable, "-c", CROSSED.format(tests=str(TESTS))], capture_output=True, text=True, timeout=60, check=False
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr


def test_a_start_and_a_worker_that_starts_do_not_wait_for_each_other() -> None:
    done = subprocess.run(
        [sys.executable, "-c", RACE.format(tests=str(TESTS))], capture_output=True, text=True, timeout=60, check=False
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr
