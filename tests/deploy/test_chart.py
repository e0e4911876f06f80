"""The Helm chart, rendered by helm: valid for Kubernetes, closed down, and in agreement with the code."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from stream_app.app import ROLES
from stream_app.rights import rights_of
from stream_app.settings import Settings, load_settings
from stream_app.topics import Topics
from tests.deploy.conftest import CHART, DEPLOY, Render, Run, find, missing, tools_folder

SCHEMAS = Path(__file__).parent / "schemas"
KUBERNETES = ("1.29.0", "1.37.0")
WHOLE: dict[str, Any] = {
    "image": {"digest": "sha256:" + "0" * 64},
    "imagePullSecrets": [{"name": "registry"}],
    "kafka": {
        "existingSecret": "kafka-user",
        "ca": {"secret": "kafka-cluster-ca-cert"},
        "variables": {"password": "password"},
    },
    "redis": {
        "existingSecret": "redis",
        "files": {
            "username_file": "username",
            "password_file": "password",
            "certificate_file": "tls.crt",
            "key_file": "tls.key",
        },
        "ca": {"secret": "redis-ca"},
    },
    "topics": {"userPartitions": 36},
    "settings": {
        "topics": {"prefix": "shop", "partitions": 12, "create": False},
        "connection": {"security_protocol": "SASL_SSL", "max_message_bytes": 2_097_152},
        "items": {"half_lives_days": [1, 7, 30]},
        "event_types": {"bookmark": {"weight": 2.5}},
    },
    "defaults": {
        "nodeSelector": {"kubernetes.io/arch": "amd64"},
        "tolerations": [{"key": "streams", "operator": "Exists"}],
        "affinity": {"nodeAffinity": {}},
        "priorityClassName": "high",
        "podLabels": {"team": "shop"},
        "podAnnotations": {"note": "x"},
        "env": [{"name": "TZ", "value": "UTC"}],
        "extraVolumes": [{"name": "model", "persistentVolumeClaim": {"claimName": "model", "readOnly": True}}],
        "extraVolumeMounts": [{"name": "model", "mountPath": "/models", "readOnly": True}],
    },
    "roles": {
        "interactions": {
            "settings": {"encoder": {"eager": False}},
            "snapshots": {"existingClaim": "snapshots"},
            "redis": {"existingSecret": "interactions-redis"},
        },
        "items": {"kafka": {"existingSecret": "items-user", "username": "shop-items"}},
        "catalogue": {"gpu": {"enabled": True}, "runtimeClassName": "nvidia"},
    },
    "keda": {"enabled": True, "triggerAuthentication": "kafka", "sasl": "scram_sha512", "tls": "enable"},
    "strimzi": {"namespace": "kafka", "topics": {"create": True}, "users": {"create": True}},
    "networkPolicy": {
        "kafka": {"ports": [9093], "to": [{"namespaceSelector": {"matchLabels": {"name": "kafka"}}}]},
        "metricsFrom": [{"namespaceSelector": {"matchLabels": {"name": "monitoring"}}}],
        "extraEgress": [{"to": [{"ipBlock": {"cidr": "192.0.2.7/32"}}], "ports": [{"port": 443}]}],
    },
    "metrics": {
        "podMonitor": {"enabled": True},
        "prometheusRule": {"enabled": True, "runbook": "https://shop.example/runbook"},
        "dashboard": {"enabled": True},
    },
}
"""Everything that can be switched on, at once."""
TOKEN: dict[str, Any] = {
    "kafka": {"token": {"audience": "kafka", "expirationSeconds": 7_200}, "ca": {"secret": "kafka-ca"}},
    "redis": {"url": "rediss://redis:6379/0", "existingSecret": "redis", "key": "", "files": {"password_file": "word"}},
    "settings": {"connection": {"security_protocol": "SASL_SSL", "sasl_mechanism": "OAUTHBEARER"}},
}
"""The ways in that exclude those of :data:`WHOLE`."""


@pytest.fixture(scope="module", params=[{}, WHOLE, TOKEN], ids=["as it comes", "everything", "token"])
def resources(request: pytest.FixtureRequest, render: Render) -> list[dict[str, Any]]:
    return render(request.param)


@pytest.fixture(scope="module")
def whole(render: Render) -> list[dict[str, Any]]:
    return render(WHOLE)


def of_kind(resources: list[dict[str, Any]], kind: str) -> dict[str, dict[str, Any]]:
    return {one["metadata"]["name"]: one for one in resources if one["kind"] == kind}


def pods(resources: list[dict[str, Any]]) -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    """Role, pod and its only container."""
    for deployment in of_kind(resources, "Deployment").values():
        pod = deployment["spec"]["template"]["spec"]
        (container,) = pod["containers"]
        yield deployment["metadata"]["labels"]["app.kubernetes.io/component"], pod, container


def strictly(*folders: Path) -> list[str]:
    """Options of kubeconform: unknown fields are refused, schemas come from these folders, resources from stdin."""
    places = (("-schema-location", f"{folder}/{{{{.ResourceKind}}}}{{{{.KindSuffix}}}}.json") for folder in folders)
    return ["-strict", *(word for place in places for word in place), "-"]


def variables(resources: list[dict[str, Any]], container: dict[str, Any]) -> dict[str, str]:
    """What the process finds in its environment; a value from a Secret is its key, and a URL such as might be there."""
    (config,) = (one for name, one in of_kind(resources, "ConfigMap").items() if "TAILRACE_KAFKA" in one["data"])
    assert container["envFrom"] == [{"configMapRef": {"name": config["metadata"]["name"]}}]
    own = {one["name"]: one.get("value") or one["valueFrom"]["secretKeyRef"]["key"] for one in container["env"] or []}
    if own.get("TAILRACE_REDIS") == "url":
        own["TAILRACE_REDIS"] = "rediss://redis:6379/0"
    return {**config["data"], **own}


def test_helm_finds_nothing_to_complain_of(run: Run) -> None:
    run("helm", "lint", "--strict", CHART)


@pytest.mark.parametrize("version", KUBERNETES)
def test_every_resource_is_valid_for_kubernetes(run: Run, resources: list[dict[str, Any]], version: str) -> None:
    """Against the schemas of Kubernetes, strictly; custom resources against our own of the fields that are used."""
    schemas = tools_folder() / "kubernetes" / f"v{version}"
    if not schemas.is_dir():
        missing(f"{schemas} is not there: make deploy-check fetches it")
    said = run("kubeconform", "-summary", *strictly(schemas, SCHEMAS), stdin=yaml.safe_dump_all(resources))
    assert f"Valid: {len(resources)}, Invalid: 0, Errors: 0, Skipped: 0" in said


@pytest.mark.parametrize(("file", "kind"), [("topics.yaml", "KafkaTopic"), ("users.yaml", "KafkaUser")])
def test_what_is_given_to_strimzi_without_the_chart_is_valid(run: Run, file: str, kind: str) -> None:
    text = (DEPLOY / "strimzi" / file).read_text(encoding="utf-8")
    resources = [one for one in yaml.safe_load_all(text) if one]
    assert {one["kind"] for one in resources} == {kind}
    said = run("kubeconform", "-summary", *strictly(SCHEMAS), stdin=text)
    assert f"Valid: {len(resources)}, Invalid: 0, Errors: 0, Skipped: 0" in said


def test_the_chart_is_checked_with_every_kind_of_custom_resource_that_it_can_make(whole: list[dict[str, Any]]) -> None:
    made = {f"{one['kind'].lower()}-{one['apiVersion'].split('.')[0]}" for one in whole}
    assert {path.stem.rpartition("-")[0] for path in SCHEMAS.iterdir()} <= made


def test_a_field_that_kubernetes_does_not_know_is_noticed(render: Render) -> None:
    """The check above can fail."""
    schemas = tools_folder() / "kubernetes" / f"v{KUBERNETES[0]}"
    (wrong,) = list(of_kind(render(), "PodDisruptionBudget").values())[:1]
    wrong["spec"]["maxUnavailble"] = 1
    done = subprocess.run(
        [find("kubeconform"), *strictly(schemas)],
        input=yaml.safe_dump(wrong),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "maxUnavailble" in done.stdout


def test_every_role_has_one_deployment_that_runs_it(resources: list[dict[str, Any]]) -> None:
    run_roles = {role: container["args"] for role, _, container in pods(resources)}
    assert run_roles == {role: ["up", "--role", role] for role in ROLES}


def test_pods_may_do_nothing_but_run(resources: list[dict[str, Any]]) -> None:
    for _, pod, container in pods(resources):
        assert pod["automountServiceAccountToken"] is False
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        writable = {mount["mountPath"] for mount in container["volumeMounts"] if not mount.get("readOnly")}
        assert writable == {"/tmp", "/var/lib/tailrace"}
        assert "memory" in container["resources"]["limits"]
        assert "cpu" not in container["resources"]["limits"]
    for account in of_kind(resources, "ServiceAccount").values():
        assert account["automountServiceAccountToken"] is False
    assert not of_kind(resources, "Role")
    assert not of_kind(resources, "ClusterRole")


def test_probes_ask_what_they_are_for(resources: list[dict[str, Any]]) -> None:
    for _, pod, container in pods(resources):
        paths = {probe: container[f"{probe}Probe"]["httpGet"]["path"] for probe in ("startup", "readiness", "liveness")}
        assert paths == {"startup": "/started", "readiness": "/ready", "liveness": "/live"}
        (port,) = container["ports"]
        assert {container[f"{probe}Probe"]["httpGet"]["port"] for probe in paths} == {port["name"]}
        # A first start reads the whole catalogue.
        assert container["startupProbe"]["periodSeconds"] * container["startupProbe"]["failureThreshold"] >= 1_800
        assert pod["terminationGracePeriodSeconds"] >= 30


def test_partitions_stay_served_through_rollouts_and_drains(resources: list[dict[str, Any]]) -> None:
    for deployment in of_kind(resources, "Deployment").values():
        assert deployment["spec"]["strategy"]["rollingUpdate"] == {"maxSurge": 1, "maxUnavailable": 0}
        spread = deployment["spec"]["template"]["spec"]["topologySpreadConstraints"]
        assert {one["topologyKey"] for one in spread} == {"kubernetes.io/hostname", "topology.kubernetes.io/zone"}
    budgets = of_kind(resources, "PodDisruptionBudget")
    assert set(budgets) == set(of_kind(resources, "Deployment"))
    assert all(budget["spec"]["maxUnavailable"] == 1 for budget in budgets.values())


def test_selectors_find_the_pods(resources: list[dict[str, Any]]) -> None:
    """Budgets, spreading and the network policy are of the pods they are meant for."""
    labels = {
        name: one["spec"]["template"]["metadata"]["labels"] for name, one in of_kind(resources, "Deployment").items()
    }
    for kind, path in (("Deployment", "selector"), ("PodDisruptionBudget", "selector")):
        for name, one in of_kind(resources, kind).items():
            wanted = one["spec"][path]["matchLabels"].items()
            assert [found for found, has in labels.items() if wanted <= has.items()] == [name]
    for policy in of_kind(resources, "NetworkPolicy").values():
        assert all(policy["spec"]["podSelector"]["matchLabels"].items() <= has.items() for has in labels.values())
    for monitor in of_kind(resources, "PodMonitor").values():
        assert all(monitor["spec"]["selector"]["matchLabels"].items() <= has.items() for has in labels.values())


def test_every_variable_is_a_setting_and_every_value_is_allowed(
    resources: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    known = set(setting_variables(Settings))
    for _, _, container in pods(resources):
        found = {name: value for name, value in variables(resources, container).items() if name.startswith("TAILRACE_")}
        assert set(found) <= known | {"TAILRACE_EVENT_TYPES"}
        with monkeypatch.context() as environment:
            for name, value in found.items():
                environment.setenv(name, value)
            settings = load_settings()
            assert settings.metrics.port == container["ports"][0]["containerPort"]
            assert settings.replica.directory == "/var/lib/tailrace"


def setting_variables(model: Any, prefix: str = "TAILRACE_") -> Iterator[str]:
    for name, field in model.model_fields.items():
        if hasattr(field.annotation, "model_fields"):
            yield from setting_variables(field.annotation, f"{prefix}{name.upper()}__")
        else:
            yield f"{prefix}{name.upper()}"


def test_large_numbers_lists_and_tables_arrive_as_they_were_given(
    whole: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    found = {role: variables(whole, container) for role, _, container in pods(whole)}
    for name, value in found["interactions"].items():
        if name.startswith("TAILRACE_"):
            monkeypatch.setenv(name, value)
    settings = load_settings()
    assert settings.connection.max_message_bytes == 2_097_152
    assert settings.items.half_lives_days == (1.0, 7.0, 30.0)
    assert settings.event_types["bookmark"].weight == 2.5
    assert settings.encoder.eager is False
    assert "TAILRACE_ENCODER__EAGER" not in found["items"]


def test_secrets_are_named_and_never_written(whole: list[dict[str, Any]]) -> None:
    assert not of_kind(whole, "Secret")
    for role, pod, container in pods(whole):
        by_name = {one["name"]: one for one in container["env"]}
        secret = "items-user" if role == "items" else "kafka-user"
        redis = "interactions-redis" if role == "interactions" else "redis"
        assert by_name["TAILRACE_REDIS"]["valueFrom"]["secretKeyRef"] == {"name": redis, "key": "url"}
        password = by_name["TAILRACE_CONNECTION__PASSWORD"]["valueFrom"]["secretKeyRef"]
        assert password == {"name": secret, "key": "password"}
        assert ("TAILRACE_CONNECTION__USERNAME" in by_name) == (role == "items")
        mounted = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
        assert by_name["TAILRACE_CONNECTION__CA_FILE"]["value"] == f"{mounted['kafka-ca']}/ca.crt"
        assert by_name["TAILRACE_REDIS_CONNECTION__CA_FILE"]["value"] == f"{mounted['redis-ca']}/ca.crt"
        for setting, key in WHOLE["redis"]["files"].items():
            assert by_name[f"TAILRACE_REDIS_CONNECTION__{setting.upper()}"]["value"] == f"{mounted['redis']}/{key}"
        volumes = {one["name"]: one["secret"]["secretName"] for one in pod["volumes"] if "secret" in one}
        assert volumes == {
            "kafka": secret,
            "kafka-ca": "kafka-cluster-ca-cert",
            "redis": redis,
            "redis-ca": "redis-ca",
        }


def test_files_of_secrets_follow_a_rotation(resources: list[dict[str, Any]]) -> None:
    """A file mounted by itself (``subPath``) stays as it was when the pod began; every mount has its volume."""
    for _, pod, container in pods(resources):
        assert not any("subPath" in mount for mount in container["volumeMounts"])
        assert {mount["name"] for mount in container["volumeMounts"]} == {one["name"] for one in pod["volumes"]}


def test_a_token_of_the_service_account_is_mounted_and_named(render: Render) -> None:
    for _, pod, container in pods(render(TOKEN)):
        mounted = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
        found = {one["name"]: one.get("value") for one in container["env"]}
        (volume,) = (one for one in pod["volumes"] if "projected" in one)
        (source,) = volume["projected"]["sources"]
        token = source["serviceAccountToken"]
        assert (token["audience"], token["expirationSeconds"]) == ("kafka", 7_200)
        assert found["TAILRACE_CONNECTION__OAUTH_TOKEN_FILE"] == f"{mounted[volume['name']]}/{token['path']}"
        # The kubelet gives it to the pod although nothing else of the service account is.
        assert pod["automountServiceAccountToken"] is False


def test_a_redis_secret_without_a_url_leaves_the_url_to_the_values(render: Render) -> None:
    resources = render(TOKEN)
    for _, _, container in pods(resources):
        found = variables(resources, container)
        assert found["TAILRACE_REDIS"] == "rediss://redis:6379/0"
        assert found["TAILRACE_REDIS_CONNECTION__PASSWORD_FILE"].endswith("/redis/word")


def test_further_volumes_reach_every_role_and_a_roles_own_stand_for_them(render: Render) -> None:
    mount = {"name": "secrets", "mountPath": "/secrets", "readOnly": True}
    own = {"name": "secrets", "csi": {"driver": "secrets.example", "readOnly": True}}
    values = {**WHOLE, "roles": {"ranker": {"extraVolumes": [own], "extraVolumeMounts": [mount]}}}
    for role, pod, container in pods(render(values)):
        wanted = {"secrets"} if role == "ranker" else {"model"}
        assert {"secrets", "model"} & {one["name"] for one in pod["volumes"]} == wanted
        assert {"secrets", "model"} & {one["name"] for one in container["volumeMounts"]} == wanted
        assert own in pod["volumes"] or role != "ranker"


def test_a_catalogue_with_a_gpu_asks_for_one_and_for_the_cuda_image(whole: list[dict[str, Any]]) -> None:
    found = {role: container for role, _, container in pods(whole)}
    assert found["catalogue"]["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert found["catalogue"]["image"] == "tailrace:0.1.0-cuda"
    assert variables(whole, found["catalogue"])["TAILRACE_ENCODER__DEVICE"] == "cuda"
    for role in ("interactions", "items", "ranker"):
        assert "nvidia.com/gpu" not in found[role]["resources"]["limits"]
        assert found[role]["image"] == "tailrace@sha256:" + "0" * 64


def test_keda_watches_the_groups_and_topics_that_the_roles_use(whole: list[dict[str, Any]]) -> None:
    topics = Topics(load_settings(topics={"prefix": "shop"}))
    watched = {
        one["metadata"]["labels"]["app.kubernetes.io/component"]: one for one in of_kind(whole, "ScaledObject").values()
    }
    expected = {"interactions": topics.interactions, "items": topics.transitions, "catalogue": topics.items}
    assert set(watched) == set(expected), "the ranker has one partition"
    rights = rights_of("keda", load_settings(topics={"prefix": "shop"}))
    asked = {("topic", topic) for topic in expected.values()} | {("group", topics.group(role)) for role in expected}
    assert {(right.resource, right.name) for right in rights} == asked, (
        "KEDA's own user may ask for these, and no others"
    )
    for role, one in watched.items():
        (trigger,) = one["spec"]["triggers"]
        metadata = trigger["metadata"]
        assert metadata["topic"] == expected[role]
        assert metadata["consumerGroup"] == topics.group(role)
        assert metadata["limitToPartitionsWithLag"] == "true"
        assert one["spec"]["maxReplicaCount"] == (36 if role == "interactions" else 12), "as many as partitions"
        assert one["spec"]["scaleTargetRef"]["name"] in of_kind(whole, "Deployment")
    # A number of replicas of ours would undo KEDA's at every upgrade.
    for name, deployment in of_kind(whole, "Deployment").items():
        assert ("replicas" in deployment["spec"]) == name.endswith("-ranker")


def test_no_role_is_scaled_beyond_its_partitions_nor_beyond_what_it_may_have(render: Render) -> None:
    values = {
        "keda": {"enabled": True},
        "topics": {"userPartitions": 24},
        "roles": {
            "interactions": {"scaling": {"maxReplicas": 20}},
            "items": {"scaling": {"maxReplicas": 20}},
            "catalogue": {"scaling": {"maxReplicas": 3}},
        },
    }
    most = {
        one["metadata"]["labels"]["app.kubernetes.io/component"]: one["spec"]["maxReplicaCount"]
        for one in of_kind(render(values), "ScaledObject").values()
    }
    assert most == {"interactions": 20, "items": 8, "catalogue": 3}


def test_the_ranker_is_not_scaled_though_it_is_asked_for(render: Render) -> None:
    resources = render({"roles": {"ranker": {"scaling": {"enabled": True}}}})
    assert not of_kind(resources, "ScaledObject")
    assert of_kind(resources, "Deployment")["shop-tailrace-ranker"]["spec"]["replicas"] == 1


def test_topics_of_strimzi_are_those_of_the_registry(whole: list[dict[str, Any]]) -> None:
    settings = load_settings(topics={"prefix": "shop", "partitions": 12})
    topics = Topics(settings)
    made = {one["spec"]["topicName"]: one for one in of_kind(whole, "KafkaTopic").values()}
    assert set(made) == set(topics.by_full_name)
    # The topics that `tailrace topics grow` may raise, and no others: who owns an item follows from the partitions.
    raised = {right.name for right in rights_of("operator", settings) if right.operation == "Alter"}
    assert len(raised) == 2
    for name, topic in topics.by_full_name.items():
        assert made[name]["spec"]["partitions"] == (36 if name in raised else topics.partitions(topic))
        assert topics.config(topic).items() <= made[name]["spec"]["config"].items()
        assert made[name]["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"
        assert made[name]["metadata"]["namespace"] == "kafka"


def test_users_of_strimzi_are_renamed_with_prefix_cluster_and_namespace(render: Render) -> None:
    values = {"settings": {"topics": {"prefix": "shop"}}, "strimzi": {"cluster": "events", "users": {"create": True}}}
    users = of_kind(render(values), "KafkaUser")
    assert {f"shop-{role}" for role in (*ROLES, "keda")} <= set(users)
    for user in users.values():
        assert user["metadata"]["labels"]["strimzi.io/cluster"] == "events"
        assert user["metadata"]["namespace"] == "shops"
    assert "tailrace" not in yaml.safe_dump([user["spec"] for user in users.values()])


def test_the_network_is_open_to_what_is_needed_alone(whole: list[dict[str, Any]]) -> None:
    (policy,) = of_kind(whole, "NetworkPolicy").values()
    assert set(policy["spec"]["policyTypes"]) == {"Ingress", "Egress"}
    assert [sorted({one["port"] for one in rule["ports"]}) for rule in policy["spec"]["egress"]] == [
        [9093],
        [6379],
        [53],
        [443],
    ]
    (ingress,) = policy["spec"]["ingress"]
    assert ingress["ports"] == [{"protocol": "TCP", "port": "metrics"}]
    assert ingress["from"]


def test_the_values_that_the_readme_begins_with_render(render: Render) -> None:
    text = (DEPLOY / "README.md").read_text(encoding="utf-8")
    (values,) = (block for block in re.findall(r"```yaml\n(.*?)```", text, re.DOTALL) if "bootstrapServers" in block)
    resources = render(yaml.safe_load(values.replace("sha256:...", "sha256:" + "0" * 64)))
    kinds = {one["kind"] for one in resources}
    assert {"Deployment", "ScaledObject", "KafkaTopic", "PodMonitor", "PrometheusRule", "NetworkPolicy"} <= kinds


def test_alerts_of_the_chart_lead_to_the_runbook_that_is_named(whole: list[dict[str, Any]]) -> None:
    (rules,) = of_kind(whole, "PrometheusRule").values()
    alerts = [rule for group in rules["spec"]["groups"] for rule in group["rules"] if "alert" in rule]
    assert len(alerts) > 10
    for alert in alerts:
        assert re.fullmatch(r"https://shop\.example/runbook#[a-z]+", alert["annotations"]["runbook_url"])


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"roles": {"rankr": {}}}, "rankr"),
        ({"metrics": {"port": 80}}, "/metrics/port"),
        ({"image": {"digest": "latest"}}, "/image/digest"),
        ({"kafka": {"files": {"ca_file": "ca.crt"}}}, "set kafka.existingSecret"),
        ({"kafka": {"token": {"audience": "kafka", "expirationSeconds": 60}}}, "/kafka/token/expirationSeconds"),
        ({"redis": {"files": {"password_file": "password"}}}, "set redis.existingSecret"),
        ({"redis": {"files": {"Password": "password"}}}, "'Password' does not match"),
        ({"topics": {"userPartitions": "24"}}, "/topics/userPartitions"),
        (
            {"topics": {"userPartitions": 12}, "keda": {"enabled": True}},
            "12 is no multiple of settings.topics.partitions (8)",
        ),
        ({"topics": {"userPartitions": 4}, "strimzi": {"topics": {"create": True}}}, "4 is no multiple"),
        ({"defaults": {"extraVolumeMounts": [{"name": "model"}]}}, "mountPath"),
        ({"podSecurityContext": {"runAsNonRoot": False}}, "/podSecurityContext/runAsNonRoot"),
        ({"defaults": {"probes": {"liveness": {"path": "/"}}}}, "path"),
        ({"settings": {"topics": {"prefix": "a b"}}}, "prefix"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_wrong_values_are_refused_with_their_place(wrong: dict[str, Any], said: str) -> None:
    done = subprocess.run(
        [find("helm"), "template", "shop", str(CHART), "-f", "-"],
        input=yaml.safe_dump(wrong),
        capture_output=True,
        text=True,
    )
    assert done.returncode != 0
    assert said in done.stderr
