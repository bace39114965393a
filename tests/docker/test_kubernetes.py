"""Files for Kubernetes: valid by its schemas and KubeRay's reference, safe, with real commands."""

from __future__ import annotations

import functools
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from raykd.cli import commands as cli

FOLDER = Path(__file__).parents[2] / "docker" / "kubernetes"
RAY_FILES = ("raycluster.yaml", "rayjob.yaml")

# Fields of ray.io/v1 by the reference of KubeRay 1.6, as far as they can be of use here.
RAY_JOB = {
    "activeDeadlineSeconds",
    "backoffLimit",
    "rayClusterSpec",
    "submitterPodTemplate",
    "metadata",
    "clusterSelector",
    "submitterConfig",
    "managedBy",
    "deletionStrategy",
    "entrypoint",
    "runtimeEnvYAML",
    "jobId",
    "submissionMode",
    "entrypointResources",
    "entrypointNumCpus",
    "entrypointNumGpus",
    "ttlSecondsAfterFinished",
    "shutdownAfterJobFinishes",
    "suspend",
}
RAY_CLUSTER = {
    "authOptions",
    "suspend",
    "managedBy",
    "autoscalerOptions",
    "headServiceAnnotations",
    "enableInTreeAutoscaling",
    "gcsFaultToleranceOptions",
    "headGroupSpec",
    "rayVersion",
    "workerGroupSpecs",
}
AUTOSCALER = {
    "resources",
    "image",
    "imagePullPolicy",
    "securityContext",
    "idleTimeoutSeconds",
    "upscalingMode",
    "version",
    "env",
    "envFrom",
    "volumeMounts",
}
HEAD_GROUP = {"template", "headService", "enableIngress", "rayStartParams", "serviceType"}
WORKER_GROUP = {
    "suspend",
    "groupName",
    "replicas",
    "minReplicas",
    "maxReplicas",
    "idleTimeoutSeconds",
    "rayStartParams",
    "template",
    "scaleStrategy",
    "numOfHosts",
}


@functools.cache
def documents(name: str) -> tuple[dict[str, Any], ...]:
    return tuple(yaml.safe_load_all((FOLDER / name).read_text()))


def named(kind: str) -> dict[str, dict[str, Any]]:
    """The plain parts of a kind, by name."""
    parts = [each for each in documents("base.yaml") if each["kind"] == kind]
    return {each["metadata"]["name"]: each for each in parts}


def cluster_of(name: str) -> dict[str, Any]:
    (document,) = documents(name)
    spec = document["spec"]
    return spec["rayClusterSpec"] if document["kind"] == "RayJob" else spec


def groups_of(name: str) -> list[dict[str, Any]]:
    cluster = cluster_of(name)
    return [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]


def templates_of(name: str) -> list[dict[str, Any]]:
    (document,) = documents(name)
    templates = [group["template"] for group in groups_of(name)]
    submitter = document["spec"].get("submitterPodTemplate")
    return [*templates, submitter] if submitter else templates


def test_plain_parts_fit_schemas_of_kubernetes() -> None:
    validate = pytest.importorskip("kubernetes_validate")
    for document in documents("base.yaml"):
        validate.validate(document, "1.33", strict=True)


@pytest.mark.parametrize("name", RAY_FILES)
def test_pods_fit_schemas_of_kubernetes(name: str) -> None:
    validate = pytest.importorskip("kubernetes_validate")
    for template in templates_of(name):
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, **template}
        validate.validate(pod | {"metadata": {"name": "x"}}, "1.33", strict=True)


@pytest.mark.parametrize("name", RAY_FILES)
def test_rest_has_fields_of_kuberay_only(name: str) -> None:
    (document,) = documents(name)
    assert document["apiVersion"] == "ray.io/v1"
    if document["kind"] == "RayJob":
        assert set(document["spec"]) <= RAY_JOB
    cluster = cluster_of(name)
    assert set(cluster) <= RAY_CLUSTER
    assert set(cluster["autoscalerOptions"]) <= AUTOSCALER
    assert set(cluster["headGroupSpec"]) <= HEAD_GROUP
    for group in cluster["workerGroupSpecs"]:
        assert set(group) <= WORKER_GROUP
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
    for group in groups_of(name):
        params = group["rayStartParams"]
        assert all(isinstance(value, str) for value in params.values()), "KubeRay takes strings"


def test_both_files_have_same_cluster() -> None:
    assert cluster_of("rayjob.yaml") == cluster_of("raycluster.yaml")


@pytest.mark.parametrize("name", RAY_FILES)
def test_ray_wants_token_and_is_version_that_raykd_needs(name: str) -> None:
    cluster = cluster_of(name)
    assert cluster["authOptions"] == {"mode": "token"}
    needed = re.search(
        r'"ray\[[\w,]+\]>=([\d.]+)"', (FOLDER.parents[1] / "pyproject.toml").read_text()
    )
    assert needed and cluster["rayVersion"].startswith(needed[1])


