"""The releases that `serving.py` serves: random weights, on which time does not depend, assembled without training."""

import dataclasses
from pathlib import Path

import mlflow
import mlflow.pyfunc
import onnx
import torch
from mlflow.models import Model

from vitcifar.config import TrainConfig
from vitcifar.model.network import Classifier, build_network
from vitcifar.registry.registration import register
from vitcifar.registry.registry import Registry
from vitcifar.release.export import export_onnx
from vitcifar.release.manifest import INT8_FILE, LOADER_MODULE, ONNX_FILE, Manifest, write_manifest
from vitcifar.release.onnx_graph import build_graph, exact_weight_bits, to_proto

CLIENTS = 16
CLASS_NAMES = tuple("abcdefghij")


@dataclasses.dataclass(frozen=True)
class Served:
    """A registered model: its name for people, its network, its file, its image size, how many versions it has."""

    name: str
    arch: str
    file: str
    side: int
    num_versions: int = 1


MODELS = {
    "tiny": Served("vit_tiny", "vit_tiny", ONNX_FILE, 32, 3),
    "int8": Served("ViT-B/16 int8", "vit_b_16", INT8_FILE, 224, 2),
    "float": Served("ViT-B/16 float", "vit_b_16", ONNX_FILE, 224),
}


def make_releases(folder: Path) -> None:
    """Register the versions that are missing; the last of three is broken."""
    client = mlflow.MlflowClient()
    experiment = client.get_experiment_by_name("benchmark")
    location = (folder / "artifacts").as_uri()
    identity = experiment.experiment_id if experiment else client.create_experiment("benchmark", location)
    for name, served in MODELS.items():
        present = {model.name for model in client.search_registered_models()}
        versions = Registry(name).list() if name in present else []
        for number in range(len(versions) + 1, served.num_versions + 1):
            print(f"making {served.name}, version {number}", flush=True)
            release(client, identity, folder / "new" / f"{name}{number}", name, served, number)
        client.set_registered_model_alias(name, "champion", "1")


def build(arch: str) -> Classifier:
    """The network with a head that is not zero."""
    network = build_network(TrainConfig(arch=arch, weights="none"), CLASS_NAMES)
    torch.nn.init.normal_(network.head.weight, std=0.02)
    return network.eval()


def release(client: mlflow.MlflowClient, experiment: str, folder: Path, name: str, served: Served, seed: int) -> None:
    """Write the files of a release as publishing leaves them, but for the pt2, and register it."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    network = build(served.arch)
    labels = {"class_names": CLASS_NAMES, "release_id": f"{name}{seed}"}
    if served.file == INT8_FILE:
        onnx.save_model(to_proto(build_graph(network, int8=True), network, **labels), str(folder / INT8_FILE))
    else:
        export_onnx(network, folder / ONNX_FILE, **labels)
    model = Model()
    mlflow.pyfunc.add_to_model(model, loader_module=LOADER_MODULE)
    model.save(str(folder / "MLmodel"))
    run = client.create_run(experiment)
    manifest = Manifest(
        **labels,
        model_name=name,
        image_size=served.side,
        temperature=1.0,
        fingerprint="f" * 64,
        run_id=run.info.run_id,
        serves=served.file,
        checks={"served": {"weight_bits": exact_weight_bits()}} if served.file == INT8_FILE else {},
    )
    digest = write_manifest(manifest, folder)
    logged = client.create_logged_model(experiment, name="release", source_run_id=run.info.run_id)
    if seed == 3:
        (folder / served.file).write_bytes(b"broken")
    client.log_model_artifacts(logged.model_id, str(folder))
    register(manifest, logged.model_id, digest)
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
