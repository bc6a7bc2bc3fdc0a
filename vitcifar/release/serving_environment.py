"""What a server installs: a wheel of this package without the requirements of training, and the versions of all others.

Every release carries both, so that MLflow makes an environment that serves it; a container is built from the same.
"""

import base64
import contextlib
import hashlib
import importlib.metadata
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from vitcifar import __version__
from vitcifar.errors import ReleaseError

PACKAGE = Path(__file__).parents[1]
SERVING = (  # what serving a version on the CPU imports, neither torch nor anything for CUDA
    "alembic",
    "click",
    "cryptography",
    "fastapi",
    "fastapi-offline",
    "filelock",
    "httptools",
    "jinja2",
    "joblib",
    "mlflow-skinny",
    "numpy",
    "onnxruntime",
    "pandas",
    "Pillow",
    "prometheus-client",
    "psutil",
    "python-multipart",
    "rich",
    "sqlalchemy",
    "tqdm",
    "uvicorn",
)
PAGE = ("gradio",)  # in addition
LINUX = {"sys_platform": "linux", "platform_system": "Linux", "os_name": "posix"}  # where servers run
DIST_INFO = """\
METADATA:
Metadata-Version: 2.1
Name: vitcifar
Version: {version}
Summary: The whole package, with the requirements of serving alone
Requires-Python: >=3.11,<3.13
{requires}

WHEEL:
Wheel-Version: 1.0
Generator: vitcifar
Root-Is-Purelib: true
Tag: py3-none-any

entry_points.txt:
[console_scripts]
vitcifar = vitcifar.cli:main
"""


def lock(names: Iterable[str]) -> list[str]:
    """Packages and all that they require on Linux, as `NAME==VERSION` of what is installed here.

    Without local versions (+cpu), which are not on PyPI. Raises ReleaseError for a name without metadata.
    """
    check_installed(names)
    pins: dict[str, str] = {}
    for dist in _closure(map(Requirement, names), set()):
        pins[canonicalize_name(dist.name)] = f"{dist.name}=={dist.version.split('+')[0]}"
    return [pins[name] for name in sorted(pins)]


def check_installed(names: Iterable[str]) -> None:
    """Raise ReleaseError for packages without metadata."""
    if missing := [name for name in names if not _version(name)]:
        raise ReleaseError(f"The installation of {', '.join(missing)} is incomplete: install it again with pip.")


def _closure(
    requirements: Iterable[Requirement], seen: set[tuple[str, str]]
) -> Iterator[importlib.metadata.Distribution]:
    for requirement in requirements:
        for extra in ("", *requirement.extras):
            if (key := (canonicalize_name(requirement.name), extra)) in seen or not _version(requirement.name):
                continue  # what only Linux needs is not installed elsewhere
            seen.add(key)
            dist = importlib.metadata.distribution(requirement.name)
            yield dist
            inner = map(Requirement, dist.requires or ())
            yield from _closure(
                [one for one in inner if one.marker is None or one.marker.evaluate({**LINUX, "extra": extra})], seen
            )


def _version(name: str) -> str:
    with contextlib.suppress(ImportError, OSError, KeyError):  # no metadata, or an empty folder of that name
        return importlib.metadata.version(name) or ""
    return ""


def add_wheel(requirements: Iterable[str], folder: Path) -> list[str]:
    """Requirements and vitcifar, whose wheel is written into a folder, as the lines of a requirements.txt there.

    pip resolves --find-links from that file, but the path of a wheel from the current folder.
    """
    version = write_wheel(folder).name.split("-")[1]
    return ["--find-links .", *requirements, f"vitcifar=={version}"]


def write_wheel(folder: Path) -> Path:
    """Pack this installation of vitcifar into a folder; equal code makes an equal file.

    The local version (+serve.h1a2b3c4d) names the code: MLflow and pip keep environments and wheels by their names.
    """
    files = {path.relative_to(PACKAGE.parent).as_posix(): path.read_bytes() for path in _sources()}
    code = hashlib.sha256(b"".join(name.encode() + content for name, content in sorted(files.items()))).hexdigest()
    version = f"{__version__}+serve.h{code[:8]}"
    info = f"vitcifar-{version}.dist-info"
    requires = "\n".join(f"Requires-Dist: {name}" for name in SERVING)
    for part in DIST_INFO.format(version=version, requires=requires).split("\n\n"):
        name, _, text = part.partition(":\n")
        files[f"{info}/{name}"] = f"{text.strip()}\n".encode()
    rows = [f"{name},sha256={_record_hash(content)},{len(content)}" for name, content in sorted(files.items())]
    files[f"{info}/RECORD"] = "\n".join([*rows, f"{info}/RECORD,,", ""]).encode()
    wheel = folder / f"vitcifar-{version}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in sorted(files.items(), key=lambda item: (item[0].startswith(info), item[0])):
            archive.writestr(zipfile.ZipInfo(name), content, zipfile.ZIP_DEFLATED)
    return wheel


def _sources() -> Iterator[Path]:
    for path in PACKAGE.rglob("*"):
        if path.is_file() and "__pycache__" not in path.parts and not path.name.startswith("."):
            yield path


def _record_hash(content: bytes) -> str:
    """A hash as RECORD has it: URL-safe base64 without padding."""
    return base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
