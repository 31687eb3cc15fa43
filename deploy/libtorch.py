"""Lays libtorch out at .libtorch/torch in the repository root.

That path never changes, because torch-sys is built anew (minutes) when it does. What lies there is
taken from the first of these that fits:

  1. what is there already, if it is the right version and complete
  2. the libtorch or PyTorch folder that the environment variable LIBTORCH names (linked)
  3. the PyTorch that this Python imports (linked)
  4. GAN_CUDA=1: PyTorch's wheel and the CUDA libraries that it loads (2.6 GB downloaded)
  5. PyTorch's wheel without its CUDA parts (0.55 GB downloaded, 0.5 GB on disk)

With GAN_CUDA=1 the first three only count if they can use a GPU. Downloads are pinned by SHA-256.
A new layout is filled, tried, and then put in place by renaming one symbolic link: an interrupted
run leaves what was there before.

Beside it, whatever the machine has, lie two things that are not libtorch's:

  .libtorch/nccl/libnccl.so.2   for tests of the table of NCCL's functions (0.2 GB downloaded; one
                                that lies beside the libtorch that was found is linked)
  .libtorch/cuda/include        CUDA's headers, to compile the CUDA graph plug-in (2.4 MB)

Without them Ganglion can be built and run, so that it is no error if they can't be had.
"""

import argparse
import importlib.util
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Callable, Dict, List, NamedTuple, NoReturn, Optional

VERSION = "2.11.0"  # the one that tch 0.24 binds
PLACE = Path(__file__).resolve().parent.parent / ".libtorch"
LINK = PLACE / "torch"

# What a build and a CPU run need of the torch wheel's lib/.
CPU_LIBRARIES = {"libc10.so", "libgomp.so.1", "libtorch.so", "libtorch_cpu.so"}
# What nobody but Python needs of it.
PYTHON_LIBRARIES = {"libtorch_python.so", "libshm.so", "libtorch_global_deps.so"}


class Wheel(NamedTuple):
    """One file of the package index, and the SHA-256 that it must have."""

    name: str
    version: str
    platform: str
    sha256: str


TORCH = Wheel("torch", VERSION, "manylinux_2_28",
              "7aa2f9bbc6d4595ba72138026b2074be1233186150e9292865e04b7a63b8c67a")
CUDA_RUNTIME = Wheel("nvidia-cuda-runtime", "13.0.96", "manylinux2014",
                     "7f82250d7782aa23b6cfe765ecc7db554bd3c2870c43f3d1821f1d18aebf0548")
CUDA_CRT = Wheel("nvidia-cuda-crt", "13.0.88", "manylinux2014",
                 "2c8043c7c9e02492716426e9919fc78d2c5b3b2a7a768a88e952676b08aa55a4")
NCCL = Wheel("nvidia-nccl-cu13", "2.28.9", "manylinux_2_18",
             "e4553a30f34195f3fa1da02a6da3d6337d28f2003943aa0a3d247bbc25fefc42")
