"""torchvision, also when its compiled operators do not match the installed torch.

PyPI's Linux wheel is built for CUDA; with a CPU-only torch its import fails at a missing operator. None of our code
uses these operators, so they are declared without an implementation. Import `torchvision` from here first.
"""

import importlib
import sys
from types import ModuleType

_libraries: list[object] = []  # a declaration lives as long as its library object


def import_torchvision() -> ModuleType:
    """Import torchvision; when a missing operator stops it, declare the operators and import again."""
    try:
        return importlib.import_module("torchvision")
    except RuntimeError as error:
        if "operator torchvision::" not in str(error) or "does not exist" not in str(error):
            raise
    for module in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        del sys.modules[module]
    import torch

    library = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
    for operator in ("nms", "qnms"):
        library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")  # type: ignore[no-untyped-call]
    _libraries.append(library)
    return importlib.import_module("torchvision")


torchvision = import_torchvision()
