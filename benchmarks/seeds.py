"""Five seeds of a frozen ViT-B/16 at 224 against one: features are computed once, and one release is made.

    python benchmarks/seeds.py

`vitcifar train` as a process, each side with an empty cache, on digits and with random weights of a file (time does not
depend on them, and all seeds have the same backbone, as with pretrained weights). The release has no int8, which both
sides would make once. The fewer images, the more the rest counts: there are 1,500, as in the default job, whose
analysis is quick too. The last line is the CPU time of five seeds over that of one.
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import mlflow
import torch

from vitcifar.config import TrainConfig
from vitcifar.inference.machine import this_machine
from vitcifar.model.network import build_network

ARCH = "vit_b_16"


def train(folder: Path, weights: Path, num_seeds: int, per_class: int, analysis: str) -> tuple[float, float]:
    """Wall and CPU time, in seconds."""
    folder.mkdir()
    sizes = {"train": per_class, "validation": per_class // 4, "test": per_class // 4}
    arguments = [word for split, number in sizes.items() for word in (f"--{split}-per-class", str(number))]
    arguments += ["--arch", ARCH, "--image-size", "224", "--weights", str(weights), "--train-layers", "head"]
    arguments += ["--int8", "off", "--promote-to", "none", "--analysis", analysis, "--seeds", str(num_seeds)]
    command = [sys.executable, "-c", "from vitcifar.cli import main; main()", "train", "--preset", "digits", *arguments]
    environment = {**os.environ, "VITCIFAR_CACHE": str(folder / "cache"), "MLFLOW_DISABLE_TELEMETRY": "true"}
    environment.pop("MLFLOW_TRACKING_URI", None)
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    with (folder / "log").open("w") as log:
        if subprocess.run(command, cwd=folder, env=environment, stdout=log, stderr=log).returncode:
            raise SystemExit((folder / "log").read_text())
    after, wall = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter() - start
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def further(folder: Path) -> list[float]:
    """The seconds that each seed but the first took, without the one that was released, whose run goes on."""
    client = mlflow.MlflowClient(f"sqlite:///{folder}/mlflow.db")
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    runs = client.search_runs(experiments, "tags.kind = 'seed'", order_by=["attributes.start_time"])
    return [(run.info.end_time - run.info.start_time) / 1000 for run in runs[1:] if "version" not in run.data.tags]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--per-class", type=int, default=100, help="training images per class; a quarter more to test")
    parser.add_argument("--analysis", choices=("quick", "full"), default="quick", help="full adds corruptions")
    options = parser.parse_args()
    print(this_machine())
    cpu = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        network = build_network(TrainConfig(arch=ARCH, weights="none"), tuple("abcdefghij"))
        torch.save(network.backbone.state_dict(), weights := folder / "weights.pt")
        del network
        for number in (1, options.seeds):
            wall, cpu[number] = train(folder / str(number), weights, number, options.per_class, options.analysis)
            print(f"{number} seeds: {wall:.1f} s, {cpu[number]:.1f} s of CPU time", flush=True)
        taken = ", ".join(f"{seconds:.1f}" for seconds in further(folder / str(options.seeds)))
    print(f"a further seed: {taken} s")
    print(f"ratio {cpu[options.seeds] / cpu[1]:.2f}")


if __name__ == "__main__":
    main()
