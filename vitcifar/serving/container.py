"""Writes what builds and runs the server as a container: Dockerfile, lock, compose.yaml, KServe and Ray Serve.

The image holds no version: as `vitcifar app` does anywhere, it asks the registry that MLFLOW_TRACKING_URI names, and
follows the alias there.
"""

import importlib.metadata
import json
import re
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from jinja2 import Environment, StrictUndefined

from vitcifar import __version__
from vitcifar.errors import ConfigError
from vitcifar.inference.openvino_session import is_installed
from vitcifar.release.serving_environment import PAGE, SERVING, add_wheel, lock
from vitcifar.release.signature import REQUIRED
from vitcifar.serving.middleware import LOOPBACK
from vitcifar.uris import sqlite_path, sqlite_uri

TEMPLATES = Path(__file__).with_name("container_files")
PORT, MLFLOW_PORT = 7860, 5000
OWN_SERVER = f"http://mlflow:{MLFLOW_PORT}"  # of compose.yaml


def write_container(
    folder: Path, *, version: str, model_name: str, tracking_uri: str, page: bool, require_signature: str = "none"
) -> list[str]:
    """Write the files into a new or empty folder; returns their names.

    The container serves what `version` names in the registry at `tracking_uri`, and with public keys in
    `require_signature` (a text) only what one of them has signed. A registry that other machines cannot reach is
    offered by an MLflow server in compose.yaml, which starts empty unless the registry is a SQLite file. Raises
    ConfigError for a folder that is not empty, ReleaseError for an incomplete installation.
    """
    own_server = not is_server(tracking_uri)
    database = sqlite_path(tracking_uri) if tracking_uri.startswith("sqlite:///") else Path("/mlflow/mlflow.db")
    values = {
        "check": health_check,
        "command": server_command(version, model_name, page),
        "image": f"vitcifar:{__version__}",
        "mlflow": importlib.metadata.version("mlflow-skinny"),
        "mlflow_command": mlflow_command(database),
        "mlflow_port": MLFLOW_PORT,
        "model_name": model_name,
        "own_server": own_server,
        "port": PORT,
        "project": str(database.parent) if tracking_uri.startswith("sqlite:///") else "",
        "python": f"{sys.version_info.major}.{sys.version_info.minor}",
        "required": {} if require_signature == "none" else {REQUIRED: require_signature},
        "service": service_name(model_name),
        "tracking_uri": OWN_SERVER if own_server else tracking_uri,
        "version": version,
    }
    optional = (*(PAGE if page else ()), *(["openvino"] if is_installed() else []))
    requirements = lock([*SERVING, *optional])
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise ConfigError(f"The folder {folder} is not empty: name a new one with --out.")
        lines = add_wheel(requirements, folder)
        (folder / "requirements.txt").write_text("\n".join([*lines, ""]), encoding="utf-8")
        for template in sorted(TEMPLATES.iterdir()):
            (folder / template.stem).write_text(render(template, values), encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{folder} cannot be written ({error.strerror}): name another folder with --out.") from error
    return sorted(path.name for path in folder.iterdir())


def render(template: Path, values: dict[str, Any]) -> str:
    environment = Environment(
        trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined, keep_trailing_newline=True
    )
    environment.filters["tojson"] = json.dumps  # jinja2's own escapes for HTML
    return environment.from_string(template.read_text(encoding="utf-8")).render(values)


def is_server(tracking_uri: str) -> bool:
    """Whether an address is that of a server which other machines can reach."""
    address = urlsplit(tracking_uri)
    return address.scheme in ("http", "https") and (address.hostname or LOOPBACK[0]) not in LOOPBACK


def server_command(version: str, model_name: str, page: bool) -> list[str]:
    """What the container runs: only the container's own network reaches it, so it needs no password."""
    words = ["vitcifar", "app", "--version", version, "--model-name", model_name, "--page", "on" if page else "off"]
    return [*words, "--host", "0.0.0.0", "--port", str(PORT), "--public", "yes"]


def mlflow_command(database: Path) -> list[str]:
    """What the MLflow server of compose.yaml runs."""
    hosts = f"mlflow:{MLFLOW_PORT},localhost:{MLFLOW_PORT},127.0.0.1:{MLFLOW_PORT}"
    words = ["mlflow", "server", "--host", "0.0.0.0", "--port", str(MLFLOW_PORT), "--allowed-hosts", hosts]
    artifacts = str(database.with_name("mlartifacts"))  # of new experiments
    return [*words, "--backend-store-uri", sqlite_uri(database), "--artifacts-destination", artifacts]


def health_check(port: int, path: str) -> list[str]:
    """A command that fails unless the container responds; it asks no proxy that the environment names."""
    connection = f"c = http.client.HTTPConnection('127.0.0.1', {port}, timeout=4)"
    code = f"import http.client; {connection}; c.request('GET', '{path}'); exit(c.getresponse().status != 200)"
    return ["python", "-c", code]


def service_name(model_name: str) -> str:
    """A model's name as Kubernetes allows it: lower-case letters, digits and hyphens."""
    return re.sub(r"[^a-z0-9]+", "-", model_name.lower()).strip("-")[:50].strip("-") or "vitcifar"
