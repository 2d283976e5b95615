"""The manifests are valid, their commands compose, and no pod may do more than it needs. No cluster runs here."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from recsys.experiments.compose import check_overrides

FOLDER = Path(__file__).parents[2] / "deploy/kubernetes"
KUSTOMIZATION: dict[str, Any] = yaml.safe_load((FOLDER / "kustomization.yaml").read_text())
OBJECTS: list[dict[str, Any]] = [
    found for name in KUSTOMIZATION["resources"] for found in yaml.safe_load_all((FOLDER / name).read_text())
]
# It needs JobSet in the cluster, and is applied for each training.
JOBSET = [*yaml.safe_load_all((FOLDER.parent / "launching/jobset.yaml").read_text())]
OBJECTS += JOBSET
NAMES = [f"{found['kind']}/{found['metadata']['name']}" for found in OBJECTS]
IMAGE_ARGUMENTS = ["host=0.0.0.0", "port=8080", "store=/store"]


def pods() -> Iterator[tuple[str, dict[str, Any]]]:
    for found in OBJECTS:
        spec = found.get("spec", {})
        spec = spec["jobTemplate"]["spec"] if found["kind"] == "CronJob" else spec
        spec = spec["replicatedJobs"][0]["template"]["spec"] if found["kind"] == "JobSet" else spec
        if "template" in spec:
            yield found["metadata"]["name"], spec["template"]


PODS = dict(pods())


@pytest.mark.parametrize("found", OBJECTS, ids=NAMES)
def test_the_schema_allows_it(found: dict[str, Any]) -> None:
    if found["kind"] == "JobSet":
        jsonschema.validate(found, json.loads(Path(__file__).with_name("jobset.schema.json").read_text()))
        (job,) = found["spec"]["replicatedJobs"]
        found = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": job["name"]}, **job["template"]}
    kubernetes_validate.validate(found, "1.33", strict=True)


def test_every_file_is_listed() -> None:
    assert sorted(KUSTOMIZATION["resources"]) == sorted(
        path.name for path in FOLDER.glob("*.yaml") if path.name != "kustomization.yaml"
    )
    assert len(set(NAMES)) == len(NAMES)


def test_the_nodes_of_a_training_find_one_another() -> None:
    (jobset,) = [found for found in JOBSET if found["kind"] == "JobSet"]
    (job,) = jobset["spec"]["replicatedJobs"]
    (container,) = PODS["training"]["spec"]["containers"]
    options = dict(word.lstrip("-").split("=", 1) for word in container["command"] if "=" in word)
    # JobSet's name of the first pod: JOBSET-JOB-REPLICA-POD.SUBDOMAIN.
    name, subdomain = jobset["metadata"]["name"], jobset["spec"]["network"]["subdomain"]
    assert options["master-addr"] == f"{name}-{job['name']}-0-0.{subdomain}"
    assert int(options["nnodes"]) == job["template"]["spec"]["completions"] == job["template"]["spec"]["parallelism"]
    assert int(options["master-port"]) == container["ports"][0]["containerPort"]


@pytest.mark.parametrize("name", ["gateway", "hosts", "retraining", "training"])
def test_commands_compose(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RECSYS_VALKEY_URL", "redis://:secret@valkey:6379/0")
    (container,) = PODS[name]["spec"]["containers"]
    if name in ("retraining", "training"):
        assert container["args"][0] == name.removesuffix("ing")
        check_overrides(name.removesuffix("ing"), container["args"][1:])
    else:
        check_overrides("serve", [*IMAGE_ARGUMENTS, *container["args"]])


@pytest.mark.parametrize("name", PODS)
def test_pods_are_confined(name: str) -> None:
    spec = PODS[name]["spec"]
    context = spec["securityContext"]
    assert context["runAsNonRoot"]
    assert context["runAsUser"] > 0
    assert context["seccompProfile"] == {"type": "RuntimeDefault"}
    assert spec["automountServiceAccountToken"] is False
    (container,) = spec["containers"]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]},
    }  # fmt: skip
    assert container["resources"]["limits"]["memory"]
    assert {"cpu", "memory"} <= container["resources"]["requests"].keys()
    if name not in ("retraining", "training"):
        assert {"startupProbe", "readinessProbe", "livenessProbe"} <= container.keys()
    volumes = {volume["name"] for volume in spec.get("volumes", ())} | ({"data"} if name == "valkey" else set())
    assert {mount["name"] for mount in container["volumeMounts"]} == volumes
    for variable in container.get("env", ()):
        if re.search("TOKEN|PASSWORD|AUTH", variable["name"]):
            assert variable["valueFrom"]["secretKeyRef"]["name"] == "recsys"


def test_services_budgets_and_policies_select_pods() -> None:
    labels = [template["metadata"]["labels"] for template in PODS.values()]
    selected: dict[str, set[str]] = {}
    for found in OBJECTS:
        spec = found.get("spec", {})
        if found["kind"] in ("Service", "PodDisruptionBudget", "NetworkPolicy"):
            chosen = spec.get("selector", spec.get("podSelector", {}))
            chosen = chosen.get("matchLabels", {} if found["kind"] == "NetworkPolicy" else chosen)
            assert not chosen or chosen in labels, found["metadata"]["name"]
            selected.setdefault(found["kind"], set()).add(chosen.get("app", "all"))
    assert selected["PodDisruptionBudget"] == {"gateway", "hosts", "valkey"}
    assert selected["NetworkPolicy"] == {"all", "gateway", "hosts", "valkey", "training"}
    (nothing,) = [one for one in OBJECTS if one["kind"] == "NetworkPolicy" and one["metadata"]["name"] == "nothing"]
    assert nothing["spec"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}


def test_the_names_that_commands_call_are_services() -> None:
    services = {found["metadata"]["name"]: found for found in OBJECTS if found["kind"] == "Service"}
    arguments = dict(word.split("=", 1) for word in PODS["gateway"]["spec"]["containers"][0]["args"])
    (place,) = yaml.safe_load(arguments["hosts"])
    _, name, port = place.split(":")
    # Without an address of its own, the name has the address of every pod.
    assert services[name]["spec"]["clusterIP"] == "None"
    assert services[name]["spec"]["ports"][0]["port"] == int(port)
    urls = {
        variable["value"]
        for template in PODS.values()
        for variable in template["spec"]["containers"][0].get("env", ())
        if variable["name"] == "RECSYS_VALKEY_URL"
    }
    assert urls == {"redis://:$(VALKEY_PASSWORD)@valkey:6379/0"}
    assert "valkey" in services
