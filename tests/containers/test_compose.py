"""docker-compose.yml: required secrets, restricted containers and health checks."""

from __future__ import annotations

import re

import pytest
import yaml

from local.supervisor import GRACE_SECONDS
from tests.support import container_files
from webapp.core.settings import ROOT

NAMES = sorted(container_files.services())
LONG_RUNNING = [name for name in NAMES if name != "migrate"]


@pytest.mark.parametrize("missing", ["POSTGRES_PASSWORD", "SECRET_KEY"])
def test_without_a_secret_nothing_starts_and_the_error_names_make_env(missing: str) -> None:
    given = {"POSTGRES_PASSWORD": "one", "SECRET_KEY": "two", missing: ""}

    with pytest.raises(container_files.MissingValue, match=rf"^{missing}: .*make env"):
        container_files.compose(given)


def test_no_secret_has_a_default() -> None:
    for name, service in yaml.safe_load(container_files.COMPOSE.read_text())["services"].items():
        for setting, value in service.get("environment", {}).items():
            if re.search("PASSWORD|SECRET|KEY|DATABASE_URL", setting):
                assert re.search(r"\$\{\w+:\?", str(value)), f"{name}: {setting}"


@pytest.mark.parametrize("name", NAMES)
def test_a_container_has_minimal_privileges(name: str) -> None:
    service = container_files.services()[name]

    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert "cap_add" not in service
    assert "privileged" not in service
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["init"] is True


@pytest.mark.parametrize("name", NAMES)
def test_a_container_has_resource_limits(name: str) -> None:
    service = container_files.services()[name]

    assert {"cpus", "memory", "pids"} <= service["deploy"]["resources"]["limits"].keys()
    assert {"max-size", "max-file"} <= service["logging"]["options"].keys()


@pytest.mark.parametrize("name", LONG_RUNNING)
def test_a_long_running_container_has_a_health_check_and_is_restarted(name: str) -> None:
    service = container_files.services()[name]

    assert service["restart"] == "unless-stopped"
    if name == "web":
        assert "healthcheck" not in service  # the image's own
        assert container_files.image_health_check()[0] == "python"
    else:
        assert service["healthcheck"]["test"][0] == "CMD"


def test_migrations_run_once_before_the_other_services() -> None:
    services = container_files.services()

    assert services["migrate"]["restart"] == "no"
    assert services["migrate"]["depends_on"] == {"db": {"condition": "service_healthy"}}
    for name in ("web", "worker"):
        assert services[name]["depends_on"] == {
            "db": {"condition": "service_healthy"},
            "migrate": {"condition": "service_completed_successfully"},
        }


@pytest.mark.parametrize("name", NAMES)
def test_images_are_pinned_or_built_here(name: str) -> None:
    service = container_files.services()[name]

    if service["image"] == "onecode:local":
        assert service["pull_policy"] == "never"
    else:
        assert re.search(r":v?\d+(\.\d+)*(-\w+)?$", service["image"]), service["image"]


def test_the_image_of_the_program_is_built_once() -> None:
    assert [name for name, service in container_files.services().items() if "build" in service] == ["migrate"]


@pytest.mark.parametrize("name", NAMES)
def test_ports_are_published_only_on_loopback(name: str) -> None:
    for port in container_files.services()[name].get("ports", []):
        assert port.startswith("127.0.0.1:"), port


@pytest.mark.parametrize("name", ["web", "worker"])
def test_the_grace_period_matches_that_of_the_program(name: str) -> None:
    grace = container_files.services()[name]["stop_grace_period"]

    assert int(grace.removesuffix("s")) == GRACE_SECONDS
    assert f"TimeoutStopSec={GRACE_SECONDS}\n" in (ROOT / "docs" / "operations" / "machines.md").read_text()
    assert f"--stop-timeout {grace.removesuffix('s')}" in container_files.DOCKERFILE.read_text()


def test_web_and_worker_can_be_scaled() -> None:
    given = {"POSTGRES_PASSWORD": "a", "SECRET_KEY": "b", "PUBLISHED_PORT": "8000-8002"}
    services = container_files.services(given)

    assert services["web"]["ports"] == ["127.0.0.1:8000-8002:8000"]
    assert [name for name, service in services.items() if "container_name" in service] == []


def test_persistent_data_is_in_named_volumes() -> None:
    mounted = {volume.partition(":")[0] for s in container_files.services().values() for volume in s.get("volumes", [])}

    assert (
        mounted
        == set(container_files.compose({"POSTGRES_PASSWORD": "a", "SECRET_KEY": "b"})["volumes"])
        == {"db", "mail"}
    )


def test_the_web_container_may_write_where_its_processes_count_together() -> None:
    services = container_files.services()
    user = dict(container_files.final_stage())["USER"]
    owner = "uid={},gid={}".format(*user.split(":"))
    (mount,) = [mount for mount in services["web"]["tmpfs"] if "/metrics:" in mount]

    # The folder of `web_metrics.share_between_processes`.
    assert mount == f"{services['web']['environment']['INSTANCE_PATH']}/metrics:size=1m,{owner},mode=0700"
    # The secret key and other files that must survive a restart cannot be written there.
    assert set(services["web"]["tmpfs"]) - {mount} == set(services["worker"]["tmpfs"])
    assert f"--tmpfs {mount} " in (ROOT / "docs" / "containers.md").read_text()


def test_settings_for_a_program_outside_of_containers_do_not_change_them() -> None:
    environment = container_files.services()["web"]["environment"]

    # Both files may have these settings; the compose file takes precedence over `.env`.
    assert environment["DATABASE_URL"] == "postgresql://onecode:secret@db/onecode"
    assert environment["PORT"] == "8000"
    assert environment["WEB_HOST"] == "0.0.0.0"
    assert environment["INSTANCE_PATH"] == "/app/instance"


def test_git_and_the_image_exclude_secrets() -> None:
    assert ".env" in (ROOT / ".gitignore").read_text().splitlines()
    assert (ROOT / ".dockerignore").read_text().splitlines()[1] == "*"
