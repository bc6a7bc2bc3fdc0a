"""The latency table of a version: measured on this machine and stored with its run, one table per machine.

Tags can be edited: a table is a file of the run that trained the version, and a tag of the version holds its sha256.
"""

import contextlib
import hashlib
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import mlflow
from mlflow.exceptions import MlflowException

from vitcifar.data.dataset import ImageDataset
from vitcifar.errors import TrackingError
from vitcifar.registry.registry import Registry, Version
from vitcifar.release.cache import open_network
from vitcifar.release.latency import NUM_RUNS, LatencyTable, latency_table
from vitcifar.release.manifest import served_evaluation
from vitcifar.tracking import reaching

if TYPE_CHECKING:
    from vitcifar.model.network import Classifier

PREFIX = "latency_sha256/"  # of a tag; then the machine's fingerprint
OLD_PREFIX = "latency/"  # of the tags that held whole tables, in older versions


def benchmark(
    registry: Registry,
    spec: str | int,
    *,
    dataset: ImageDataset | None = None,
    network: "Classifier | None" = None,
    threads: Sequence[int] = (),
    num_runs: int = NUM_RUNS,
) -> LatencyTable:
    """Measure every format of a version on this machine; the table replaces this machine's earlier one.

    `dataset` gives each format its accuracy; without it the accuracies are those of the release's checks. With the
    version's `network` in memory the PyTorch file is neither downloaded nor measured. Raises VitCifarError.
    """
    release = registry.pull(spec, pytorch=network is None)
    assert release.version is not None
    network = network or open_network(release)
    table = latency_table(release, network=network, dataset=dataset, threads=threads, num_runs=num_runs)
    if dataset is None:
        checked: Any = (release.checks.get("test") or {}).get("accuracy")
        served = served_evaluation(release).get("accuracy")
        # The float ONNX file has the network's accuracy: parity requires equal predictions on every test image.
        accuracies = {release.serving_format: served, "torch": checked, "onnx-fp32": checked}
        table = table.with_accuracies(accuracies)
    try:
        record(registry, registry.show(release.version), table)
    except (TrackingError, OSError) as error:  # such as a run that was deleted
        warnings.warn(f"The latency table is not stored with the version: {error}", stacklevel=2)
    return table


def record(registry: Registry, version: Version, table: LatencyTable) -> None:
    """Store a table with the run of the version, then its sha256 on the version. Raises TrackingError."""
    from vitcifar.registry import description  # which imports this module

    fingerprint, text = table.machine.fingerprint, table.to_json()
    with reaching(mlflow.get_tracking_uri()):
        registry.client.log_text(version.run_id, text, f"latency/{fingerprint}.json")
    registry.tag(version.number, f"{PREFIX}{fingerprint}", hashlib.sha256(text.encode()).hexdigest())
    if f"{OLD_PREFIX}{fingerprint}" in version.tags:
        registry.tag(version.number, f"{OLD_PREFIX}{fingerprint}", None)
    description.update(registry, version.number)


def read_tables(version: Version) -> dict[str, LatencyTable]:
    """The tables of a version by the fingerprint of the machine; warns of one that is missing or not as measured."""
    tables = {}
    for fingerprint, digest in _tags(version, PREFIX).items():
        text = ""
        with contextlib.suppress(MlflowException, OSError):
            text = mlflow.artifacts.load_text(f"runs:/{version.run_id}/latency/{fingerprint}.json")
        if hashlib.sha256(text.encode()).hexdigest() == digest:
            tables[fingerprint] = LatencyTable.from_json(text)
        else:
            table = f"A latency table of {version.model_name} {version.number}"
            again = f"vitcifar benchmark --version {version.number}{Registry(version.model_name).model_option}"
            warnings.warn(f"{table} is missing or was changed: type {again}.", stacklevel=2)
    return tables


def read_old_tables(version: Version) -> dict[str, LatencyTable]:
    """The tables that an older vitcifar put into tags, by the fingerprint of the machine: they may have been edited."""
    tables = {}
    for fingerprint, text in _tags(version, OLD_PREFIX).items():
        with contextlib.suppress(ValueError, TypeError, KeyError):
            tables[fingerprint] = LatencyTable.from_json(text)
    return tables


def _tags(version: Version, prefix: str) -> dict[str, str]:
    return {key.removeprefix(prefix): value for key, value in version.tags.items() if key.startswith(prefix)}
