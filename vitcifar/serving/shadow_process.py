"""The process of a challenger in the shadow: `python -m vitcifar.serving.shadow_process MODEL PRIORITY OPENVINO`.

It gets one JSON line and the pixels of an image, and answers one JSON line and an embedding; nothing is unpickled.
"""

import contextlib
import json
import os
import sys
from pathlib import Path
from typing import IO

import numpy as np

from vitcifar.errors import VitCifarError
from vitcifar.inference.session import OnnxClassifier

IDLE, NORMAL = "idle", "normal"


def lowest_priority() -> None:
    """Let this process run only on what others leave: on Linux even less than with the highest `nice`."""
    with contextlib.suppress(OSError, AttributeError):
        os.nice(19)
    with contextlib.suppress(OSError, AttributeError):
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))


def serve(classifier: OnnxClassifier, requests: IO[bytes], answers: IO[bytes]) -> None:
    """Predict what comes until it ends."""
    seen: list[np.ndarray | None] = []
    classifier.observe = lambda image, prediction, embedding: seen.append(embedding)
    while line := requests.readline():
        shape = json.loads(line)["shape"]
        image = np.frombuffer(requests.read(int(np.prod(shape))), np.uint8).reshape(shape)
        try:
            (prediction,) = classifier.predict_images([image])
        except VitCifarError as error:
            answers.write(json.dumps({"error": str(error)}).encode() + b"\n")
        else:
            embedding = seen.pop()
            fields = {"label": prediction.label, "probabilities": prediction.probabilities}
            head = {
                "prediction": {**fields, "release_id": prediction.release_id},
                "embedding": 0 if embedding is None else len(embedding),
            }
            answers.write(json.dumps(head).encode() + b"\n" + (b"" if embedding is None else embedding.tobytes()))
        answers.flush()


def main(model: str, priority: str, openvino: str) -> None:
    """Open the model, then predict with the lowest priority: busy machines would hardly let it start with that."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints is no answer
    classifier = OnnxClassifier(Path(model), num_threads=1, openvino=openvino)
    classifier.warm()
    if priority == IDLE:
        lowest_priority()
    serve(classifier, sys.stdin.buffer, answers)


if __name__ == "__main__":
    main(*sys.argv[1:])
