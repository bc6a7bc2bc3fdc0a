"""torchvision, also where its compiled part does not fit the torch that is installed.

PyPI's torchvision for Linux is built for CUDA; beside a CPU-only torch its import stops at a missing operator. Nothing
here uses the compiled operators, so they are declared without being there. Take `torchvision` from here before
anything imports it by itself.
"""

import importlib
import sys
from types import ModuleType

_DETECTION_OPERATORS = ("nms", "qnms")
_kept_alive: list[object] = []  # the declarations go when their library object goes


def import_torchvision() -> ModuleType:
    """Import torchvision, and once more with the missing operators declared when that is what stopped it."""
    try:
        return importlib.import_module("torchvision")
    except RuntimeError as error:
        if "operator torchvision::" not in str(error) or "does not exist" not in str(error):
            raise
    for module in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        del sys.modules[module]
    _declare_operators()
    return importlib.import_module("torchvision")


def _declare_operators() -> None:
    import torch

    library = torch.library.Library("torchvision", "FRAGMENT")
    for operator in _DETECTION_OPERATORS:
        library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _kept_alive.append(library)


torchvision = import_torchvision()
