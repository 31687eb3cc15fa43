"""Builds both images and trains in them, without a container engine or a registry: `make image-check`.

    1. debootstrap makes a base of Debian 12, in the place of the images that deploy/Dockerfile names
    2. buildah builds the targets `coord` and `worker` on it (--isolation chroot, --storage-driver vfs)
    3. in the coordinator's image `gan-coord check` reads the job of the overlay cpu-demo
    4. `gan-coord serve` and two `gan-worker train`, each in a container of its own, train a few steps
       of it as user 65532, with the arguments of the overlay's pods
    5. the checkpoint has the digest of the same training by the same programs outside

The programs are this checkout's release builds (`cargo build --release`), copied in as the images that
COORD_BUILT and WORKER_BUILT name: the Dockerfile's last two stages run, and not the compilation. With
--whole all of it runs: Rust's toolchain is taken from this machine, everything else from the registries;
that takes as long as a build from nothing (GAN_CUDA=0).

It needs root (for chroot), debootstrap and buildah (Debian: apt-get install debootstrap buildah). What it
makes lies in target/image-check, and is used again; --clean removes it first. Nothing of it runs in CI.
"""

import argparse
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Dict, List, NoReturn

ROOT = Path(__file__).resolve().parent.parent
PLACE = ROOT / "target" / "image-check"
sys.path.insert(0, str(ROOT / "deploy" / "kubernetes"))

SUITE = "bookworm"
RUNTIME = ["ca-certificates", "libgcc-s1", "libstdc++6"]
STEPS = 20
UID = 65532
# For two workers to train so many steps, on a busy machine.
PATIENCE = 300


def fail(text: str) -> NoReturn:
    sys.exit(f"image-check: {text}")


def say(text: str) -> None:
    print(f"image-check: {text}", flush=True)


def run(command: List[str], **options) -> str:
    done = subprocess.run(command, capture_output=True, text=True, **options)
    if done.returncode != 0:
        fail(f"{' '.join(command)}\nended with {done.returncode}:\n{done.stdout[-4000:]}"
             f"{done.stderr[-4000:]}")
    return done.stdout.strip()


def buildah(*arguments: str) -> List[str]:
    """Its images and containers are kept apart from those of the machine."""
    return ["buildah", "--root", str(PLACE / "images"), "--runroot", str(PLACE / "run"),
            "--storage-driver", "vfs", *arguments]


def has_image(name: str) -> bool:
    return subprocess.run(buildah("inspect", "--type", "image", name),
                          capture_output=True).returncode == 0


def image_of(folder: Path, name: str, path: str = "") -> None:
    """An image that holds what the folder does, and nothing else."""
    container = run(buildah("from", "scratch"))
    run(buildah("add", "--quiet", container, str(folder), "/"))
    if path:
        run(buildah("config", "--env", f"PATH={path}", container))
    run(buildah("commit", "--quiet", "--rm", container, name))


def bootstrap(mirror: str, whole: bool) -> None:
    """The bases, unless they are there."""
    folder = PLACE / "base"
    if not has_image("localhost/gan-base"):
        say(f"a base of Debian {SUITE}, by debootstrap")
        shutil.rmtree(folder, ignore_errors=True)
        run(["debootstrap", "--variant=minbase", f"--include={','.join(RUNTIME)}", SUITE,
             str(folder), mirror])
        image_of(folder, "localhost/gan-base", "/usr/bin:/bin")
    if whole and not has_image("localhost/gan-rust"):
        say("the same with this machine's toolchain of Rust")
        toolchain = folder / "usr" / "local"
        shutil.copytree(run(["rustc", "--print", "sysroot"]), toolchain, symlinks=True,
                        dirs_exist_ok=True)
        image_of(folder, "localhost/gan-rust", "/root/.cargo/bin:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin")


def built() -> Dict[str, str]:
    """The release programs and libtorch as an image, in the place of the stages that build them."""
    say("this checkout's release builds, in the place of the stages that compile")
    trees = PLACE / "built"
    shutil.rmtree(trees, ignore_errors=True)
    release = ROOT / "target" / "release"
    for program in ("gan-coord", "gan-worker"):
        if not (release / program).is_file():
            fail(f"there is no {release / program}; build it (cargo build --release --locked)")
    coord, worker = trees / "coord" / "out", trees / "worker" / "out"
    (coord / "bin").mkdir(parents=True)
    shutil.copy2(release / "gan-coord", coord / "bin")
    run([str(ROOT / "deploy" / "image-tree.sh"), str(ROOT / ".libtorch"),
         str(release / "gan-worker"), str(worker)])
    for tree in (coord, worker):
        image_of(tree.parent, f"localhost/gan-built-{tree.parent.name}")
    return {"COORD_BUILT": "localhost/gan-built-coord",
            "WORKER_BUILT": "localhost/gan-built-worker"}


def build(target: str, settings: Dict[str, str]) -> None:
    say(f"target {target}")
    command = buildah("build", "--isolation", "chroot", "--pull-never", "--layers=false",
                      "--file", str(ROOT / "deploy" / "Dockerfile"), "--target", target,
                      "--tag", f"localhost/gan-{target}")
    for name, value in settings.items():
        command += ["--build-arg", f"{name}={value}"]
    log = PLACE / f"{target}.log"
    with log.open("w") as file:
        done = subprocess.run([*command, str(ROOT)], stdout=file, stderr=subprocess.STDOUT)
    if done.returncode != 0:
        fail(f"the target {target} can't be built:\n{log.read_text()[-4000:]}")


