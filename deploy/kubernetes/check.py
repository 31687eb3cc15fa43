"""Renders every overlay of deploy/kubernetes and checks it, without a cluster: `make k8s-check`.

    1. Kubernetes' own schemas, strictly (a field that doesn't exist is a fault)
    2. what they don't see: rules.py
    3. each program is handed the arguments that the pods hand it, and must take them
    4. `gan-coord check` reads each job file; only the data are others, for those are in the cluster
    5. the Dockerfile has what the pods take for granted, and hadolint likes it
    6. each of these notices a fault: spoils.py breaks a rendered overlay in many ways

The exit status is 0 if all of that holds. Tools come by deploy/tools.py; --bin names the folder of
gan-coord and gan-worker (default: target/debug).
"""

import argparse
import copy
import re
import struct
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Dict, Iterator, List

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path.insert(0, str(HERE.parent))
import tools  # noqa: E402

sys.path.insert(0, str(tools.packages()))
import kubernetes_validate  # noqa: E402
import tomli  # noqa: E402
import yaml  # noqa: E402

import rules  # noqa: E402
import spoils  # noqa: E402
from rules import Cluster, Document  # noqa: E402

KUBERNETES = "1.32"
DOCKERFILE = ROOT / "deploy" / "Dockerfile"
# What NVIDIA's container runtime goes by.
DRIVER = ["NVIDIA_VISIBLE_DEVICES=all", "NVIDIA_DRIVER_CAPABILITIES=compute,utility"]
# For a program to say whether it takes its arguments, or a job file.
PATIENCE = 60


