"""The compose file, as Compose reads it: valid, every role there, closed down, and what it mounts exists."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from stream_app.app import ROLES
from stream_app.settings import Settings
from tests.deploy.conftest import DEPLOY, find
from tests.deploy.test_chart import setting_variables

FILE = DEPLOY / "compose" / "compose.yaml"


def resolved(file: Path) -> subprocess.CompletedProcess[str]:
    """The file as Compose resolves it: by compose-go, the library behind `docker compose config`, or by that itself."""
    docker = shutil.which("docker")
    plugin = docker and subprocess.run([docker, "compose", "version"], capture_output=True).returncode == 0
    command = [str(docker), "compose", "--file", str(file), "--profile", "tools", "config"]
    if not plugin:
        command = [find("compose-go"), str(file)]
    return subprocess.run(command, capture_output=True, text=True, cwd=file.parent, timeout=60)


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    done = resolved(FILE)
    assert done.returncode == 0, done.stderr
    project = yaml.safe_load(done.stdout)
    assert isinstance(project, dict)
    return project


def test_a_key_that_compose_does_not_know_is_refused(tmp_path: Path) -> None:
    """The check can fail."""
    (tmp_path / "compose.yaml").write_text("services: {a: {image: a, comand: b}}")
    assert resolved(tmp_path / "compose.yaml").returncode != 0


def test_every_role_runs_and_so_does_what_it_needs(project: dict[str, Any]) -> None:
    services = project["services"]
    for role in ROLES:
        assert services[role]["command"] == ["up", "--role", role]
        assert set(services[role]["depends_on"]) == {"kafka", "redis"}
        assert all(one["condition"] == "service_healthy" for one in services[role]["depends_on"].values())
    assert {"kafka", "redis", "prometheus", "grafana"} <= set(services)


def test_roles_may_do_nothing_but_run(project: dict[str, Any]) -> None:
    for role in ROLES:
        service = project["services"][role]
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert service["mem_limit"]


def test_variables_are_settings(project: dict[str, Any]) -> None:
    known = set(setting_variables(Settings))
    for role in ROLES:
        assert set(project["services"][role]["environment"]) <= known


def test_images_are_pinned_and_nothing_listens_beyond_this_machine(project: dict[str, Any]) -> None:
    for name, service in project["services"].items():
        _, _, tag = service["image"].rpartition(":")
        assert tag not in {"", "latest"}, name
        for port in service.get("ports", []):
            assert port["host_ip"] == "127.0.0.1", name


def test_what_is_mounted_exists(project: dict[str, Any]) -> None:
    for name, service in project["services"].items():
        for volume in service.get("volumes", []):
            if volume["type"] == "bind":
                assert Path(volume["source"]).exists(), f"{name} mounts {volume['source']}"
            else:
                assert volume["source"] in project["volumes"], name
    build = project["services"]["interactions"]["build"]
    assert (Path(build["context"]) / build["dockerfile"]).exists()


def test_prometheus_asks_every_role_and_grafana_has_its_dashboard() -> None:
    scrape = yaml.safe_load((DEPLOY / "compose" / "prometheus.yml").read_text(encoding="utf-8"))["scrape_configs"]
    (discovery,) = scrape[0]["dns_sd_configs"]
    assert set(discovery["names"]) == set(ROLES)
    provisioning = DEPLOY / "compose" / "grafana" / "provisioning"
    (source,) = yaml.safe_load((provisioning / "datasources" / "prometheus.yaml").read_text())["datasources"]
    assert source["type"] == "prometheus"
    (provider,) = yaml.safe_load((provisioning / "dashboards" / "tailrace.yaml").read_text())["providers"]
    mounted = yaml.safe_load(FILE.read_text())["services"]["grafana"]["volumes"]
    assert any(f":{provider['options']['path']}/" in volume for volume in mounted)
