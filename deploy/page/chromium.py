"""Lays out Chromium and its driver for tests: those in PATH, or else Debian's, unpacked under target/tools.

Debian's packages come with the libraries that the machine lacks (130 MB downloaded, 420 MB on disk). They are
downloaded by apt into a folder of its own, with lists of its own, for a machine's lists are often older than the
mirror; so nothing is installed, and nobody needs to be root. There is no fixed version to ask for: Debian replaces
Chromium with every release of it. apt checks what it gets by the distribution's signatures.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Dict, List, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import tools  # noqa: E402

PACKAGES = ["chromium", "chromium-driver"]
NAMES = ["chromium", "chromium-browser", "google-chrome"]
# For a mirror to answer and to send it all.
PATIENCE = 600


class Browser(NamedTuple):
    """What to start, and in which environment."""

    program: Path
    driver: Path
    environment: Dict[str, str]


def browser() -> Browser:
    """The browser of this machine, laid out if need be."""
    driver = shutil.which("chromedriver")
    program = next(filter(None, map(shutil.which, NAMES)), None)
    if driver and program:
        return Browser(Path(program), Path(driver), dict(os.environ))
    place = tools.PLACE / "chromium"
    if not place.is_dir():
        print("tools: Chromium (130 MB, once)", file=sys.stderr)
        tools.PLACE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=tools.PLACE) as scratch:
            made = Path(scratch) / "made"
            for package in download(Path(scratch) / "apt"):
                run(["dpkg-deb", "--extract", str(package), str(made)])
            tools.put(made, place)
    folders = {library.parent for library in place.glob("usr/lib/*-linux-gnu/**/*.so*")}
    libraries = ":".join(map(str, sorted(folders)))
    environment = {**os.environ, "LD_LIBRARY_PATH": libraries}
    programs = place / "usr/lib/chromium"
    return Browser(programs / "chromium", place / "usr/bin/chromedriver", environment)


def download(apt: Path) -> List[Path]:
    """Debian's packages that this machine lacks for it."""
    if not (shutil.which("apt-get") and shutil.which("dpkg-deb")):
        tools.fail("a browser is needed: install chromium and chromedriver (this is no Debian, or it "
                   "would be unpacked here)")
    for folder in ("state/lists/partial", "cache/archives/partial"):
        (apt / folder).mkdir(parents=True)
    options = {
        "Dir::State": apt / "state",
        # What is installed needs no second copy.
        "Dir::State::status": "/var/lib/dpkg/status",
        "Dir::Cache": apt / "cache",
        "Debug::NoLocking": "1",
        # Root's apt would download as another user, who can't write here.
        "APT::Sandbox::User": "root",
        "Acquire::Retries": "3",
    }
    command = ["apt-get", "--quiet", "--quiet"]
    for key, value in options.items():
        command += ["-o", f"{key}={value}"]
    run([*command, "update"])
    run([*command, "install", "--download-only", "--yes", "--no-install-recommends", *PACKAGES])
    return sorted((apt / "cache/archives").glob("*.deb"))


def run(command: List[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE,
                          env={**os.environ, "LC_ALL": "C"})
    if done.returncode != 0:
        tools.fail(f"{command[0]} {command[-1]} failed:\n{done.stdout}{done.stderr}"
                   "(a browser can also be installed: apt-get install chromium chromium-driver)")


if __name__ == "__main__":
    print(browser().program)
