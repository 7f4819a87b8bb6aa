"""What is read from the environment: the only place that does, but for the command line."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Iterable
from configparser import ConfigParser
from configparser import Error as ConfigError
from pathlib import Path

from .errors import UsageError


def home() -> Path:
    """Return the folder for this project's own files: ``LLMASOS_HOME``, else ``~/.cache/llmasos``."""
    return Path(os.environ.get("LLMASOS_HOME") or Path.home() / ".cache" / "llmasos")


def keys_file() -> Path:
    """Return where the server's keys are: ``LLMASOS_KEYS``, else ``keys.json`` in the project's own folder."""
    return Path(os.environ.get("LLMASOS_KEYS") or home() / "keys.json")


def hub_endpoint() -> str:
    """Return the address of the Hub: ``HF_ENDPOINT``, read at every call so that it may change."""
    return (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")


def environment_named(variable: str) -> Path | None:
    """Return the environment that a variable names, as ``LLMASOS_LLAMA_CPP`` does; None for this one."""
    named = os.environ.get(variable, "").strip()
    return Path(named).expanduser() if named else None


def behind() -> str | None:
    """Return ``LLMASOS_BEHIND``, the cloud that an image of this package was made for."""
    return os.environ.get("LLMASOS_BEHIND", "").strip() or None


def sagemaker_port() -> int:
    """Return where SageMaker looks for a server: ``SAGEMAKER_BIND_TO_PORT``, or 8080."""
    return _port(os.environ.get("SAGEMAKER_BIND_TO_PORT", ""), 8080)


def sagemaker_model() -> Path:
    """Return where SageMaker puts a model: ``model`` in ``SAGEMAKER_BASE_DIR``, or in /opt/ml."""
    return Path(os.environ.get("SAGEMAKER_BASE_DIR") or "/opt/ml", "model")


def azureml_model() -> Path:
    """Return where Azure Machine Learning puts a model: ``AZUREML_MODEL_DIR``.

    Raises:
        UsageError: it is not set.
    """
    named = os.environ.get("AZUREML_MODEL_DIR", "").strip()
    if not named:
        raise UsageError("AZUREML_MODEL_DIR is not set", hint="deploy with a model, or name it: llmasos serve MODEL")
    return Path(named)


def azure(section: str, name: str) -> str:
    """Return a setting of Azure's own tools: ``AZURE_DEFAULTS_GROUP``, or ``group`` below ``defaults`` as az keeps it.

    Raises:
        UsageError: az's file of settings is damaged.
    """
    if named := os.environ.get(f"AZURE_{section}_{name}".upper(), "").strip():
        return named
    return azure_file("config").get(section, name, fallback="").strip()


def azure_file(name: str) -> ConfigParser:
    """Return a file of az's settings; empty where there is none.

    Raises:
        UsageError: it is damaged.
    """
    found, path = ConfigParser(interpolation=None), _azure_folder() / name
    try:
        found.read(path, encoding="utf-8")
    except (ConfigError, UnicodeError) as error:
        raise UsageError(f"{path} is damaged", hint="az config set writes it") from error
    return found


def azure_subscription() -> str:
    """Return the subscription that Azure's own tools are set to: ``AZURE_SUBSCRIPTION_ID``, or that of ``az account``.

    Raises:
        UsageError: az's file of accounts is damaged.
    """
    if named := os.environ.get("AZURE_SUBSCRIPTION_ID", "").strip():
        return named
    path = _azure_folder() / "azureProfile.json"
    try:
        known = json.loads(path.read_text(encoding="utf-8-sig"))["subscriptions"] if path.exists() else []
        return next((str(one["id"]) for one in known if one.get("isDefault")), "")
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise UsageError(f"{path} is damaged", hint="az login writes it") from error


def _azure_folder() -> Path:
    return Path(os.environ.get("AZURE_CONFIG_DIR", "").strip() or "~/.azure").expanduser()


def _port(text: str, usual: int) -> int:
    return int(text) if text.isdigit() and 0 < int(text) < 1 << 16 else usual


def key_password() -> bytes | None:
    """Return ``LLMASOS_KEY_PASSWORD``, which opens an encrypted private key."""
    return os.environ.get("LLMASOS_KEY_PASSWORD", "").encode() or None


def api_key() -> str | None:
    """Return ``LLMASOS_API_KEY``, by which clients of this project ask a server that needs a key."""
    return os.environ.get("LLMASOS_API_KEY", "").strip() or None


def server_url() -> str:
    """Return where clients of this project look for a server: ``LLMASOS_URL``, else this machine's usual port."""
    return os.environ.get("LLMASOS_URL", "").strip() or "http://127.0.0.1:8000"


def server_is_named() -> bool:
    """Say whether ``LLMASOS_URL`` names a server, so that none has to be started."""
    return bool(os.environ.get("LLMASOS_URL", "").strip())


def handed_over() -> tuple[int, int]:
    """Return how many sockets systemd has handed to this process, and the first's number; no child is told of them."""
    found = {name: os.environ.pop(name, "") for name in ("LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES")}
    meant = found["LISTEN_PID"] == str(os.getpid()) and found["LISTEN_FDS"].isdigit()
    return (int(found["LISTEN_FDS"]) if meant else 0), 3


def traces_wanted() -> bool:
    """Say whether spans are sent somewhere: ``OTEL_EXPORTER_OTLP_ENDPOINT``, which OpenTelemetry itself reads."""
    return bool(os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT", "").strip())


def registry_login(host: str) -> tuple[str, str] | None:
    """Return user and password for a registry: ``LLMASOS_REGISTRY_USER`` and ``_PASSWORD``, else docker's file.

    Of ``config.json`` in ``DOCKER_CONFIG`` or ``~/.docker`` only what it holds itself is read; no helper is called.
    """
    names = ("LLMASOS_REGISTRY_USER", "LLMASOS_REGISTRY_PASSWORD")
    if all(os.environ.get(name) for name in names):
        return os.environ[names[0]], os.environ[names[1]]
    path = Path(os.environ.get("DOCKER_CONFIG") or Path.home() / ".docker", "config.json")
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))["auths"][host]["auth"]
        user, sign, password = base64.b64decode(kept, validate=True).decode().partition(":")
    except (OSError, ValueError, LookupError, TypeError):
        return None
    return (user, password) if sign else None


