"""The Dockerfile without an engine: read, and carried out on this machine's own root file system.

`read` gives the stages with what they say. `Builder` carries out `COPY` and `RUN`: a stage is an overlay over the
one it comes from, and in the place of a base image stands this machine, with the Python of the tests as its
`python` and `pip`. So what is seen is whether the instructions do what they should; not what the real base brings.

A builder needs root and a mount namespace of its own: nothing that it mounts is taken away again.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import stat
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pip

if TYPE_CHECKING:
    from collections.abc import Mapping

ROOT = Path(__file__).parents[1]
DOCKERFILE = ROOT / "docker" / "Dockerfile"
BASE_ENV = {"PATH": "/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin"}


@dataclass
class Stage:
    """A stage of the Dockerfile: what it comes from, and its instructions in order."""

    name: str
    base: str
    instructions: list[tuple[str, str]] = field(default_factory=list)


def read(path: Path = DOCKERFILE) -> dict[str, Stage]:
    """Read a Dockerfile; arguments in `FROM` have their defaults."""
    lines = [line for line in path.read_text().splitlines() if not line.lstrip().startswith("#")]
    text = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    stages: dict[str, Stage] = {}
    arguments: dict[str, str] = {}
    for line in filter(None, map(str.strip, text.splitlines())):
        word, rest = line.split(None, 1)
        if word == "ARG" and not stages:
            name, _, value = rest.partition("=")
            arguments[name] = value
        elif word == "FROM":
            base, _, name = rest.partition(" AS ")
            stages[name] = Stage(name, substitute(base, arguments))
        else:
            stages[list(stages)[-1]].instructions.append((word, rest))
    return stages


def substitute(text: str, values: Mapping[str, str]) -> str:
    """Put values in the places of `$NAME` and `${NAME}`."""
    return re.sub(r"\$\{?(\w+)\}?", lambda found: values.get(found[1], ""), text)


@dataclass
class Image:
    """What a container of a stage is started with."""

    env: dict[str, str]
    folder: str = "/"
    user: str = "0:0"
    command: list[str] = field(default_factory=list)
    health: list[str] | None = None
    stop_signal: str = "SIGTERM"


def image(stages: Mapping[str, Stage], name: str) -> Image:
    """Put together what a stage and those that it comes from say."""
    stage = stages[name]
    if stage.base in stages:
        found = image(stages, stage.base)
    else:
        found = Image(dict(BASE_ENV))
    for word, rest in stage.instructions:
        match word:
            case "ENV":
                for pair in shlex.split(rest):
                    key, _, value = pair.partition("=")
                    found.env[key] = substitute(value, found.env)
            case "WORKDIR":
                found.folder = rest
            case "USER":
                found.user = rest
            case "CMD":
                found.command = json.loads(rest)
            case "STOPSIGNAL":
                found.stop_signal = rest
            case "HEALTHCHECK":
                _, _, command = rest.partition("CMD ")
                found.health = json.loads(command) if command else None
    return found


def run(*words: str | Path, **options: Any) -> str:
    """Run a command to its end; what it printed."""
    done = subprocess.run(
        [str(word) for word in words], capture_output=True, text=True, check=False, **options
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(map(str, words))}\n{done.stdout}\n{done.stderr}")
    return done.stdout


class Builder:
    """Carries out stages. Args: `folder` for what it makes; `contexts`, folders named by `--build-context`."""

    def __init__(self, folder: Path, contexts: Mapping[str, Path] | None = None) -> None:
        run("mount", "-t", "tmpfs", "tmpfs", folder)
        self.folder = folder
        self.stages = read()
        self.contexts = dict(contexts or {})
        self._layers: dict[str, list[str]] = {}
        self._context = folder / "context"
        self._make_context()
        self.base = self._mount("base", ["/"])
        self._make_base()

    def build(self, name: str) -> Path:
        """Carry out a stage and what it needs; its root."""
        if name in self.contexts:
            return self.contexts[name]
        if name in self._layers:
            return self.folder / name / "root"
        stage = self.stages[name]
        if stage.base == "scratch":
            self._layers[name], root = [], self.folder / name / "root"
            root.mkdir(parents=True)
        else:
            if stage.base in self.stages:
                self.build(stage.base)
            root = self._mount(name, self._layers[stage.base if stage.base in self.stages else "base"])
        for number, (word, rest) in enumerate(stage.instructions):
            so_far = {name: Stage(name, stage.base, stage.instructions[:number])}
            now = image({**self.stages, **so_far}, name)
            if word == "WORKDIR":
                (root / rest.lstrip("/")).mkdir(parents=True, exist_ok=True)
            elif word == "COPY":
                self._copy(root, now, shlex.split(rest))
            elif word == "RUN":
                self._run(root, now, rest)
        return root

    def _mount(self, name: str, lower: list[str]) -> Path:
        upper, work, root = (self.folder / name / part for part in ("upper", "work", "root"))
        for path in (upper, work, root):
            path.mkdir(parents=True)
        options = f"lowerdir={':'.join(lower)},upperdir={upper},workdir={work}"
        run("mount", "-t", "overlay", "overlay", "-o", options, root)
        self._layers[name] = [str(upper), *lower]
        # What an overlay does not bring: the file systems that are mounted over this machine's root.
        run("mount", "-t", "proc", "proc", root / "proc")
        run("mount", "--rbind", "/dev", root / "dev")
        run("mount", "-t", "tmpfs", "-o", "mode=1777", "tmpfs", root / "tmp")
        return root

    def _make_context(self) -> None:
        """Copy what `.dockerignore` lets through: everything is refused but what it names."""
        lines = DOCKERFILE.with_suffix(".dockerignore").read_text().splitlines()
        hidden = [line.removeprefix("**/") for line in lines if line.startswith("**/")]
        for name in (line[1:] for line in lines if line.startswith("!")):
            source, target = ROOT / name, self._context / name
            target.parent.mkdir(parents=True, exist_ok=True)
            if source.is_dir():
                shutil.copytree(source, target, ignore=shutil.ignore_patterns(*hidden))
            else:
                shutil.copy2(source, target)

    def _make_base(self) -> None:
        local = self.base / "usr/local"
        # The interpreter may lie in a home folder, which other users cannot enter.
        python = Path(sys.base_prefix, "bin", f"python3.{sys.version_info.minor}").resolve()
        for parent in python.parents:
            if not parent.stat().st_mode & stat.S_IXOTH:
                (self.base / str(parent).lstrip("/")).chmod(0o755)
        shutil.copytree(pip.__path__[0], local / "lib" / "pip")
        # Scripts and not links: an interpreter looks for its library where it seems to be.
        for name, program in {"python": str(python), "pip": f"{python} /usr/local/lib/pip"}.items():
            script = local / "bin" / name
            script.unlink(missing_ok=True)
            script.write_text(f'#!/bin/sh\nexec {program} "$@"\n')
            script.chmod(0o755)
        (self.base / "var/lib/postgresql/data").mkdir(parents=True, exist_ok=True)
        (self.base / "data").mkdir(exist_ok=True)
        (self.base / "etc/hosts").write_text("127.0.0.1 localhost redis postgres\n")
        # Nothing may come from the project's folder or from the environment of the tests.
        for hidden in {ROOT, Path(sys.prefix)}:
            target = self.base / str(hidden).lstrip("/")
            if not target.exists() or (hidden != ROOT and hidden.is_relative_to(ROOT)):
                continue  # not there at all, or hidden with the other
            run("mount", "-t", "tmpfs", "tmpfs", target)

    def _copy(self, root: Path, now: Image, words: list[str]) -> None:
        source = self._context
        if words[0].startswith("--from="):
            source = self.build(words.pop(0).removeprefix("--from="))
        *names, target = words
        into = root / os.path.join(now.folder, target).lstrip("/")  # noqa: PTH118  # absolute ones win
        for name in names:
            path = source / name.lstrip("/")
            if path.is_dir() or target.endswith("/"):
                into.mkdir(parents=True, exist_ok=True)
            run(
                "cp",
                "-r",
                "--preserve=mode,links,timestamps",
                f"{path}/." if path.is_dir() else path,
                into,
            )

    def _run(self, root: Path, now: Image, script: str) -> None:
        # How this machine reaches the package index is no business of the Dockerfile's.
        ours = {
            name: value for name, value in os.environ.items() if name.startswith(("PIP_", "UV_", "SSL_"))
        }
        run(
            "chroot",
            root,
            "env",
            "-C",
            now.folder,
            "sh",
            "-ec",
            script,
            env={**ours, "HOME": "/root", **now.env},
        )