# libtorch_cpu.so of the index's wheel is linked against these two, GPU or not.
CUDA_ALWAYS = [
    CUDA_RUNTIME,
    Wheel("nvidia-cuda-cupti", "13.0.85", "manylinux_2_25",
          "4eb01c08e859bf924d222250d2e8f8b8ff6d3db4721288cf35d14252a4d933c8"),
]
# What libtorch_cuda.so adds. Triton, which PyTorch's wheel asks for too, is for Python alone.
CUDA_FULL = CUDA_ALWAYS + [
    Wheel("nvidia-cublas", "13.1.0.3", "manylinux_2_27",
          "ee8722c1f0145ab246bccb9e452153b5e0515fd094c3678df50b2a0888b8b171"),
    Wheel("nvidia-cuda-nvrtc", "13.0.88", "manylinux2010",
          "ad9b6d2ead2435f11cbb6868809d2adeeee302e9bb94bcf0539c7a40d80e8575"),
    Wheel("nvidia-cudnn-cu13", "9.19.0.56", "manylinux_2_27",
          "d20e1734305e9d68889a96e3f35094d733ff1f83932ebe462753973e53a572bf"),
    Wheel("nvidia-cufft", "12.0.0.61", "manylinux2014",
          "6c44f692dce8fd5ffd3e3df134b6cdb9c2f72d99cf40b62c32dde45eea9ddad3"),
    Wheel("nvidia-cufile", "1.15.1.6", "manylinux2014",
          "08a3ecefae5a01c7f5117351c64f17c7c62efa5fffdbe24fc7d298da19cd0b44"),
    Wheel("nvidia-curand", "10.4.0.35", "manylinux_2_27",
          "1aee33a5da6e1db083fe2b90082def8915f30f3248d5896bcec36a579d941bfc"),
    Wheel("nvidia-cusolver", "12.0.4.66", "manylinux_2_27",
          "0a759da5dea5c0ea10fd307de75cdeb59e7ea4fcb8add0924859b944babf1112"),
    Wheel("nvidia-cusparse", "12.6.3.3", "manylinux2014",
          "2b3c89c88d01ee0e477cb7f82ef60a11a4bcd57b6b87c33f789350b59759360b"),
    Wheel("nvidia-cusparselt-cu13", "0.8.0", "manylinux2014",
          "25e30a8a7323935d4ad0340b95a0b69926eee755767e8e0b1cf8dd85b197d3fd"),
    NCCL,
    Wheel("nvidia-nvjitlink", "13.0.88", "manylinux2010",
          "13a74f429e23b921c1109976abefacc69835f2f433ebd323d3946e11d804e47b"),
    Wheel("nvidia-nvshmem-cu13", "3.4.5", "manylinux2014",
          "290f0a2ee94c9f3687a02502f3b9299a9f9fe826e6d0287ee18482e78d495b80"),
    Wheel("nvidia-nvtx", "13.0.85", "manylinux1",
          "4936d1d6780fbe68db454f5e72a42ff64d1fd6397df9f363ae786930fd5c1cd4"),
]


class Extra(NamedTuple):
    """What lies beside libtorch in a folder of its own, so that libtorch never changes for it."""

    folder: str
    wheels: List[Wheel]
    source: str  # the wheels' folder that is taken
    target: str  # where it goes in `folder`
    proof: str  # a file that is there when all is
    size: str
    without: str  # what doesn't work without it


EXTRAS = [
    Extra("nccl", [NCCL], "nvidia/nccl/lib/", "", "libnccl.so.2", "0.2 GB",
          "tests that load the real NCCL fail"),
    Extra("cuda", [CUDA_RUNTIME, CUDA_CRT], "nvidia/cu13/include/", "include",
          "include/crt/host_config.h", "2.4 MB",
          "programs are built without CUDA graphs"),
]


def say(text: str) -> None:
    print(f"libtorch: {text}", flush=True)


def fail(text: str) -> NoReturn:
    sys.exit(f"libtorch: {text}")


# --- what is there ---------------------------------------------------------------------------


def version_of(root: Path) -> Optional[str]:
    """The version of a libtorch (build-version) or PyTorch (version.py) folder."""
    try:
        return (root / "build-version").read_text().strip()
    except OSError:
        pass
    try:
        found = re.search(r"^__version__ = '([^']+)'", (root / "version.py").read_text(), re.M)
    except OSError:
        return None
    return found.group(1) if found else None


def fault_of(root: Path, cuda: bool) -> Optional[str]:
    """Why `root` can't be used, or None."""
    version = version_of(root)
    if version is None:
        return f"{root} is no libtorch: it has neither build-version nor version.py"
    if version.split("+")[0] != VERSION:
        return f"{root} is libtorch {version}; {VERSION} is needed"
    needed = ["include/torch/csrc/api/include/torch/torch.h"]
    needed += [f"lib/{name}" for name in ("libc10.so", "libtorch.so", "libtorch_cpu.so")]
    for name in needed:
        if not (root / name).is_file():
            return f"{root} has no {name}"
    if cuda and not (root / "lib/libtorch_cuda.so").is_file():
        return f"{root} is for CPUs only, and GAN_CUDA=1 asks for a GPU's"
    return None


