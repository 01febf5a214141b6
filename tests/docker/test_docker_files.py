"""The files of `docker/` without an engine: by their schema, by Compose itself, by a linter, and by what they promise."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import dockerfile
from ckworkflow.worker import runtime
from docker_env import BIN, DOCKER, SECRETS, compose

ROOT = Path(__file__).parents[2]
PIN = re.compile(r"[a-z]+:\d+\.\d+(\.\d+)?-[a-z-]+@sha256:[0-9a-f]{64}")


@pytest.fixture(scope="module")
def config() -> dict[str, Any]:
    """The compose file as Compose understands it."""
    done = compose("config", "--format", "json", **SECRETS)
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


@pytest.mark.slow
@pytest.mark.parametrize("missing", SECRETS)
@pytest.mark.parametrize("value", [None, ""], ids=["absent", "empty"])
def test_compose_starts_nothing_while_a_secret_is_missing(missing: str, value: str | None) -> None:
    given = {name: secret for name, secret in SECRETS.items() if name != missing}
    if value is not None:
        given[missing] = value

    done = compose("config", "--quiet", **given)

    assert done.returncode != 0
    assert f"{missing} is missing a value: is missing in .env" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("file", ["compose.own-bot.yaml", "compose.mount.yaml"])
def test_a_bot_of_the_users_own_takes_the_place_of_the_example_in_every_image(file: str) -> None:
    files = ("compose.yaml", file)
    without = compose("config", "--quiet", files=files, **SECRETS)
    done = compose("config", "--format", "json", files=files, BOT_FOLDER="/home/ada/bot", **SECRETS)

    assert "BOT_FOLDER is missing a value" in without.stderr
    services = json.loads(done.stdout)["services"]
    for name in ("bot", "worker", "flower", "migrate"):
        if file == "compose.own-bot.yaml":
            assert services[name]["build"]["additional_contexts"] == {"project": "/home/ada/bot"}
            assert services[name]["build"]["target"] == name
        else:
            (volume,) = services[name]["volumes"]
            assert (volume["source"], volume["target"]) == ("/home/ada/bot", "/app")
            assert volume["read_only"] is True


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
    holders = {
        secret: {
            name
            for name, service in config["services"].items()
            if any(secret in value for value in service["environment"].values())
        }
        for secret in SECRETS.values()
    }

    assert holders == {
        SECRETS["DISCORD_TOKEN"]: {"bot", "worker"},
        SECRETS["POSTGRES_PASSWORD"]: {"bot", "worker", "migrate", "postgres"},
        SECRETS["REDIS_PASSWORD"]: {"bot", "worker", "flower", "redis"},
        SECRETS["FLOWER_BASIC_AUTH"]: {"flower"},
    }
    # A command line is on show in every list of processes.
    commands = json.dumps([service.get("command") for service in config["services"].values()])
    assert not any(secret in commands for secret in SECRETS.values())


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
        assert dockerfile.image(dockerfile.read(), stage).command[0] in {
            "python",
            "celery",
            "ckworkflow",
        }


def test_the_example_environment_names_every_variable_and_no_value() -> None:
    texts = [path.read_text() for path in DOCKER.glob("compose*.yaml")]
    used = {name for text in texts for name in re.findall(r"(?<!\$)\$\{(\w+)", text)}
    lines = (DOCKER / ".env.example").read_text().splitlines()
    named = dict(re.findall(r"^(?:# )?([A-Z_]+)=(.*)$", "\n".join(lines), re.MULTILINE))

    assert used <= set(named)
    assert set(named) - used == {"COMPOSE_FILE"}
    assert {name for name in SECRETS if named[name] == ""} == set(SECRETS)
    assert set(SECRETS) <= {line.partition("=")[0] for line in lines}


def test_git_ignores_the_file_with_the_secrets() -> None:
    assert "docker/.env" in (ROOT / ".gitignore").read_text().splitlines()


def test_the_constraints_fit_what_the_package_asks_for() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = (DOCKER / "constraints.txt").read_text().splitlines()
    pinned = {
        canonicalize_name(each.name): each.specifier
        for each in map(Requirement, lines[4:])
        if each.specifier
    }
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