def render(folder: Path) -> List[Document]:
    command = [str(tools.kubectl()), "kustomize", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    if done.returncode != 0:
        sys.exit(f"k8s-check: {folder.name} can't be rendered: {done.stderr.strip()}")
    if done.stderr.strip():
        sys.exit(f"k8s-check: {folder.name}: {done.stderr.strip()}")
    return [document for document in yaml.safe_load_all(done.stdout) if document]


def schema(cluster: Cluster) -> Iterator[str]:
    for document in cluster.documents:
        checked = [document]
        if document["kind"] == "JobSet":
            # The Jobs that it would make.
            checked = [{"apiVersion": "batch/v1", "kind": "Job",
                        "metadata": {"name": part["name"]}, "spec": part["template"]["spec"]}
                       for part in document["spec"]["replicatedJobs"]]
        elif document["kind"] in ("ServiceMonitor", "PrometheusRule", "Issuer", "Certificate"):
            continue  # rules.operators
        for one in checked:
            try:
                kubernetes_validate.validate(one, KUBERNETES, strict=True)
            except kubernetes_validate.ValidationError as error:
                path = ".".join(str(step) for step in error.path)
                yield f"{one['kind']} {one['metadata']['name']}: {path}: {error.message[:200]}"
            except kubernetes_validate.SchemaNotFoundError:
                yield f"{one['kind']} is nothing that Kubernetes {KUBERNETES} knows"


def arguments(cluster: Cluster, programs: Path) -> Iterator[str]:
    """`--help` after them: they are all taken, value by value, and then nothing is done. It names
    the variables that stand for options, too."""
    for pods in cluster.pods():
        for container in pods.containers():
            name = rules.program(container)
            if name is None:
                continue
            command = [str(programs / name), *rules.arguments(container), "--help"]
            done = subprocess.run([str(word) for word in command], capture_output=True, text=True,
                                  timeout=PATIENCE)
            if done.returncode != 0:
                said = done.stderr.strip().splitlines()[0] if done.stderr.strip() else "nothing"
                yield f"{pods.name}/{container['name']}: {name} takes them not: {said}"
                continue
            given = " ".join(container.get("args", []))
            for variable in rules.environment(container):
                # The coordinator's pod is where people run status and stop.
                asked = [["--help"]] if name == "gan-worker" else [["--help"], ["status", "--help"]]
                known = done.stdout + "".join(
                    subprocess.run([str(programs / name), *words], capture_output=True, text=True,
                                   timeout=PATIENCE).stdout for words in asked)
                if f"$({variable})" not in given and f"[env: {variable}=" not in known:
                    yield f"{pods.name}/{container['name']}: {name} knows no variable {variable}"


def job_file(cluster: Cluster, programs: Path) -> Iterator[str]:
    text = next(document for document in cluster.all("ConfigMap")
                if document["metadata"]["name"] == "gan-job")["data"]["job.toml"]
    with tempfile.TemporaryDirectory() as scratch:
        file, images = Path(scratch) / "job.toml", Path(scratch) / "images"
        file.write_text(text)
        images.mkdir()
        count = 4096
        pixels = bytes((i * 7 + j) % 256 for i in range(16) for j in range(28 * 28))
        (images / "train-images-idx3-ubyte").write_bytes(
            struct.pack(">IIII", 0x0803, count, 28, 28) + pixels * (count // 16))
        done = subprocess.run(
            [str(programs / "gan-coord"), "check", str(file), "--set", f"data.uri={images}",
             "--set", f"data.shard_folder={scratch}/shards"],
            capture_output=True, text=True, timeout=PATIENCE)
    if done.returncode != 0:
        yield done.stderr.strip().replace(str(file), "job.toml")
        return
    yield from rules.job_file(cluster, tomli.loads(text))


def dockerfile(text: str) -> Iterator[str]:
    """What the pods take for granted of the images."""
    stages = re.split(r"(?m)^FROM ", text)[1:]
    for image, name in rules.PROGRAMS.items():
        target = image.rsplit("/", 1)[-1]
        stage = next((stage for stage in stages if re.match(rf"\S+ AS {target}\n", stage)), "")
        for wanted in [f'ENTRYPOINT ["/opt/ganglion/bin/{name}"]', f"USER {rules.UID}:{rules.UID}",
                       *[f"COPY tests/data/mnist {path}" for path in rules.IN_IMAGES],
                       *(DRIVER if name == "gan-worker" else [])]:
            if wanted not in stage:
                yield f"target {target}: no line {wanted}"
    done = subprocess.run([str(tools.hadolint()), "--no-color", "-"], input=text, text=True,
                          capture_output=True, timeout=PATIENCE)
    yield from done.stdout.splitlines()
    if done.returncode != 0 and not done.stdout.strip():
        yield f"hadolint: {done.stderr.strip()}"


def problems(cluster: Cluster, programs: Path) -> Dict[str, List[str]]:
    """By the rule that found them."""
    found = {"schema": list(schema(cluster))}
    for rule in rules.RULES:
        found[rule.__name__] = list(rule(cluster))
    found["arguments"] = list(arguments(cluster, programs))
    found["job file"] = list(job_file(cluster, programs))
    return found


def notices(spoil: spoils.Spoil, cluster: Cluster, before: List[str], programs: Path) -> bool:
    """Whether the rule finds something that it did not find before."""
    spoiled = Cluster(cluster.overlay, copy.deepcopy(cluster.documents))
    spoil.do(spoiled.documents)
    if spoil.rule == "schema":
        found = schema(spoiled)
    elif spoil.rule == "arguments":
        found = arguments(spoiled, programs)
    elif spoil.rule == "job file":
        found = job_file(spoiled, programs)
    else:
        found = getattr(rules, spoil.rule)(spoiled)
    return any(problem not in before for problem in found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bin", type=Path, default=ROOT / "target" / "debug", metavar="DIR",
                        help="where gan-coord and gan-worker are")
    options = parser.parse_args()
    for name in rules.PROGRAMS.values():
        if not (options.bin / name).is_file():
            sys.exit(f"k8s-check: there is no {options.bin / name}; build it (cargo build)")
    folders = [HERE / "base", *sorted(path for path in (HERE / "overlays").iterdir()
                                      if (path / "kustomization.yaml").is_file())]
    clusters: Dict[str, Cluster] = {}
    before: Dict[str, Dict[str, List[str]]] = {}
    passed = failed = 0
    for folder in folders:
        clusters[folder.name] = cluster = Cluster(folder.name, render(folder))
        before[folder.name] = problems(cluster, options.bin)
        found = [f"{rule}: {problem}" for rule, list_ in before[folder.name].items()
                 for problem in list_]
        passed, failed = (passed + 1, failed) if not found else (passed, failed + 1)
        told = "good" if not found else "BAD"
        print(f"{folder.name:<12} {len(cluster.documents):>3} objects  {told}", flush=True)
        for problem in found:
            print(f"    {problem}")
    text = DOCKERFILE.read_text()
    found = list(dockerfile(text))
    passed, failed = (passed + 1, failed) if not found else (passed, failed + 1)
    print(f"{'Dockerfile':<12} {len(text.splitlines()):>3} lines    {'BAD' if found else 'good'}")
    for problem in found:
        print(f"    {problem}")
    missed = [spoil for spoil in spoils.SPOILS
              if not notices(spoil, clusters[spoil.overlay], before[spoil.overlay][spoil.rule],
                             options.bin)]
    for broken in (text.replace(f"USER {rules.UID}", "USER root"),
                   text.replace("apt-get install --yes", "apt-get install")):
        if not list(dockerfile(broken)):
            missed.append(spoils.Spoil("Dockerfile", "", "a fault", print))
    unchecked = {rule.__name__ for rule in rules.RULES} - {spoil.rule for spoil in spoils.SPOILS}
    count = len(spoils.SPOILS) + 2
    print(f"{'faults':<12} {count - len(missed):>3} of {count} noticed")
    for spoil in missed:
        print(f"    {spoil.rule} does not notice in {spoil.overlay}: {spoil.what}")
    for rule in sorted(unchecked):
        print(f"    nothing breaks the rule {rule}")
    if missed or unchecked:
        failed += 1
    else:
        passed += 1
    print(f"k8s-check: {passed} passed, {failed} failed")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
