"""The files of `docker/` without an engine: by their schema, by Compose itself, by a linter, and by what they promise."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import dockerfile
from ckworkflow.worker.process import pools, runtime
from docker_env import BIN, DOCKER, SECRETS, compose

ROOT = Path(__file__).parents[2]
PIN = re.compile(r"[a-z]+:\d+\.\d+(\.\d+)?-[a-z-]+@sha256:[0-9a-f]{64}")


@pytest.fixture(scope="module")
def config() -> dict[str, Any]:
    """The compose file as Compose understands it."""
    done = compose("config", "--format", "json")
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def images(config: dict[str, Any]) -> list[str]:
    return [stage.base for stage in dockerfile.read().values()] + [
        service["image"] for service in config["services"].values() if "image" in service
    ]


@pytest.mark.slow
def test_every_compose_file_is_valid_by_the_compose_specification() -> None:
    files = sorted(DOCKER.glob("compose*.yaml"))
    command = [BIN / "check-jsonschema", "--builtin-schema", "vendor.compose-spec", *files]

    done = subprocess.run(command, capture_output=True, text=True)

    assert len(files) == 3
    assert done.returncode == 0, done.stdout


@pytest.mark.slow
def test_the_linter_finds_nothing_in_the_dockerfile() -> None:
    done = subprocess.run([BIN / "hadolint", dockerfile.DOCKERFILE], capture_output=True, text=True)

    assert done.returncode == 0, done.stdout


def with_secrets(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """Run a command as the images do, with the secrets of a folder and nothing else."""
    env = {"PATH": os.environ["PATH"], "SECRETS_FOLDER": str(folder)}
    words = [str(DOCKER / "with-secrets"), *command]
    return subprocess.run(words, env=env, capture_output=True, text=True)


@pytest.mark.slow
@pytest.mark.parametrize("empty", SECRETS)
def test_nothing_starts_with_an_empty_secret(empty: str, tmp_path: Path) -> None:
    (tmp_path / empty).write_text("\n")

    done = with_secrets(tmp_path, "echo", "started")

    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"The secret {empty} is empty: write it into docker/secrets/{empty}")


@pytest.mark.slow
def test_secrets_reach_a_command_as_it_reads_them(tmp_path: Path) -> None:
    for name, value in SECRETS.items():
        if not name.startswith("flower"):
            (tmp_path / name).write_text(value + "\n")
    code = "import json, os; print(json.dumps(dict(os.environ)))"

    found = json.loads(with_secrets(tmp_path, sys.executable, "-c", code).stdout)

    assert found["DISCORD_TOKEN"] == SECRETS["discord_token"]
    assert found["PGPASSWORD"] == SECRETS["postgres_password"]
    assert found["CELERY_BROKER_URL"] == f"redis://:{SECRETS['redis_password']}@redis:6379/0"
    assert "FLOWER_BASIC_AUTH" not in found


@pytest.mark.slow
def test_the_secrets_are_made_once_and_in_a_closed_folder(
    config: dict[str, Any], tmp_path: Path
) -> None:
    script = shutil.copy2(DOCKER / "make-secrets.sh", tmp_path)
    env = {"PATH": os.environ["PATH"], "DISCORD_TOKEN": "t0ken"}
    subprocess.run([script], env=env, check=True, capture_output=True)
    folder = tmp_path / "secrets"
    made = {path.name: path.read_text() for path in folder.iterdir()}
    subprocess.run([script], env=env | {"DISCORD_TOKEN": "other"}, check=True)

    assert set(made) == {Path(each["file"]).name for each in config["secrets"].values()}
    assert all(Path(each["file"]).parent == DOCKER / "secrets" for each in config["secrets"].values())
    assert {path.name: path.read_text() for path in folder.iterdir()} == made
    assert folder.stat().st_mode & 0o777 == 0o700
    assert made.pop("discord_token") == "t0ken"
    assert len(set(made.values())) == len(made)
    assert all(re.fullmatch(r"(admin:)?[0-9a-f]{48}", value) for value in made.values())


@pytest.mark.slow
def test_every_service_has_limits_of_memory_and_processes(config: dict[str, Any]) -> None:
    for name, service in config["services"].items():
        assert 2**28 <= int(service["mem_limit"]) <= 2**30, name
        assert 64 <= service["pids_limit"] <= 512, name
    # Threads count too.
    assert config["services"]["worker"]["pids_limit"] > 2 * pools.CONCURRENCY


@pytest.mark.slow
@pytest.mark.parametrize("file", ["compose.own-bot.yaml", "compose.mount.yaml"])
def test_a_bot_of_the_users_own_takes_the_place_of_the_example_in_every_image(file: str) -> None:
    files = ("compose.yaml", file)
    without = compose("config", "--quiet", files=files)
    done = compose("config", "--format", "json", files=files, BOT_FOLDER="/home/ada/bot")

    assert "BOT_FOLDER is missing a value" in without.stderr
    services = json.loads(done.stdout)["services"]
    for name in ("bot", "worker", "flower", "migrate"):
        if file == "compose.own-bot.yaml":
            assert services[name]["build"]["additional_contexts"] == {"project": "/home/ada/bot"}
            assert services[name]["build"]["target"] == name
        else:
            # Not the folder: what else is in it, a .env or .git, is none of theirs.
            mounted = {volume["source"]: volume["target"] for volume in services[name]["volumes"]}
            parts = ("bot.py", "celeryconfig.py", "workflows")
            assert mounted == {f"/home/ada/bot/{part}": f"/app/{part}" for part in parts}
            assert all(volume["read_only"] for volume in services[name]["volumes"])


@pytest.mark.slow
def test_no_service_is_root_or_may_become_it_or_writes_to_its_image(config: dict[str, Any]) -> None:
    stages = dockerfile.read()
    for name, service in config["services"].items():
        user = service.get("user") or dockerfile.image(stages, service["build"]["target"]).user
        assert user.partition(":")[0] not in {"0", "root", ""}, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert service["read_only"] is True, name
        assert "privileged" not in service, name


@pytest.mark.slow
def test_every_service_that_stays_has_a_health_check(config: dict[str, Any]) -> None:
    stages = dockerfile.read()
    without = {
        name
        for name, service in config["services"].items()
        if not service.get("healthcheck")
        and not dockerfile.image(stages, service["build"]["target"]).health
    }

    assert without == {"migrate"}


@pytest.mark.slow
def test_every_base_is_pinned_by_its_exact_version_and_digest(config: dict[str, Any]) -> None:
    bases = {image for image in images(config) if image not in {"scratch", *dockerfile.read()}}

    assert len(bases) == 3
    for base in bases:
        assert PIN.fullmatch(base), base


@pytest.mark.slow
def test_nothing_is_published_but_flower_to_this_machine(config: dict[str, Any]) -> None:
    published = {
        name: [(port["host_ip"], port["target"]) for port in service["ports"]]
        for name, service in config["services"].items()
        if "ports" in service
    }

    assert published == {"flower": [("127.0.0.1", 5555)]}
    inside = {name for name, network in config["networks"].items() if network.get("internal")}
    for name in ("redis", "postgres", "migrate"):
        assert set(config["services"][name]["networks"]) <= inside


@pytest.mark.slow
def test_each_secret_goes_only_where_it_is_needed(config: dict[str, Any]) -> None:
    holders: dict[str, set[str]] = {secret: set() for secret in SECRETS}
    for name, service in config["services"].items():
        for secret in service.get("secrets", ()):
            holders[secret["source"]].add(name)

    assert holders == {
        "discord_token": {"bot", "worker"},
        "postgres_password": {"bot", "worker", "migrate", "postgres"},
        "redis_password": {"bot", "worker", "redis"},
        "flower_redis_password": {"flower", "redis"},
        "flower_basic_auth": {"flower"},
    }
    # An environment is on show in `docker inspect`, and a variable could come in from that of the host.
    variables = {
        name for service in config["services"].values() for name in service.get("environment", {})
    }
    assert not {name for name in variables if re.search("TOKEN|PASSWORD$|AUTH", name)}


@pytest.mark.slow
def test_bot_and_workers_wait_for_the_migration_and_that_for_the_database(
    config: dict[str, Any],
) -> None:
    def waits(name: str) -> dict[str, str]:
        return {
            other: how["condition"]
            for other, how in config["services"][name].get("depends_on", {}).items()
        }

    for name in ("bot", "worker"):
        assert waits(name) == {"migrate": "service_completed_successfully", "redis": "service_healthy"}
    assert waits("migrate") == {"postgres": "service_healthy"}
    assert config["services"]["migrate"]["restart"] == "no"


@pytest.mark.slow
def test_a_stopped_worker_has_longer_than_its_own_grace_time(config: dict[str, Any]) -> None:
    worker = config["services"]["worker"]
    minutes, seconds = re.fullmatch(r"(?:(\d+)m)?(?:(\d+)s)?", worker["stop_grace_period"]).groups()

    assert int(minutes or 0) * 60 + int(seconds or 0) >= 3 * runtime.GRACE_SECONDS
    assert worker["init"] is True
    for stage in ("bot", "worker", "flower", "migrate"):
        # The parsed form is the exec form: a shell would keep the signal to itself.
        command = dockerfile.image(dockerfile.read(), stage).command
        assert command[0] == "with-secrets"
        assert command[1] in {"python", "celery", "ckworkflow"}
    assert (DOCKER / "with-secrets").read_text().endswith('exec "$@"\n')


def test_the_example_environment_names_every_variable_and_sets_none() -> None:
    texts = [path.read_text() for path in DOCKER.glob("compose*.yaml")]
    used = {name for text in texts for name in re.findall(r"(?<!\$)\$\{(\w+)", text)}
    lines = (DOCKER / ".env.example").read_text().splitlines()
    named = dict(re.findall(r"^(?:# )?([A-Z_]+)=(.*)$", "\n".join(lines), re.MULTILINE))

    assert used <= set(named)
    assert set(named) - used == {"COMPOSE_FILE"}
    assert all(line.startswith("#") for line in lines if line)


def test_git_ignores_the_files_with_the_secrets() -> None:
    assert {"docker/.env", "docker/secrets/"} <= set((ROOT / ".gitignore").read_text().splitlines())


def locked(file: str) -> list[str]:
    """The requirements of a file, without their hashes."""
    lines = (DOCKER / file).read_text().splitlines()
    return [line.removesuffix(" \\") for line in lines if re.match("[a-z]", line)]


@pytest.mark.parametrize("file", ["constraints.txt", "tools.txt"])
def test_every_package_is_pinned_by_its_version_and_hashes(file: str) -> None:
    text = (DOCKER / file).read_text()
    blocks = re.findall(r"^[a-z].*(?:\n    --hash=sha256:[0-9a-f]{64}.*)*", text, re.MULTILINE)

    assert len(blocks) == len(locked(file)) > 5
    assert all("--hash=" in block and re.match(r"[\w.-]+==\d", block) for block in blocks)


def test_the_constraints_fit_what_the_package_asks_for() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = locked("constraints.txt")
    pinned = {canonicalize_name(each.name): each.specifier for each in map(Requirement, lines)}
    extras = project["optional-dependencies"]
    wanted = project["dependencies"] + [
        each for name in ("discord", "flower", "postgres", "redis") for each in extras[name]
    ]

    for line in wanted:
        requirement = Requirement(line)
        (pin,) = pinned[canonicalize_name(requirement.name)]
        assert pin.operator == "=="
        assert requirement.specifier.contains(pin.version), line


@pytest.mark.parametrize("pairs", ["ada:lovelace", "ada:lovelace,grace:hopper:1906"])
def test_flower_starts_with_a_password(pairs: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLOWER_BASIC_AUTH", pairs)

    options = flower_options()

    assert options["read_only"] is True
    assert options["address"] == "0.0.0.0"


@pytest.mark.parametrize(
    "pairs", [None, "", "ada", "ada:", ":lovelace", "ada:lovelace,grace", "ada:lovelace,"]
)
def test_flower_does_not_start_without_one(pairs: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FLOWER_BASIC_AUTH", raising=False)
    if pairs is not None:
        monkeypatch.setenv("FLOWER_BASIC_AUTH", pairs)

    with pytest.raises(SystemExit, match="Flower is not started: FLOWER_BASIC_AUTH"):
        flower_options()


def flower_options() -> dict[str, Any]:
    """Run the file as Flower does."""
    options: dict[str, Any] = {}
    exec(compile((DOCKER / "flowerconfig.py").read_text(), "flowerconfig.py", "exec"), options)
    return options


@pytest.mark.parametrize(
    ("env", "expected"),
    [
        ({}, (None, None)),
        (
            {
                "CELERY_BROKER_URL": "redis://redis/0",
                "CKWORKFLOW_DATABASE_URL": "postgresql+psycopg://postgres/x",
            },
            ("redis://redis/0", "postgresql+psycopg://postgres/x"),
        ),
    ],
    ids=["embedded", "container"],
)
def test_the_projects_settings_take_broker_and_database_from_the_environment(
    env: dict[str, str], expected: tuple[str | None, str | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("CELERY_BROKER_URL", "CKWORKFLOW_DATABASE_URL"):
        monkeypatch.delenv(name, raising=False)
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "path", list(sys.path))
    settings: dict[str, Any] = {"__file__": str(ROOT / "celeryconfig.py")}

    exec(compile((ROOT / "celeryconfig.py").read_text(), "celeryconfig.py", "exec"), settings)

    assert (settings["broker_url"], settings["workflow_database_url"]) == expected
    assert settings["workflow_packages"] == ["workflows"]
