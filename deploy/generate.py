"""Writes what is generated under deploy/: ``python -m deploy.generate``. A test tells when that was forgotten."""

from __future__ import annotations

import sys
from pathlib import Path

from deploy.grafana.dashboard import dashboard_json
from stream_app.settings import Settings
from stream_app.strimzi import chart_topics, strimzi_topics

__all__ = ["generated"]

_DEPLOY = Path(__file__).parent
_CHART = _DEPLOY / "helm" / "tailrace" / "files"


def generated() -> dict[Path, str]:
    """What belongs into which file. A chart reads nothing outside its folder, so it has copies of some."""
    settings = Settings.model_construct()  # the defaults, whatever the environment says
    dashboard = dashboard_json()
    files = {
        _DEPLOY / "strimzi" / "topics.yaml": strimzi_topics(settings, cluster="kafka"),
        _CHART / "topics.yaml": chart_topics(settings),
        _DEPLOY / "grafana" / "tailrace.json": dashboard,
        _CHART / "dashboard.json": dashboard,
        _CHART / "alerts.yaml": (_DEPLOY / "prometheus" / "alerts.yaml").read_text(encoding="utf-8"),
    }
    users = _DEPLOY / "strimzi" / "users.yaml"  # printed by another command, from the rights of the roles
    if users.exists():
        files[_CHART / "kafka-users.yaml"] = users.read_text(encoding="utf-8")
    return files


if __name__ == "__main__":
    for path, text in generated().items():
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
            sys.stdout.write(f"written: {path.relative_to(_DEPLOY.parent)}\n")
