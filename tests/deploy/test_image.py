"""The Dockerfile: what hadolint says of it, and what it promises. It is not built here: that takes
a registry of images and ten minutes."""

from __future__ import annotations

import fnmatch
import json
import re

from stream_app.cli.root import COMMANDS
from stream_app.settings import Settings
from tests.deploy.conftest import CHART, DEPLOY, ROOT, Run
from tests.deploy.test_chart import setting_variables

FILE = DEPLOY / "image" / "Dockerfile"
TEXT = FILE.read_text(encoding="utf-8")
INSTRUCTIONS = [
    re.sub(r"\s+", " ", line.strip())
    for line in re.sub(r"\\\n", " ", re.sub(r"^\s*#.*\n", "", TEXT, flags=re.MULTILINE)).splitlines()
    if line.strip()
]
LAST_STAGE = INSTRUCTIONS[max(place for place, line in enumerate(INSTRUCTIONS) if line.startswith("FROM ")) :]


def environment() -> dict[str, str]:
    text = " ".join(line.removeprefix("ENV ") for line in LAST_STAGE if line.startswith("ENV "))
    return {name: value.strip('"') for name, value in re.findall(r"(\w+)=(\"[^\"]*\"|\S+)", text)}


def test_hadolint_finds_nothing_to_complain_of(run: Run) -> None:
    run("hadolint", "--failure-threshold", "style", FILE)


def test_the_base_is_pinned_by_digest() -> None:
    (base,) = (line for line in INSTRUCTIONS if line.startswith("ARG PYTHON_IMAGE="))
    assert re.search(r"=python:3\.\d+\.\d+-slim-\w+@sha256:[0-9a-f]{64}$", base)
    bases = [line.split()[1] for line in INSTRUCTIONS if line.startswith("FROM ")]
    stages = {line.split()[3] for line in INSTRUCTIONS if line.startswith("FROM ")}
    assert all(base == "${PYTHON_IMAGE}" or base in stages or base == "packages-${VARIANT}" for base in bases)


def test_what_is_copied_exists_and_is_not_kept_from_the_build() -> None:
    lines = (DEPLOY / "image" / "Dockerfile.dockerignore").read_text(encoding="utf-8").splitlines()
    shown = [line.removeprefix("!") for line in lines if line.startswith("!")]
    for line in INSTRUCTIONS:
        if line.startswith("COPY ") and "--from" not in line:
            for source in line.split()[1:-1]:
                assert (ROOT / source).exists(), line
                assert any(fnmatch.fnmatch(source, pattern) for pattern in shown), f"{source} is not shown to the build"


def test_it_runs_as_somebody_without_rights_and_a_shell_is_not_needed() -> None:
    (user,) = (line.split()[1] for line in LAST_STAGE if line.startswith("USER "))
    uid, gid = (int(part) for part in user.split(":"))
    assert uid > 0
    values = (CHART / "values.yaml").read_text(encoding="utf-8")
    assert f"runAsUser: {uid}" in values
    assert f"runAsGroup: {gid}" in values
    for name in ("ENTRYPOINT", "CMD"):
        (line,) = (line for line in LAST_STAGE if line.startswith(f"{name} "))
        assert isinstance(json.loads(line.removeprefix(f"{name} ")), list), "exec form"
    (check,) = (line for line in LAST_STAGE if line.startswith("HEALTHCHECK "))
    program, command, *_ = json.loads(check.partition(" CMD ")[2])
    assert program == "tailrace"
    assert command in COMMANDS


def test_its_variables_are_settings_and_what_it_writes_to_can_be_mounted() -> None:
    found = environment()
    assert {name for name in found if name.startswith("TAILRACE_")} <= set(setting_variables(Settings))
    assert found["TAILRACE_REPLICA__DIRECTORY"] in next(line for line in LAST_STAGE if line.startswith("VOLUME "))
    assert found["NUMBA_CACHE_DIR"].startswith("/tmp/")
    assert found["MPLCONFIGDIR"].startswith("/tmp/")
    assert f"EXPOSE {found['TAILRACE_METRICS__PORT']}" in LAST_STAGE
    assert f"port: {found['TAILRACE_METRICS__PORT']}" in (CHART / "values.yaml").read_text(encoding="utf-8")


def test_functions_are_compiled_for_the_processor_they_are_run_for() -> None:
    """Else what the image brings is not found, and every process compiles for a minute."""
    (compiling,) = (line for line in INSTRUCTIONS if "warm_up" in line)
    for name in ("NUMBA_CPU_NAME", "NUMBA_CPU_FEATURES"):
        (said,) = re.findall(rf'{name}="([^"]*)"', compiling)
        assert environment()[name] == said
    assert "NUMBA_CACHE_DIR=/opt/tailrace/compiled" in compiling, "where stream_app.container looks"
