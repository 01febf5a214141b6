"""`make demo`: the example bot on a fake Discord, killed in the middle of a greeting.

This program plays Discord and the user. The bot is the real `bot.py`, a process of its own in an empty
folder, with no broker and no database server. Everything that is printed is read from the fake Discord and,
by `ckworkflow.get_run_sync`, from the bot's database; the end is checked, and the exit code says so.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from ckworkflow import SyncRun, get_run_sync
from ckworkflow.testing import FakeDiscord

HERE = Path(__file__).parent
PATIENCE_SECONDS = 20.0
DOWN_SECONDS = 1.0
LOOK_SECONDS = 0.05

COLOURS = {
    "discord": "36",
    "run": "33",
    "kill": "1;31",
    "bot": "35",
    "ok": "32",
    "bad": "1;31",
    "note": "2",
}


class Screen:
    """Prints what happens, with the seconds since the start."""

    def __init__(self) -> None:
        self._started = time.monotonic()
        self._is_colourful = sys.stdout.isatty() and "NO_COLOR" not in os.environ

    def paint(self, colour: str, text: str) -> str:
        return f"\x1b[{COLOURS[colour]}m{text}\x1b[0m" if self._is_colourful else text

    def say(self, colour: str, who: str, text: str) -> None:
        seconds = time.monotonic() - self._started
        print(f"{seconds:6.1f} s  {self.paint(colour, f'{who:<10}')} {text}", flush=True)

    def seconds(self) -> float:
        return time.monotonic() - self._started


class Bot:
    """The process of `bot.py`."""

    def __init__(self, folder: Path, fake: FakeDiscord, screen: Screen) -> None:
        self._folder, self._fake, self._screen = folder, fake, screen
        self._log = folder / "bot.log"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, str(HERE / "bot.py")],
                cwd=self._folder,
                env=os.environ | self._fake.env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        self._screen.say("bot", "bot", f"python bot.py is process {self.process.pid}")
        wait_until(lambda: self._fake.connected_bots > 0 or not self.is_alive, "the bot connects")
        if not self.is_alive:
            raise DemoError("the bot ended by itself")
        self._screen.say("bot", "bot", "connected to the gateway, its worker inside")

    def kill(self) -> None:
        if self.process is not None and self.is_alive:
            os.kill(self.process.pid, signal.SIGKILL)
            self.process.wait()

    @property
    def is_alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def last_words(self) -> str:
        return (
            "\n".join(self._log.read_text(errors="replace").splitlines()[-25:])
            if self._log.exists()
            else ""
        )


class DemoError(Exception):
    """Something did not happen as it should."""


def wait_until(condition: Callable[[], object], what: str, timeout: float = PATIENCE_SECONDS) -> None:
    """Look until a condition holds."""
    end = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > end:
            raise DemoError(f"waited {timeout:g} s in vain until {what}")
        time.sleep(LOOK_SECONDS)


def find_run() -> SyncRun[Any]:
    """Ask the command line for the run, as one would by hand."""
    runs: list[dict[str, Any]] = []

    def is_found() -> bool:
        listed = subprocess.run(
            ["ckworkflow", "runs", "list", "--json"], capture_output=True, text=True, check=False
        )
        runs[:] = json.loads(listed.stdout) if listed.returncode == 0 else []
        return bool(runs)

    wait_until(is_found, "`ckworkflow runs list` shows the run")
    return get_run_sync(runs[0]["run_id"])


class Demo:
    """The play: who says what, and what is true at the end."""

    def __init__(self, fake: FakeDiscord, folder: Path) -> None:
        self.screen = Screen()
        self.fake = fake
        self.bot = Bot(folder, fake, self.screen)
        self.guild = fake.add_guild("The Lighthouse")
        self.user = fake.add_user("ada")
        fake.join(self.guild, self.user)
        self.channel = self.guild.channel("general")
        self.run: SyncRun[Any] | None = None
        self._searching: Future[SyncRun[Any]] | None = None
        self._seen: set[int] = set()
        self._steps: dict[str, str] = {}

    def play(self) -> None:
        """Greet, kill, restart, finish."""
        say = self.screen.say
        self.bot.start()
        say("discord", "ada", "/greet")
        self.fake.slash("greet", user=self.user, guild=self.guild)
        with ThreadPoolExecutor(1) as beside:
            # The command line takes a second; the messages are shown as they come meanwhile.
            self._searching = beside.submit(find_run)
            self.watch(lambda: self.run is not None, "the command line knows the run")
        self.watch(self.is_first_greeting_recorded, "the first greeting is recorded")
        say("note", "", "the run sleeps 5 seconds, and in the middle of that:")
        pause = time.monotonic() + DOWN_SECONDS
        self.watch(lambda: time.monotonic() > pause, "a second has passed")

        assert self.bot.process is not None
        self.bot.kill()
        say("kill", "kill -9", f"process {self.bot.process.pid} is gone, and nothing else runs")
        pause = time.monotonic() + DOWN_SECONDS
        self.watch(lambda: time.monotonic() > pause, "a second has passed")
        assert self.run is not None
        say(
            "run", "database", f"still knows the run: {self.run.status()}, {len(self.run.steps())} nodes"
        )

        self.bot.start()
        self.watch(self.is_run_over, "the run ends")

    def watch(self, condition: Callable[[], object], what: str) -> None:
        """Print what happens until a condition holds."""

        def look() -> object:
            self.show_messages()
            self.show_steps()
            return condition()

        wait_until(look, what)

    def show_messages(self) -> None:
        for place, messages in (
            ("#general", self.fake.messages(self.channel)),
            (f"DM to {self.user.name}", self.fake.dms(self.user)),
        ):
            for message in messages:
                if message.id not in self._seen:
                    self._seen.add(message.id)
                    self.screen.say("discord", place, message.content)

    def show_steps(self) -> None:
        if self.run is None and self._searching is not None and self._searching.done():
            self.run = self._searching.result()
            self.screen.say("run", "run", f"{self.run.run_id} (`ckworkflow runs list` has found it)")
        if self.run is None:
            return
        for node in self.run.steps():
            if self._steps.get(node.node_id) != node.status:
                self._steps[node.node_id] = node.status
                self.screen.say(
                    "run", "run", f"{node.node_id} {node.name.rpartition('.')[2]:<10} {node.status}"
                )

    def is_first_greeting_recorded(self) -> bool:
        return self.run is not None and any(node.status == "completed" for node in self.run.steps())

    def is_run_over(self) -> bool:
        return self.run is not None and self.run.status().is_final

    def check(self) -> bool:
        """Say what happened, and whether it is right."""
        assert self.run is not None
        greetings = self.fake.dms(self.user)
        words = [message.content for message in greetings]
        gap = (greetings[-1].created_at - greetings[0].created_at).total_seconds() if greetings else 0.0
        value = self.run.return_value(timeout=5)
        attempts = [node.attempt for node in self.run.steps() if node.kind == "step"]
        findings = [
            (
                words == ["Hello!", "Hello again!"],
                f"the user was told {', then '.join(map(repr, words))}, each once",
            ),
            (gap >= 5, f"{gap:.2f} s apart, with a dead process in between"),
            (
                attempts == [1, 1],
                f"attempts of the steps: {attempts}: what was recorded did not run again",
            ),
            (value == {"success": True}, f"the run returned {value!r}"),
        ]
        print()
        for is_right, text in findings:
            print(
                "  " + self.screen.paint("ok", "✔ ") + text
                if is_right
                else self.screen.paint("bad", "  ✘ ") + text
            )
        return all(is_right for is_right, _ in findings)


def main() -> int:
    """Play it in a temporary folder; 0 when everything was right."""
    print("The example bot on a fake Discord: no server, no token.\n")
    folder = Path(tempfile.mkdtemp(prefix="ckworkflow-demo-"))
    shutil.copy(HERE / "celeryconfig.py", folder)
    os.chdir(folder)
    with FakeDiscord() as fake:
        demo = Demo(fake, folder)
        try:
            demo.play()
            is_right = demo.check()
        except DemoError as error:
            print(
                f"\nThe demo failed: {error}. The bot's last words:\n{demo.bot.last_words()}",
                file=sys.stderr,
            )
            is_right = False
        finally:
            demo.bot.kill()
    if is_right:
        print(
            f"\n  {demo.screen.seconds():.0f} seconds in all. The bot: examples/seed_bot/bot.py; its own run: make bot"
        )
        shutil.rmtree(folder, ignore_errors=True)
    else:
        print(f"The folder of the bot is kept: {folder}", file=sys.stderr)
    return 0 if is_right else 1


if __name__ == "__main__":
    sys.exit(main())
