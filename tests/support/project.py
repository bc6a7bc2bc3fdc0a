"""Where the project lies, and what its imports load."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def loaded_modules(code: str, folder: Path = ROOT) -> set[str]:
    """The modules that a process of its own holds after running some Python code in a folder."""
    code += "\nimport json, sys; print(json.dumps(sorted(sys.modules)))"
    environ = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, env=environ, stdout=subprocess.PIPE, check=True)
    return set(json.loads(done.stdout.splitlines()[-1]))