@pytest.mark.parametrize("name", RAY_FILES)
def test_no_pod_has_more_rights_than_it_needs(name: str) -> None:
    for template in templates_of(name):
        spec = template["spec"]
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(spec)
        assert not any("hostPath" in volume for volume in spec.get("volumes", ()))
        for container in spec["containers"]:
            rights = container["securityContext"]
            assert rights["allowPrivilegeEscalation"] is False
            assert rights["capabilities"] == {"drop": ["ALL"]}
            assert set(container["resources"]) == {"requests", "limits"}


@pytest.mark.parametrize("name", RAY_FILES)
def test_no_password_is_written_down(name: str) -> None:
    for template in templates_of(name):
        for container in template["spec"]["containers"]:
            for variable in container.get("env", ()):
                if re.search("PASSWORD|TOKEN|KEY", variable["name"]):
                    assert set(variable["valueFrom"]) == {"secretKeyRef"}


@pytest.mark.parametrize("name", RAY_FILES)
def test_names_in_pods_exist(name: str) -> None:
    base = {(each["kind"], each["metadata"]["name"]) for each in documents("base.yaml")}
    for group in groups_of(name):
        spec = group["template"]["spec"]
        assert ("PriorityClass", spec["priorityClassName"]) in base
        volumes = {volume["name"] for volume in spec["volumes"]}
        for container in spec["containers"]:
            assert {mount["name"] for mount in container["volumeMounts"]} == volumes
        claims = [
            v["persistentVolumeClaim"] for v in spec["volumes"] if "persistentVolumeClaim" in v
        ]
        assert all(("PersistentVolumeClaim", claim["claimName"]) in base for claim in claims)


def test_workers_give_way_before_head() -> None:
    classes = {
        d["metadata"]["name"]: d for d in documents("base.yaml") if d["kind"] == "PriorityClass"
    }
    assert classes["raykd-head"]["value"] > classes["raykd-worker"]["value"]
    assert classes["raykd-worker"]["preemptionPolicy"] == "Never"
    head, *workers = groups_of("rayjob.yaml")
    assert head["template"]["spec"]["priorityClassName"] == "raykd-head"
    for worker in workers:
        spec = worker["template"]["spec"]
        assert spec["priorityClassName"] == "raykd-worker"
        assert spec["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"


@pytest.mark.parametrize("name", RAY_FILES)
def test_worker_drains_its_node_before_it_stops(name: str) -> None:
    from ray.scripts.scripts import cli as ray

    for group in cluster_of(name)["workerGroupSpecs"]:
        spec = group["template"]["spec"]
        (worker,) = spec["containers"]
        shell, flag, script = worker["lifecycle"]["preStop"]["exec"]["command"]
        assert (shell, flag) == ("sh", "-c")
        drain, pause = script.split(";")
        program, verb, *words = shlex.split(drain)
        assert program == "ray"
        options = ray.commands[verb].make_context(verb, words).params
        assert options["node_id"] is None, "the node of the pod itself"
        seconds = options["deadline_remaining_seconds"]
        assert shlex.split(pause) == ["sleep", str(seconds)]
        assert seconds < spec["terminationGracePeriodSeconds"]


@pytest.mark.parametrize("name", RAY_FILES)
def test_network_is_closed_but_for_pods_of_study(name: str) -> None:
    policies = {
        d["metadata"]["name"]: d for d in documents("base.yaml") if d["kind"] == "NetworkPolicy"
    }
    assert policies["closed"]["spec"] == {"podSelector": {}, "policyTypes": ["Ingress"]}
    label = policies["ray"]["spec"]["podSelector"]["matchLabels"]
    for template in templates_of(name):
        assert label.items() <= template["metadata"]["labels"].items()


def test_job_is_restarted_and_resumes() -> None:
    (job,) = documents("rayjob.yaml")
    assert job["spec"]["backoffLimit"] >= 1 and job["spec"]["shutdownAfterJobFinishes"] is True
    program, verb, *words = shlex.split(job["spec"]["entrypoint"])
    assert program == "raykd" and "--resume-latest" in words
    command = cli.typer.main.get_command(cli.app).commands[verb]  # type: ignore[attr-defined]
    known = {option for param in command.params for option in param.opts}
    assert {word for word in words if word.startswith("--")} <= known
    mounts = job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][0]
    paths = [mount["mountPath"] for mount in mounts["volumeMounts"]]
    assert "/studies" in paths and any(words[0].startswith(f"{path}/") for path in paths)
    assert "cluster.storage=/studies" in words
