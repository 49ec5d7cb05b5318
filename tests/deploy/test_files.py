"""The files under `examples/deploy`: that they parse, say the same as each other, and start a server that exists."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import typer
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from typer.main import get_command

from blockc.cli import serve as serve_command
from blockc_runtime.server.auth import OPEN_PATHS
from blockc_runtime.server.keys_file import load_keys

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "examples" / "deploy"
MANIFESTS = sorted((DEPLOY / "kubernetes").glob("*.yaml"))


def read(name: str) -> str:
    return (DEPLOY / name).read_text(encoding="utf-8")


def unit() -> list[tuple[str, str, str]]:
    """Section, name and value of each line; a name may stand there twice."""
    found, section = [], ""
    for line in read("blockc.service").splitlines():
        if line.startswith("["):
            section = line.strip("[]")
        elif line and not line.startswith("#"):
            name, _, value = line.partition("=")
            found.append((section, name, value))
    return found


def setting(name: str) -> str:
    (value,) = [value for _, key, value in unit() if key == name]
    return value


def instructions() -> list[tuple[str, str]]:
    """Of the Dockerfile, continued lines joined, comments left out."""
    lines = [line for line in read("Dockerfile").splitlines() if not line.startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    return [(line.split()[0], line.partition(" ")[2].strip()) for line in joined.splitlines() if line.strip()]


def resources() -> Iterator[dict[str, Any]]:
    for path in MANIFESTS:
        if path.name != "kustomization.yaml":
            yield from yaml.safe_load_all(path.read_text(encoding="utf-8"))


def resource(kind: str, name: str | None = None) -> dict[str, Any]:
    (found,) = [item for item in resources() if item["kind"] == kind and name in (None, item["metadata"]["name"])]
    return found


def pod() -> dict[str, Any]:
    return dict(resource("Deployment")["spec"]["template"]["spec"])


def container() -> dict[str, Any]:
    (found,) = pod()["containers"]
    return dict(found)


def commands() -> dict[str, list[str]]:
    """What each file runs, from the name of the command on."""
    cmd = next(json.loads(words) for name, words in instructions() if name == "CMD")
    return {"systemd": shlex.split(setting("ExecStart"))[1:], "docker": cmd, "kubernetes": container()["args"]}


def parsed(words: list[str]) -> dict[str, Any]:
    """As `blockc serve` understands them. Raises click's error for what it does not know."""
    app = typer.Typer()
    serve_command.register(app)
    name, *options = words
    assert name == "serve"
    with get_command(app).make_context("serve", options) as context:
        return dict(context.params)


@pytest.mark.parametrize("name", ["systemd", "docker", "kubernetes"])
def test_the_command_is_one_of_ours(name: str) -> None:
    options = parsed(commands()[name])
    assert options["plan"].name == "plan.json"
    assert options["keys"].name == "keys.json", "nothing listens to others without keys"
    assert options["log_format"] == "json"


def test_there_is_time_to_drain() -> None:
    assert int(setting("TimeoutStopSec")) >= parsed(commands()["systemd"])["drain"] + 10
    assert setting("KillMode") == "mixed", "the engine goes on until the server says so"
    (sleep,) = [int(container()["lifecycle"]["preStop"]["exec"]["command"][1])]
    assert pod()["terminationGracePeriodSeconds"] >= parsed(commands()["kubernetes"])["drain"] + sleep + 10
    compose = yaml.safe_load(read("compose.yaml"))["services"]["blockc"]
    assert int(compose["stop_grace_period"].rstrip("s")) >= parsed(commands()["docker"])["drain"] + 10


# systemd


