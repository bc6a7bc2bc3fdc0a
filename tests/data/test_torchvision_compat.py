"""torchvision beside a torch without its compiled operators."""

import subprocess
import sys
from pathlib import Path

from support.project import ROOT

# What torchvision does while it is imported, in short: it describes two operators that its compiled part declares.
BROKEN_TORCHVISION = """
import torch, torchvision.models
torch.library.register_fake("torchvision::nms")(lambda dets, scores, iou_threshold: dets)
torch.library.register_fake("torchvision::qnms")(lambda dets, scores, iou_threshold: dets)
"""


def run(code: str, *first_on_path: Path) -> subprocess.CompletedProcess:
    code = f"import sys; sys.path[:0] = {[str(path) for path in first_on_path]}\n{code}"
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)


def fake_torchvision(folder: Path, code: str) -> Path:
    (folder / "torchvision").mkdir()
    (folder / "torchvision" / "__init__.py").write_text(code)
    (folder / "torchvision" / "models.py").write_text("")
    return folder


def test_torchvision_is_imported_whatever_torch_it_was_built_for():
    done = run(
        "from vitcifar.data.torchvision_compat import torchvision\n"
        "from torchvision.datasets import CIFAR10\n"
        "from torchvision.models import ViT_B_16_Weights, vit_b_16\n"
        "from torchvision.transforms import v2\n"
        "import torch\n"
        "print(v2.functional.resize(torch.zeros(1, 3, 8, 8), [4, 4], antialias=True).shape)"
    )
    assert done.stdout == "torch.Size([1, 3, 4, 4])\n", done.stderr
    assert not done.stderr


def test_missing_operators_are_declared_and_the_import_is_tried_again(tmp_path):
    folder = fake_torchvision(tmp_path, BROKEN_TORCHVISION)
    alone = run("import torchvision", folder)
    assert "operator torchvision::nms does not exist" in alone.stderr
    cured = run(
        "from vitcifar.data.torchvision_compat import torchvision\nimport torchvision as again, torch\n"
        "print(again is torchvision, torchvision.models.__name__, torch.ops.torchvision.nms is not None)",
        folder,
    )
    assert cured.stdout == "True torchvision.models True\n", cured.stderr


def test_any_other_error_of_torchvision_comes_through_unchanged(tmp_path):
    folder = fake_torchvision(tmp_path, "raise RuntimeError('another trouble')")
    assert "RuntimeError: another trouble" in run("import vitcifar.data.torchvision_compat", folder).stderr


def test_the_rest_of_the_room_loads_neither_torch_nor_torchvision():
    done = run(
        "import vitcifar.data.sources, vitcifar.data.splits, vitcifar.data.contact_sheet\n"
        "print(sorted({'torch', 'torchvision', 'sklearn', 'mlflow'} & set(sys.modules)))"
    )
    assert done.stdout == "[]\n", done.stderr