def asked_threads() -> int | None:
    """Return ``OMP_NUM_THREADS``, by which shared machines tell every library how many cores it may use."""
    text = os.environ.get("OMP_NUM_THREADS", "").strip()
    return int(text) if text.isdigit() and int(text) else None


def for_other_machines() -> dict[str, str]:
    """Return the settings that a training takes along where it computes on other machines; no secrets."""
    names = ("LLMASOS_HOME", "HF_ENDPOINT", "HF_HUB_OFFLINE")
    return {name: os.environ[name] for name in names if name in os.environ}


def settings_here(names: Iterable[str]) -> dict[str, str]:
    """Return those variables that are set here."""
    return {name: os.environ[name] for name in names if name in os.environ}


def quieten_ray() -> None:
    """Keep Ray from reporting to its makers and from talking on the terminal, unless the user has said otherwise."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")


def ray_dashboard() -> str:
    """Return where a Ray cluster's dashboard is, as Ray's own commands find it."""
    names = ("RAY_API_SERVER_ADDRESS", "RAY_DASHBOARD_ADDRESS")
    return next((os.environ[name] for name in names if os.environ.get(name)), "http://127.0.0.1:8265")


def ray_token() -> str | None:
    """Return the token of a Ray cluster, where ``RAY_AUTH_MODE`` asks for one, as Ray's own commands find it."""
    if os.environ.get("RAY_AUTH_MODE", "").lower() != "token":
        return None
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    return os.environ.get("RAY_AUTH_TOKEN") or (path.read_text().strip() if path.is_file() else None)


def one_entrance() -> None:
    """Have Ray's proxy ask all machines alike, as where it is the only one, unless the user has said otherwise."""
    os.environ.setdefault("RAY_SERVE_PROXY_PREFER_LOCAL_NODE_ROUTING", "0")


def process_place() -> tuple[int, int, int, int]:
    """Return rank, rank on this machine, number of processes and of those on this machine, as torchrun says.

    (0, 0, 1, 1) for a process that was started alone.
    """
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")
    rank, local, world, local_world = (os.environ.get(name, "") for name in names)
    if not (rank.isdigit() and world.isdigit()):
        return 0, 0, 1, 1
    return int(rank), int(local or 0), int(world), int(local_world or 1)


def child_environment(package: Path, **values: str) -> dict[str, str]:
    """Return the environment of a process of our own: this one's, these values, and this very package first."""
    paths = os.pathsep.join(filter(None, (str(package), os.environ.get("PYTHONPATH"))))
    return {**os.environ, "PYTHONPATH": paths, **values}