def test_the_unit_is_hardened() -> None:
    for name, value in {
        "User": "blockc", "NoNewPrivileges": "yes", "ProtectSystem": "strict", "ProtectHome": "yes",
        "PrivateTmp": "yes", "CapabilityBoundingSet": "", "RestrictNamespaces": "yes", "Restart": "on-failure",
    }.items():  # fmt: skip
        assert setting(name) == value
    audit = parsed(commands()["systemd"])["audit"]
    assert str(audit).startswith("%L/"), "strict: only the log's folder can be written"
    assert setting("LogsDirectory") == "blockc"


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="there is no systemd-analyze")
def test_systemd_understands_the_unit(tmp_path: Path) -> None:
    path = tmp_path / "blockc.service"
    path.write_text(read("blockc.service").replace("/opt/blockc/bin/blockc", sys.executable))
    done = subprocess.run(["systemd-analyze", "verify", str(path)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
    rated = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--threshold=20", str(path)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if "unrecognized option" in rated.stderr:
        pytest.skip("this systemd-analyze does not rate units that are not loaded")
    assert rated.returncode == 0, rated.stdout[-200:]


# Docker


def test_the_image_has_a_user_and_no_secrets() -> None:
    stages = [number for number, (name, _) in enumerate(instructions()) if name == "FROM"]
    last = instructions()[stages[-1] :]
    assert len(stages) > 1
    assert [words for name, words in last if name == "USER"] == ["10001:10001"]
    assert not [name for name, _ in last if name in ("COPY", "ADD")], "wheels are mounted: they are in no layer"
    assert any("--no-index" in words for name, words in last if name == "RUN")
    for name, words in instructions():
        assert name != "ADD"
        if name in ("ARG", "ENV"):
            assert not re.search(r"(?i)(secret|password|api_?key)", words)
    assert [words for name, words in last if name == "STOPSIGNAL"] == ["SIGTERM"]
    (health,) = [words for name, words in last if name == "HEALTHCHECK"]
    assert any(path in health for path in OPEN_PATHS), "it has no key"


def test_only_what_is_named_goes_into_the_image() -> None:
    kept = [line for line in read("Dockerfile.dockerignore").splitlines() if line and not line.startswith("#")]
    assert kept[0] == "*"
    for line in kept:
        name = line.removeprefix("!")
        if line.startswith("!") and name != "wheels":
            assert (ROOT / name).exists()


@pytest.mark.skipif(shutil.which("hadolint") is None, reason="there is no hadolint")
def test_hadolint_finds_nothing() -> None:
    done = subprocess.run(["hadolint", str(DEPLOY / "Dockerfile")], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_compose_runs_the_same_image() -> None:
    service = yaml.safe_load(read("compose.yaml"))["services"]["blockc"]
    assert (DEPLOY / service["build"]["context"]).resolve() == ROOT
    assert (ROOT / service["build"]["dockerfile"]) == DEPLOY / "Dockerfile"
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    places = [volume.split(":")[1] for volume in service["volumes"]]
    options = parsed(commands()["docker"])
    assert str(options["keys"]) in places
    assert str(options["plan"].parent) in places
    assert all(port.startswith("127.0.0.1:") for port in service["ports"]), "TLS is somebody else's, in front"


# Kubernetes


def test_pods_are_restricted() -> None:
    """As the Pod Security Standard `restricted` asks."""
    assert pod()["securityContext"]["runAsNonRoot"] is True
    assert pod()["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    own = container()["securityContext"]
    assert own["allowPrivilegeEscalation"] is False
    assert own["readOnlyRootFilesystem"] is True
    assert own["capabilities"] == {"drop": ["ALL"]}
    assert pod()["automountServiceAccountToken"] is False


def test_probes_need_no_key() -> None:
    paths = {name: container()[f"{name}Probe"]["httpGet"]["path"] for name in ("startup", "readiness", "liveness")}
    assert paths == {"startup": "/ready", "readiness": "/ready", "liveness": "/health"}
    assert set(paths.values()) <= OPEN_PATHS


def test_what_is_named_is_there() -> None:
    labels = resource("Deployment")["spec"]["template"]["metadata"]["labels"]
    for kind, place in (("Deployment", "matchLabels"), ("PodMonitor", "matchLabels")):
        assert resource(kind)["spec"]["selector"][place].items() <= labels.items()
    assert resource("Service")["spec"]["selector"].items() <= labels.items()
    assert resource("NetworkPolicy")["spec"]["podSelector"]["matchLabels"].items() <= labels.items()
    volumes = {volume["name"]: volume for volume in pod()["volumes"]}
    mounts = {mount["mountPath"]: mount["name"] for mount in container()["volumeMounts"]}
    assert set(mounts.values()) == set(volumes)
    options = parsed(commands()["kubernetes"])
    assert str(options["keys"].parent) in mounts
    assert str(options["plan"].parent) in mounts
    assert "/tmp" in mounts, "the socket of the engine"
    assert volumes["zoo"]["persistentVolumeClaim"]["claimName"] == resource("PersistentVolumeClaim")["metadata"]["name"]
    assert str(options["secrets"]) in mounts
    folder = volumes["tenant-keys"]["secret"]["secretName"]
    assert resource("Secret", folder), "a folder of files: rotated without a start"
    secret = resource("Secret", "blockc-keys")
    assert volumes["keys"]["secret"]["secretName"] == secret["metadata"]["name"]
    credentials = resource("PodMonitor")["spec"]["podMetricsEndpoints"][0]["authorization"]["credentials"]
    assert credentials["name"] == secret["metadata"]["name"]
    assert credentials["key"] in secret["stringData"]
    assert pod()["serviceAccountName"] == resource("ServiceAccount")["metadata"]["name"]
    listed = yaml.safe_load((DEPLOY / "kubernetes" / "kustomization.yaml").read_text())["resources"]
    assert set(listed) == {path.name for path in MANIFESTS} - {"kustomization.yaml"}


def test_the_keys_open_nothing_and_are_understood(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    path.write_text(resource("Secret", "blockc-keys")["stringData"]["keys.json"])
    assert list(load_keys(path, frozenset()).owners) == [bytes(32)]


@pytest.mark.skipif(importlib.util.find_spec("kubernetes_validate") is None, reason="there is no kubernetes-validate")
@pytest.mark.parametrize("item", list(resources()), ids=lambda item: str(item["kind"]))
def test_kubernetes_understands_it(item: dict[str, Any]) -> None:
    import kubernetes_validate

    if item["kind"] != "PodMonitor":  # the operator's own resource: below
        kubernetes_validate.validate(item, "1.37", strict=True)


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class SecretKey(Strict):
    key: str
    name: str = ""
    optional: bool = False


class Authorization(Strict):
    type: Literal["Bearer"] = "Bearer"  # "Basic" is none of its types
    credentials: SecretKey


class Endpoint(Strict):
    """Of its many fields those that are used here."""

    port: str
    path: Annotated[str, Field(pattern=r"^/")]
    interval: Annotated[str, Field(pattern=r"^(\d+h)?(\d+m)?(\d+s)?(\d+ms)?$")]
    authorization: Authorization


class Selector(Strict):
    matchLabels: dict[str, str]


class Spec(Strict):
    selector: Selector
    podMetricsEndpoints: Annotated[list[Endpoint], Field(min_length=1)]


class Metadata(Strict):
    name: Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$")]
    labels: dict[str, str] = {}


class PodMonitor(Strict):
    """`monitoring.coreos.com/v1` of the Prometheus operator 0.93, as far as it is used here; nothing else is let in."""

    apiVersion: Literal["monitoring.coreos.com/v1"]
    kind: Literal["PodMonitor"]
    metadata: Metadata
    spec: Spec


def test_the_operator_understands_its_own() -> None:
    PodMonitor.model_validate(resource("PodMonitor"))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("podMetricsEndpoints", "podMetricEndpoints"),
        ("interval: 15s", "interval: 15 s"),
        ("port: http", "port: 8000"),
        ("key: metrics-key", "keys: metrics-key"),
        ("type: Bearer", "type: Basic"),
        ("coreos.com/v1", "coreos.com/v1beta1"),
        ("selector:", "selectors:"),
    ],
)
def test_what_the_operator_would_refuse_is_noticed(old: str, new: str) -> None:
    text = (DEPLOY / "kubernetes" / "monitoring.yaml").read_text(encoding="utf-8")
    assert old in text
    with pytest.raises(ValidationError):
        PodMonitor.model_validate(yaml.safe_load(text.replace(old, new)))
