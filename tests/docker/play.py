"""What the compose file describes, played without an engine: built, started in order, used, and stopped.

Run by `test_docker_commands.py` as root in mount and pid namespaces of its own, with a folder that holds
`config.json` (what `docker compose config` makes of the file) and `secrets` (their files). Writes
`facts.json` into it. Each command is the Dockerfile's or the compose file's own, word for word, and runs as in a
container: as its user, without capabilities, on a read-only root, with the environment, the temporary file
systems and the host name that it would have. All share one network namespace, in which `redis` and `postgres`
are this machine.

Not as in a container: the base images' own contents and entrypoints, and separate networks.
"""

from __future__ import annotations

import base64
import contextlib
import ctypes
import fcntl
import json
import os
import pwd
import signal
import socket
import struct
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import dockerfile
import services
from ckworkflow.testing import FakeDiscord
from dockerfile import Builder, run

SIGNAL_AGAIN_SECONDS = 10
PATIENCE_SECONDS = 90.0
DISCORD_PORT = 8080
CLONE_NEWNET = 0x40000000
DATA = "/var/lib/postgresql/data"


def wait_until(condition, what: str):
    end = time.monotonic() + PATIENCE_SECONDS
    while not (answer := condition()):
        if time.monotonic() > end:
            raise TimeoutError(what)
        time.sleep(0.05)
    return answer