class Container:
    """A container of one of the images, and what it runs."""

    def __init__(self, image: str, volumes: Dict[Path, str]):
        self.name = run(buildah("from", "--pull-never", f"localhost/gan-{image}"))
        self.program = f"/opt/ganglion/bin/gan-{image}"
        self.volumes = [word for host, path in volumes.items()
                        for word in ("--volume", f"{host}:{path}")]

    def command(self, *arguments: str) -> List[str]:
        return buildah("run", "--isolation", "chroot", *self.volumes, self.name, "--",
                       self.program, *arguments)

    def start(self, log: Path, *arguments: str) -> subprocess.Popen:
        with log.open("w") as file:
            return subprocess.Popen(self.command(*arguments), stdout=file,
                                    stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)

    def remove(self) -> None:
        subprocess.run(buildah("rm", self.name), capture_output=True)


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def pods_arguments() -> Dict[str, List[str]]:
    """What the pods of the overlay cpu-demo are handed."""
    import check
    import rules
    cluster = rules.Cluster("cpu-demo", check.render(
        ROOT / "deploy" / "kubernetes" / "overlays" / "cpu-demo"))
    return {name: rules.arguments(cluster.of(f"gan-{name}").main()) for name in ("coord", "worker")}


def train() -> None:
    """As in the cluster, but for names and ports: all is on this machine here."""
    job, state = PLACE / "etc", PLACE / "state"
    for folder in (job, state):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
    os.chown(state, UID, UID)
    shutil.copy2(ROOT / "deploy/kubernetes/overlays/cpu-demo/job.toml", job / "job.toml")
    port = free_port()

    def here(arguments: List[str], name: str) -> List[str]:
        replaced = {"--listen": f"127.0.0.1:{port}", "--metrics-listen": "127.0.0.1:0",
                    "--coordinator": f"http://127.0.0.1:{port}", "--advertise": "127.0.0.1"}
        given = [f"{word.split('=')[0]}={replaced[word.split('=')[0]]}"
                 if word.split("=")[0] in replaced else word for word in arguments]
        short = ["--set", f"train.steps={STEPS}", "--set", "workers.min=2"]
        return given + (short if name == "coord" else [])

    given = pods_arguments()
    coord = Container("coord", {job: "/etc/ganglion:ro", state: "/var/lib/ganglion:rw"})
    workers = [Container("worker", {state: "/var/lib/ganglion:rw"}) for _ in range(2)]
    running: List[subprocess.Popen] = []
    try:
        checked = run(coord.command("check", "/etc/ganglion/job.toml"))
        say(f"gan-coord check: {checked.splitlines()[-1]}")
        logs = {"coord": PLACE / "coord-run.log"}
        running.append(coord.start(logs["coord"], *here(given["coord"], "coord")))
        for index, worker in enumerate(workers):
            logs[f"worker {index}"] = PLACE / f"worker-{index}-run.log"
            running.append(worker.start(logs[f"worker {index}"], *here(given["worker"], "worker")))
        deadline = time.monotonic() + PATIENCE
        for (name, log), process in zip(logs.items(), running):
            try:
                code = process.wait(max(1.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                fail(f"{name} has not ended within {PATIENCE} s:\n{log.read_text()[-3000:]}")
            if code != 0:
                fail(f"{name} ended with {code}:\n{log.read_text()[-3000:]}")
        if not (state / "run" / "result.json").is_file():
            fail(f"there is no certificate: {logs['coord'].read_text()[-3000:]}")
        said = run(workers[0].command("inspect", "--digest",
                                      f"/var/lib/ganglion/run/checkpoints/step-{STEPS:08}"))
    finally:
        for process in running:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
                process.wait(30)
        for container in [coord, *workers]:
            container.remove()
    owner = (state / "run" / "result.json").stat().st_uid
    if owner != UID:
        fail(f"the run directory's files are user {owner}'s, not {UID}'s")
    outside = PLACE / "outside"
    shutil.rmtree(outside, ignore_errors=True)
    run([str(ROOT / "target/release/gan-coord"), "run", str(job / "job.toml"),
         "--run-dir", str(outside), "--set", f"train.steps={STEPS}",
         "--set", f"data.uri={ROOT}/tests/data/mnist", "--set", f"data.shard_folder={PLACE}/shards"])
    expected = run([str(ROOT / "target/release/gan-worker"), "inspect", "--digest",
                    str(outside / "checkpoints" / f"step-{STEPS:08}")])
    if said != expected:
        fail(f"the digest is {said}, and outside of the images it is {expected}")
    say(f"two workers, {STEPS} steps: digest {said[:16]}…, as outside of the images")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--whole", action="store_true", help="compile in the image too")
    parser.add_argument("--clean", action="store_true", help="use nothing of an earlier run")
    parser.add_argument("--mirror", default="http://deb.debian.org/debian",
                        help="where debootstrap gets packages")
    options = parser.parse_args()
    if os.geteuid() != 0:
        fail("it needs root, for chroot")
    for program in ("debootstrap", "buildah"):
        if shutil.which(program) is None:
            fail(f"there is no {program} (Debian: apt-get install debootstrap buildah)")
    if options.clean:
        shutil.rmtree(PLACE, ignore_errors=True)
    PLACE.mkdir(parents=True, exist_ok=True)
    bootstrap(options.mirror, options.whole)
    settings = {"RUNTIME_IMAGE": "localhost/gan-base"}
    if options.whole:
        settings.update(RUST_IMAGE="localhost/gan-rust", GAN_CUDA="0")
    else:
        settings.update(built())
    for target in ("coord", "worker"):
        build(target, settings)
    train()
    say("good: " + ("compiled in the image" if options.whole else
                    "release builds of this checkout, not compiled in the image"))


if __name__ == "__main__":
    main()