def load_error(root: Path, cuda: bool) -> Optional[str]:
    """Loads the library as a program would, in a process of its own; None if that works."""
    library = root / "lib" / ("libtorch_cuda.so" if cuda else "libtorch_cpu.so")
    code = "import ctypes, sys; ctypes.CDLL(sys.argv[1])"
    result = subprocess.run([sys.executable, "-c", code, str(library)],
                            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    if result.returncode == 0:
        return None
    lines = result.stderr.strip().splitlines() or [f"exit status {result.returncode}"]
    return f"{library} does not load: {lines[-1]}"


def imported_pytorch() -> Optional[Path]:
    """The folder of the PyTorch that this Python would import; it is not imported."""
    try:
        spec = importlib.util.find_spec("torch")
    except (ImportError, ValueError):
        return None
    return Path(spec.origin).resolve().parent if spec and spec.origin else None


def usable(root: Path, origin: str, cuda: bool) -> bool:
    fault = fault_of(root, cuda) or load_error(root, cuda)
    if fault:
        say(f"{origin} is passed over: {fault}")
    return fault is None


# --- putting it in place -----------------------------------------------------------------------


def put_in_place(target: Path) -> None:
    """Makes LINK point to `target`, in one rename, and removes what that replaces."""
    new = PLACE / "torch.new"
    new.unlink(missing_ok=True)
    inside = PLACE.resolve() in target.parents
    new.symlink_to(os.path.relpath(target, PLACE.resolve()) if inside else target)
    if LINK.is_dir() and not LINK.is_symlink():  # a layout by hand: a link can't replace a folder
        LINK.rename(Path(tempfile.mkdtemp(prefix="old.", dir=PLACE)) / "torch")
    os.replace(new, LINK)
    sweep()


def sweep() -> None:
    """Removes layouts that LINK doesn't point into: replaced ones, and those of killed runs."""
    current = LINK.resolve()
    for entry in PLACE.iterdir():
        ours = re.match(r"old\.|new\.|[0-9.]+-(cpu|cuda)\.", entry.name)
        if ours and entry.is_dir() and entry.resolve() not in current.parents:
            shutil.rmtree(entry, ignore_errors=True)


# --- downloading --------------------------------------------------------------------------------


def check_platform() -> None:
    system, machine = platform.system(), platform.machine()
    if (system, machine) != ("Linux", "x86_64"):
        fail(f"there is no pinned libtorch for {system} on {machine}, only for Linux on x86_64. "
             f"Set LIBTORCH to the folder of a libtorch {VERSION} for this machine.")
    libc, version = platform.libc_ver()
    numbers = [int(part) for part in re.findall(r"\d+", version)[:2]]
    if libc != "glibc" or numbers < [2, 28]:
        fail(f"libtorch {VERSION} needs glibc 2.28 or newer (Debian 10, Ubuntu 18.10 and later); "
             f"here is {libc or 'another C library'} {version}".rstrip() + ".")


def pip_command(scratch: Path) -> List[str]:
    """A pip to download with: this Python's, or that of a venv made for the purpose."""
    def works(python: str) -> bool:
        return subprocess.run([python, "-m", "pip", "--version"], stdout=subprocess.DEVNULL,
                              stderr=subprocess.DEVNULL).returncode == 0

    if works(sys.executable):
        return [sys.executable, "-m", "pip"]
    venv = scratch / "venv"
    made = subprocess.run([sys.executable, "-m", "venv", str(venv)], stdout=subprocess.DEVNULL,
                          stderr=subprocess.DEVNULL).returncode == 0
    python = str(venv / "bin/python")
    if made and works(python):
        return [python, "-m", "pip"]
    fail(f"{sys.executable} has no pip and can't make a venv that has one. Install one of them "
         "(Debian: apt-get install python3-pip, or python3-venv), or set LIBTORCH to the folder "
         f"of a libtorch {VERSION}.")


def download(pip: List[str], wheel: Wheel, scratch: Path) -> Path:
    """Fetches one wheel. It is taken by its tags, not by those of the Python that runs this."""
    requirements = scratch / "requirements.txt"
    requirements.write_text(f"{wheel.name}=={wheel.version} --hash=sha256:{wheel.sha256}\n")
    folder = Path(tempfile.mkdtemp(prefix="wheel.", dir=scratch))
    command = pip + ["download", "--no-deps", "--require-hashes", "--only-binary=:all:",
                     "--disable-pip-version-check", "--implementation", "cp",
                     "--python-version", "3.11", "--abi", "cp311", "--abi", "none",
                     "--platform", f"{wheel.platform}_x86_64",
                     "--dest", str(folder), "--requirement", str(requirements)]
    if not sys.stdout.isatty():
        command.append("--quiet")
    # pip's own temporary files are as large as the wheel, and /tmp may be small.
    environment = dict(os.environ, TMPDIR=str(folder), PIP_REQUIRE_VIRTUALENV="0")
    if subprocess.run(command, env=environment).returncode != 0:
        fail(f"pip could not download {wheel.name} {wheel.version}; its message is above. "
             "What was laid out before is untouched.")
    found = list(folder.glob("*.whl"))
    if len(found) != 1:
        fail(f"pip left {len(found)} wheels for {wheel.name} {wheel.version}, not one")
    return found[0]


def unpack(wheel: Path, into: Path, wanted: Callable[[str], bool]) -> None:
    with zipfile.ZipFile(wheel) as archive:
        for name in filter(wanted, archive.namelist()):
            path = Path(archive.extract(name, into))
            if ".so" in path.name:
                path.chmod(0o755)


def wanted_of_torch(cuda: bool) -> Callable[[str], bool]:
    def wanted(name: str) -> bool:
        if name.startswith(("torch/include/", "torch/share/")):
            return True
        folder, file = os.path.split(name)
        if folder != "torch/lib":
            return False
        return file not in PYTHON_LIBRARIES if cuda else file in CPU_LIBRARIES
    return wanted


def wanted_of_nvidia(name: str) -> bool:
    """The libraries, and what says which version they are of."""
    return ("/lib/" in name and ".so" in name) or name.endswith(".dist-info/METADATA")


def lay_out(cuda: bool) -> Path:
    """Downloads and unpacks into a new folder of PLACE; returns its torch folder.

    The nvidia libraries lie beside torch as they do in site-packages, since torch's own rpath,
    $ORIGIN/../../nvidia/*/lib, looks for them there.
    """
    check_platform()
    room, size = (7e9, "2.6 GB") if cuda else (2e9, "0.55 GB")
    free = shutil.disk_usage(PLACE).free
    if free < room:
        fail(f"{PLACE} has {free / 1e9:.1f} GB free; {room / 1e9:.0f} GB are needed for a while")
    kind = "with CUDA" if cuda else "for CPUs"
    root = Path(tempfile.mkdtemp(prefix=f"{VERSION}-{'cuda' if cuda else 'cpu'}.", dir=PLACE))
    root.chmod(0o755)
    scratch = root / "scratch"
    scratch.mkdir()
    try:
        pip = pip_command(scratch)
        say(f"downloading libtorch {VERSION} {kind} ({size}); this happens once")
        plan: Dict[Wheel, Callable[[str], bool]] = {TORCH: wanted_of_torch(cuda)}
        if cuda:
            plan.update({w: wanted_of_nvidia for w in CUDA_FULL})
        else:
            plan.update({w: lambda name: name.endswith(("libcudart.so.13", "libcupti.so.13"))
                         for w in CUDA_ALWAYS})
        for wheel, wanted in plan.items():
            say(f"{wheel.name} {wheel.version}")
            path = download(pip, wheel, scratch)
            unpack(path, root, wanted)
            shutil.rmtree(path.parent)
        shutil.rmtree(scratch)
        (root / "torch/build-version").write_text(VERSION + "\n")
        fault = fault_of(root / "torch", cuda) or load_error(root / "torch", cuda)
        if fault:
            fail(f"the new layout is not usable: {fault}")
    except BaseException:
        shutil.rmtree(root, ignore_errors=True)
        raise
    return root / "torch"


# --- what lies beside it --------------------------------------------------------------------------


def contents(extra: Extra) -> str:
    return "".join(f"{wheel.name}=={wheel.version}\n" for wheel in extra.wheels)


def is_there(extra: Extra) -> bool:
    place = PLACE / extra.folder
    try:
        return (place / "contents").read_text() == contents(extra) and (place / extra.proof).is_file()
    except OSError:
        return False


def beside_libtorch(extra: Extra) -> Optional[Path]:
    """The folder to take, if whoever installed the libtorch in place installed these wheels too."""
    site = LINK.resolve().parent
    names = [f"{wheel.name.replace('-', '_')}-{wheel.version}.dist-info" for wheel in extra.wheels]
    folder = site / extra.source
    is_installed = all((site / name).is_dir() for name in names)
    return folder if is_installed and (folder / Path(extra.proof).name).is_file() else None


def fill(extra: Extra, new: Path) -> None:
    """Fills a new folder for `extra`."""
    target = new / extra.target
    found = beside_libtorch(extra)
    if found:
        say(f"linking {found}")
        target.mkdir(parents=True, exist_ok=True)
        for entry in found.iterdir():
            (target / entry.name).symlink_to(entry)
        return
    scratch = new / "scratch"
    scratch.mkdir()
    pip = pip_command(scratch)
    for wheel in extra.wheels:
        say(f"{wheel.name} {wheel.version}")
        path = download(pip, wheel, scratch)
        unpack(path, scratch, lambda name: name.startswith(extra.source))
        shutil.rmtree(path.parent)
    if extra.target:
        (scratch / extra.source).rename(target)
    else:
        for entry in (scratch / extra.source).iterdir():
            entry.rename(new / entry.name)
    shutil.rmtree(scratch)


def lay_beside(extra: Extra) -> None:
    """Puts `extra` in place, or says what doesn't work without it."""
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        say(f"no {extra.folder} is pinned for {platform.machine()}: {extra.without}")
        return
    if shutil.disk_usage(PLACE).free < 1e9:
        say(f"{PLACE} has less than 1 GB free, so {extra.folder} is left out: {extra.without}")
        return
    new = Path(tempfile.mkdtemp(prefix="new.", dir=PLACE))
    new.chmod(0o755)
    place = PLACE / extra.folder
    try:
        say(f"laying out {extra.folder} ({extra.size}); this happens once")
        fill(extra, new)
        (new / "contents").write_text(contents(extra))
        if place.is_dir() or place.is_symlink():
            place.rename(Path(tempfile.mkdtemp(prefix="old.", dir=PLACE)) / extra.folder)
        new.rename(place)
        say(f"{extra.folder} is ready at {place}")
    except SystemExit as error:  # of `fail`
        if not isinstance(error.code, str):
            raise
        say(error.code.replace("libtorch: ", "", 1))
        say(f"without {extra.folder}: {extra.without}; `make setup` tries again")
    finally:
        shutil.rmtree(new, ignore_errors=True)


# --- the order ----------------------------------------------------------------------------------


def given(cuda: bool) -> Optional[Path]:
    """A libtorch that this machine has already, outside PLACE."""
    named = os.environ.get("LIBTORCH")
    if named:
        root = Path(named).resolve()
        if PLACE.resolve() not in root.parents and usable(root, "LIBTORCH", cuda):
            say(f"linking LIBTORCH={root}")
            return root
    root = imported_pytorch()
    if root and usable(root, f"the PyTorch that {sys.executable} imports", cuda):
        say(f"linking {root}, the PyTorch that {sys.executable} imports; "
            "run deploy/libtorch.sh again when you move or upgrade it")
        return root
    return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, prog="deploy/libtorch.sh",
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--force", action="store_true",
                        help="lay out anew, whatever is there")
    force = parser.parse_args().force
    cuda = os.environ.get("GAN_CUDA", "") not in ("", "0")

    if not force and fault_of(LINK, cuda) is None and all(map(is_there, EXTRAS)):
        say(f"{version_of(LINK)} is at {LINK.resolve()}")
        return
    if os.name != "posix":
        fail("Ganglion runs on Linux")
    import fcntl  # not on every system, hence after the check

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    PLACE.mkdir(exist_ok=True)
    with open(PLACE / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # a second run waits, and then finds the work done
        if force or fault_of(LINK, cuda) is not None:
            sweep()
            put_in_place(given(cuda) or lay_out(cuda))
        for extra in EXTRAS:
            if force or not is_there(extra):
                lay_beside(extra)
        sweep()
    say(f"{version_of(LINK)} is ready at {LINK}")


if __name__ == "__main__":
    if sys.version_info < (3, 8):
        sys.exit("libtorch: Python 3.8 or newer is needed, this is " + platform.python_version())
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("\nlibtorch: interrupted; what was laid out before is untouched")