class Container:
    """A service of the compose file."""

    def __init__(self, play: Play, service: str) -> None:
        self.play, self.service = play, service
        self.config = play.config["services"][service]
        self.name = f"{service}-1"
        self.log = play.folder / f"{service}.log"
        self.process: subprocess.Popen[bytes] | None = None
        if "build" in self.config:
            target = self.config["build"]["target"]
            self.root = play.builder.build(target)
            self.image = dockerfile.image(play.builder.stages, target)
        else:
            found = pwd.getpwnam(self.config["user"])
            self.root = play.builder.base
            user = f"{found.pw_uid}:{found.pw_gid}"
            self.image = dockerfile.Image(dict(dockerfile.BASE_ENV), user=user)

    @property
    def command(self) -> list[str]:
        return self.config.get("command") or self.image.command

    @property
    def health(self) -> list[str] | None:
        test = self.config.get("healthcheck", {}).get("test")
        if test is None:
            return self.image.health
        return ["sh", "-c", test[1]] if test[0] == "CMD-SHELL" else test[1:]

    @property
    def env(self) -> dict[str, str]:
        return {**self.image.env, **self.config.get("environment", {})}

    def start(self, *command: str, **env: str) -> subprocess.Popen[bytes]:
        """Start its command, or another one in the same surroundings."""
        inside = self.root
        lines = ["set -e", f"echo {self.name} > /proc/sys/kernel/hostname"]
        for path, _, options in (each.partition(":") for each in self.config["tmpfs"]):
            # From within: a path may lead over a link. Without a mode it keeps that of the folder it covers.
            mode = options or f"mode=$(stat -c %a {inside}{path})"
            lines.append(f"chroot {inside} mount -t tmpfs -o noexec,{mode} tmpfs {path}")
        for volume in self.config.get("volumes", ()):
            source = self.play.folder / f"volume-{volume['source']}"
            lines.append(f"mount --bind {source} {inside}{volume['target']}")
        # On a file system of its own: what a mount needs to be there would stay in the image, for the others to see.
        folder = f"{inside}/run/secrets"
        lines.append(f"mkdir -p {folder}; mount -t tmpfs tmpfs {folder}")
        for secret in self.config.get("secrets", ()):
            target, source = (
                f"{folder}/{secret['source']}",
                self.play.folder / "secrets" / secret["source"],
            )
            lines.append(f"touch {target}; mount --bind {source} {target}")
        if self.config["read_only"]:
            lines.append(f"mount -o remount,bind,ro {inside}")
        lines.append(f'exec chroot {inside} "$@"')
        words = ["unshare", "--mount", "--uts", "sh", "-c", "\n".join(lines), "sh"]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*words, *self._as_user(), *(command or self.command)],
                env=self.env | env, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip
        return self.process

    def run(self, *command: str, **env: str) -> int:
        """Run a command to its end; its exit code."""
        return self.start(*command, **env).wait(PATIENCE_SECONDS)

    def is_healthy(self) -> bool:
        """Run the health check inside the container, or in one like it when that is gone."""
        assert self.health is not None
        if self.process is None or self.process.poll() is not None:
            return Container(self.play, self.service).run(*self.health) == 0
        return self.execute(*self.health).returncode == 0

    def wait_until_healthy(self) -> None:
        """Wait for the health check; a service that ends instead is an error."""
        assert self.process is not None
        end = time.monotonic() + PATIENCE_SECONDS
        while not self.is_healthy():
            assert self.process.poll() is None, f"{self.name} has ended"
            assert time.monotonic() < end, f"{self.name} is not healthy"

    def execute(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a command in the running container, as `docker compose exec`."""
        assert self.process is not None
        enter = ["nsenter", "--target", str(self.process.pid), "--mount", "--uts", "--root"]
        return subprocess.run(
            [*enter, *self._as_user(), *command],
            env=self.env,
            capture_output=True,
            text=True,
            timeout=60,
        )

    def stop(self) -> dict[str, Any]:
        """Stop it as Docker would; how it ended, and after how many seconds."""
        assert self.process is not None
        begun = time.monotonic()
        code = None
        while code is None:
            self.process.send_signal(signal.Signals[self.image.stop_signal])
            # Again, as one presses Ctrl-C again: on Python 3.11 `asyncio.wait_for` may lose the cancellation that
            # Ctrl-C is, when it comes together with a message.
            with contextlib.suppress(subprocess.TimeoutExpired):
                code = self.process.wait(SIGNAL_AGAIN_SECONDS)
            assert time.monotonic() - begun < PATIENCE_SECONDS, f"{self.name} does not stop"
        return {"code": code, "seconds": time.monotonic() - begun}

    def _as_user(self) -> list[str]:
        user, _, group = self.image.user.partition(":")
        drop = ["--clear-groups", "--bounding-set=-all", "--inh-caps=-all", "--no-new-privs"]
        return [
            "env", "-C", self.image.folder, "setpriv", f"--reuid={user}", f"--regid={group}", *drop,
        ]  # fmt: skip


class Play:
    """The whole of it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        # Compose writes a dollar twice, so that its output can be its input.
        self.config = json.loads((folder / "config.json").read_text().replace("$$", "$"))
        self.facts: dict[str, Any] = {}
        (folder / "images").mkdir()

    def build(self) -> None:
        """Build every target, around a folder that is the example bot with a token and a requirement in it."""
        self.builder = Builder(self.folder / "images")
        example = self.builder.build("project")
        project = self.folder / "project"
        run("cp", "-r", example, project)
        (project / ".git").mkdir()
        for name in (".env", ".env.production", ".git/config", "workflows/signing.pem", "tls.key"):
            (project / name).write_text("DISCORD_TOKEN=left-behind\n")
        (project / "requirements.txt").write_text("tzdata\n")
        self.builder.contexts["project"] = project
        making = self.make_database()
        for target in ("migrate", "bot", "worker", "flower"):
            self.builder.build(target)
        assert making.wait(PATIENCE_SECONDS) == 0, (self.folder / "postgres.log").read_text()

    def make_database(self) -> subprocess.Popen[bytes]:
        """What the entrypoint of PostgreSQL's image does with an empty volume."""
        volume = self.folder / "volume-postgres"
        volume.mkdir()
        postgres = Container(self, "postgres")
        volume.chmod(0o700)
        os.chown(volume, *map(int, postgres.image.user.split(":")))
        initdb, server = services.postgres_program("initdb"), services.postgres_program("postgres")
        script = f"""
            {initdb} --pgdata={DATA} --username="$POSTGRES_USER" --pwfile="$POSTGRES_PASSWORD_FILE" --no-sync \\
                --auth-local=trust --auth-host=scram-sha-256 --encoding=UTF8 --locale=C
            echo "CREATE DATABASE $POSTGRES_DB" | {server} --single -F -j -D {DATA} postgres
        """
        return postgres.start("sh", "-ec", script)

    def play(self) -> None:
        """Everything after the build."""
        facts = self.facts
        enter_own_network()
        redis, postgres, migrate, bot, worker, flower = (
            Container(self, name) for name in ("redis", "postgres", "migrate", "bot", "worker", "flower")
        )
        everyone = [redis, postgres, bot, worker, flower]
        facts["installed"] = self.installed(migrate)
        facts["project"] = sorted(path.name for path in (migrate.root / "app").iterdir())
        facts["left behind"] = [
            path.name
            for path in (migrate.root / "app").rglob("*")
            if path.is_file() and b"left-behind" in path.read_bytes()
        ]
        facts["healthy too soon"] = [
            each.name for each in (redis, postgres, bot, flower) if each.is_healthy()
        ]

        redis.start()
        server = services.postgres_program("postgres")
        postgres.start(str(server), "-D", DATA, "-c", "listen_addresses=*", "-F")
        for each in (redis, postgres):
            each.wait_until_healthy()
        facts["migration"] = migrate.run()
        facts["flower without a password"] = [
            flower.run(*flower.command[1:]),
            flower.log.read_text().splitlines()[-1],
        ]
        token = self.secret("discord_token")
        with FakeDiscord(port=DISCORD_PORT, token=token) as fake:
            for each in (bot, worker, flower):
                each.start()
            guild, ada = fake.add_guild("The Lighthouse"), fake.add_user("ada")
            fake.join(guild, ada)
            fake.wait_for_bot(PATIENCE_SECONDS)
            fake.slash("greet", user=ada, guild=guild)
            for each in (bot, worker, flower):
                each.wait_until_healthy()
            facts["healthy"] = [each.name for each in everyone]
            facts["flower"] = self.ask_flower(worker.name)
            facts["flower at the broker"] = self.try_broker(flower)
            fake.wait_for(lambda: len(fake.dms(ada)) == 2, PATIENCE_SECONDS)
            facts["greetings"] = [message.content for message in fake.dms(ada)]
            listed = wait_until(lambda: self.finished_runs(worker), "the run is completed")
            facts["runs"] = [[run["workflow"], run["status"]] for run in listed]
            facts["stops"] = {each.name: each.stop() for each in (flower, worker, bot)}
            facts["healthy after the end"] = [
                each.name for each in (bot, worker, flower) if each.is_healthy()
            ]
        facts["stops"] |= {each.name: each.stop() for each in (redis, postgres)}

    def installed(self, container: Container) -> dict[str, str]:
        code = (
            "import importlib.metadata as m, json; "
            "print(json.dumps({d.name: d.version for d in m.distributions()}))"
        )
        container.run("python", "-c", code)
        return json.loads(container.log.read_text())

    def finished_runs(self, worker: Container) -> list[dict[str, Any]]:
        listed = worker.execute("with-secrets", "ckworkflow", "runs", "list", "--json")
        assert listed.returncode == 0, listed.stderr
        runs = json.loads(listed.stdout)
        return runs if all(each["status"] == "completed" for each in runs) else []

    def secret(self, name: str) -> str:
        return (self.folder / "secrets" / name).read_text()

    def try_broker(self, flower: Container) -> list[str]:
        """What Redis answers to somebody who has got hold of what Flower holds, and wants more."""
        code = """
import os, redis
client = redis.Redis.from_url(os.environ["CELERY_BROKER_URL"])
for words in (["LPUSH", "ckworkflow", "x"], ["RPOP", "ckworkflow"], ["HGETALL", "unacked"], ["KEYS", "*"], ["FLUSHALL"],
              ["CONFIG", "GET", "*"], ["LLEN", "ckworkflow"]):
    try:
        print("allowed", words[0], type(client.execute_command(*words)).__name__)
    except redis.exceptions.NoPermissionError:
        print("refused", words[0])
"""
        done = flower.execute("with-secrets", "python", "-c", code)
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()

    def ask_flower(self, worker: str) -> dict[str, Any]:
        pair = self.secret("flower_basic_auth")

        def status(path: str, given: str = "", data: bytes | None = None) -> int:
            request = urllib.request.Request(f"http://127.0.0.1:5555{path}", data=data)
            if given:
                request.add_header("Authorization", "Basic " + base64.b64encode(given.encode()).decode())
            try:
                with urllib.request.urlopen(request, timeout=20) as answer:
                    return int(answer.status)
            except urllib.error.HTTPError as error:
                return error.code

        return {
            "nobody": [status("/workers"), status("/api/tasks"), status("/api/workers")],
            "a stranger": [status("/workers", "ada:guess"), status("/api/tasks", "ada:guess")],
            "the owner": [status("/workers", pair), status("/api/tasks", pair)],
            "the owner, changing something": [
                status(f"/api/worker/shutdown/celery@{worker}", pair, b""),
                status("/api/task/async-apply/workflows.greet.steps.greet.greet_user", pair, b"{}"),
            ],
        }


def enter_own_network() -> None:
    """Give this process, and what it starts from now on, a network with nothing but itself in it."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "unshare")
    with socket.socket() as any_socket:
        request = struct.pack("16sH", b"lo", 0)
        flags = struct.unpack("16sH", fcntl.ioctl(any_socket, 0x8913, request))[1]  # SIOCGIFFLAGS
        fcntl.ioctl(any_socket, 0x8914, struct.pack("16sH", b"lo", flags | 1))  # SIOCSIFFLAGS, IFF_UP


# A shell has what runs behind it ignore Ctrl-C, and so would each container; an engine's begin as new.
signal.signal(signal.SIGINT, signal.default_int_handler)
play = Play(Path(sys.argv[1]))
play.build()
play.play()
(play.folder / "facts.json").write_text(json.dumps(play.facts))
