"""What must hold of the rendered objects beyond what Kubernetes' schemas say.

PURE: documents in, problems out. It runs no program and reads no file. Each rule is a function of a
`Cluster` that yields sentences; `RULES` lists them. How to break each one is in spoils.py.
"""

import re
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Optional, Tuple

Document = Dict[str, Any]
Problems = Iterator[str]

UID = 65532
WRONG, LEFT = {"gan-coord": [64, 76, 78], "gan-worker": [64, 78]}, [75]
# What programs are called by their images.
PROGRAMS = {"ganglion/coord": "gan-coord", "ganglion/worker": "gan-worker"}
# Claims that are the cluster's user's, not the job's.
FOREIGN_CLAIMS = {"gan-data"}
# Namespaces that are not ours, whose pods policies may name.
FOREIGN_NAMESPACES = {"kube-system", "monitoring"}
# What is in both images, by deploy/Dockerfile.
IN_IMAGES = ["/usr/share/ganglion/mnist"]
GPU = "nvidia.com/gpu"
# What `restricted` allows of volumes (Kubernetes' Pod Security Standards).
VOLUMES = {"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim",
           "projected", "secret"}
# What the overlay rdma may do that `restricted` forbids, and no other overlay, and nothing more.
RDMA = {"gan-worker: runs as root", "gan-worker/worker: capability DAC_OVERRIDE",
        "gan-worker/worker: capability IPC_LOCK"}


class Pods(NamedTuple):
    """A Job's pods: from a Job, or from a JobSet's."""

    name: str  # the Job's
    host: str  # what a pod is called in its subdomain, before its index
    job: Document  # the Job's spec
    labels: Dict[str, str]
    spec: Document
    by: Optional[Document]  # the JobSet

    def containers(self) -> List[Document]:
        return [*self.spec.get("initContainers", []), *self.spec["containers"]]

    def main(self) -> Document:
        return self.spec["containers"][0]

    def ports(self) -> Dict[str, int]:
        """Of the containers that stay, by name."""
        return {port["name"]: port["containerPort"]
                for container in self.spec["containers"] for port in container.get("ports", [])}


class Cluster:
    """An overlay as it would be applied."""

    def __init__(self, overlay: str, documents: List[Document]):
        self.overlay = overlay
        self.documents = documents

    def all(self, kind: str) -> List[Document]:
        return [document for document in self.documents if document["kind"] == kind]

    def names(self, kind: str) -> List[str]:
        return [document["metadata"]["name"] for document in self.all(kind)]

    def pods(self) -> List[Pods]:
        found = []
        for job in self.all("Job"):
            name, template = job["metadata"]["name"], job["spec"]["template"]
            found.append(Pods(name, name, job["spec"], template["metadata"]["labels"],
                              template["spec"], None))
        for group in self.all("JobSet"):
            own = {"jobset.sigs.k8s.io/jobset-name": group["metadata"]["name"]}
            for part in group["spec"]["replicatedJobs"]:
                job = part["template"]["spec"]
                host = f"{group['metadata']['name']}-{part['name']}-0"
                template = job["template"]
                labels = {**template["metadata"]["labels"], **own}
                found.append(Pods(f"gan-{part['name']}", host, job, labels, template["spec"], group))
        return found

    def of(self, name: str) -> Pods:
        return next(pods for pods in self.pods() if pods.name == name)

    def selected(self, selector: Document) -> List[Pods]:
        wanted = selector.get("matchLabels", selector)
        return [pods for pods in self.pods() if wanted.items() <= pods.labels.items()]


# --- arguments ----------------------------------------------------------------------------------


def environment(container: Document) -> Dict[str, str]:
    """The variables that arguments may name; what comes from a pod's index is 0."""
    known = {}
    for variable in container.get("env", []):
        path = variable.get("valueFrom", {}).get("fieldRef", {}).get("fieldPath", "")
        index = path == "metadata.labels['batch.kubernetes.io/job-completion-index']"
        known[variable["name"]] = "0" if index else str(variable.get("value", ""))
    return known


def arguments(container: Document) -> List[str]:
    """As the program gets them in the pod of index 0. An unknown variable stays, as in Kubernetes."""
    known = environment(container)
    return [re.sub(r"\$\(([A-Za-z_]\w*)\)", lambda m: known.get(m[1], m[0]), argument)
            for argument in container.get("args", [])]


def option(container: Document, name: str) -> Optional[str]:
    prefix = f"--{name}="
    values = [argument[len(prefix):] for argument in arguments(container)
              if argument.startswith(prefix)]
    return values[-1] if values else None


def program(container: Document) -> Optional[str]:
    return PROGRAMS.get(container["image"].rsplit(":", 1)[0])


def gpus(container: Document) -> int:
    return int(container.get("resources", {}).get("limits", {}).get(GPU, 0))


def processes(container: Document) -> int:
    """Worker processes of a pod."""
    if option(container, "device") == "cuda:all":
        return gpus(container)
    return int(option(container, "processes") or 1)


def seconds(text: str) -> int:
    match = re.fullmatch(r"(\d+)(s|m|h)", text)
    return int(match[1]) * {"s": 1, "m": 60, "h": 3600}[match[2]] if match else 0


def amount(quantity: Any) -> float:
    """A Kubernetes quantity, in bytes or cores."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(m|k|M|G|T|Ki|Mi|Gi|Ti)?", str(quantity))
    if not match:
        return -1.0
    units = {"m": 1e-3, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12,
             "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}
    return float(match[1]) * units.get(match[2] or "", 1)


# --- rules --------------------------------------------------------------------------------------


def objects(cluster: Cluster) -> Problems:
    seen = set()
    for document in cluster.documents:
        key = (document["kind"], document["metadata"]["name"])
        if key in seen:
            yield f"{key} is there twice"
        seen.add(key)
        namespace = document["metadata"].get("namespace")
        if document["kind"] == "Namespace":
            continue
        if namespace not in cluster.names("Namespace"):
            yield f"{key} is in namespace {namespace}, which is not made here"
    for document in cluster.all("ServiceAccount"):
        if document.get("automountServiceAccountToken") is not False:
            yield f"ServiceAccount {document['metadata']['name']} has a token"


def references(cluster: Cluster) -> Problems:
    used = set()
    for pods in cluster.pods():
        account = pods.spec.get("serviceAccountName")
        if account not in cluster.names("ServiceAccount"):
            yield f"{pods.name}: there is no ServiceAccount {account}"
        maps = [volume["configMap"]["name"] for volume in pods.spec["volumes"]
                if "configMap" in volume]
        maps += [source["configMapRef"]["name"] for container in pods.containers()
                 for source in container.get("envFrom", []) if "configMapRef" in source]
        secrets = [volume["secret"]["secretName"] for volume in pods.spec["volumes"]
                   if "secret" in volume]
        made = [certificate["spec"]["secretName"] for certificate in cluster.all("Certificate")]
        for name in secrets:
            if name not in made:
                yield f"{pods.name}: no Certificate makes the Secret {name}"
        for name in maps:
            used.add(name)
            if name not in cluster.names("ConfigMap"):
                yield f"{pods.name}: there is no ConfigMap {name}"
        for volume in pods.spec["volumes"]:
            claim = volume.get("persistentVolumeClaim", {}).get("claimName")
            ours = cluster.names("PersistentVolumeClaim")
            if claim and claim not in ours and claim not in FOREIGN_CLAIMS:
                yield f"{pods.name}: there is no PersistentVolumeClaim {claim}"
    for document in cluster.all("ConfigMap"):
        # Grafana finds its dashboards by their label.
        shown = document["metadata"].get("labels", {}).get("grafana_dashboard") == "1"
        if document["metadata"]["name"] not in used and not shown:
            yield f"ConfigMap {document['metadata']['name']} is not used"


def selectors(cluster: Cluster) -> Problems:
    for service in cluster.all("Service"):
        name = service["metadata"]["name"]
        chosen = cluster.selected(service["spec"]["selector"])
        if len(chosen) != 1:
            yield f"Service {name} selects the pods of {len(chosen)} jobs"
        for pods in chosen:
            for port in service["spec"]["ports"]:
                target = port.get("targetPort", port["port"])
                if target not in pods.ports() and target not in pods.ports().values():
                    yield f"Service {name}: {pods.name} has no port {target}"
    for budget in cluster.all("PodDisruptionBudget"):
        name, spec = budget["metadata"]["name"], budget["spec"]
        chosen = cluster.selected(spec["selector"])
        if not chosen:
            yield f"PodDisruptionBudget {name} selects nothing"
        least = spec.get("minAvailable")
        if "maxUnavailable" in spec or not isinstance(least, int):
            yield f"PodDisruptionBudget {name}: a Job's pods need an integer minAvailable"
        elif any(least >= pods.job.get("parallelism", 1) for pods in chosen):
            yield f"PodDisruptionBudget {name}: no pod could ever be evicted"
    for pods in cluster.pods():
        for spread in pods.spec.get("topologySpreadConstraints", []):
            if pods not in cluster.selected(spread["labelSelector"]):
                yield f"{pods.name}: its topology spread counts other pods"
        subdomain = pods.spec.get("subdomain")
        if pods.by:
            network = pods.by["spec"]["network"]
            named = network["subdomain"] == subdomain if subdomain else True
            if not (named and network.get("publishNotReadyAddresses")):
                yield f"{pods.name}: the JobSet's network has another subdomain, or hides pods"
        elif subdomain:
            heads = [service for service in cluster.all("Service")
                     if service["metadata"]["name"] == subdomain
                     and service["spec"].get("clusterIP") == "None"
                     and service["spec"].get("publishNotReadyAddresses") is True
                     and pods in cluster.selected(service["spec"]["selector"])]
            if not heads:
                yield f"{pods.name}: no headless Service {subdomain} gives its pods names"
    for monitor in cluster.all("ServiceMonitor"):
        name, wanted = monitor["metadata"]["name"], monitor["spec"]["selector"]["matchLabels"]
        services = [service for service in cluster.all("Service")
                    if wanted.items() <= service["metadata"].get("labels", {}).items()]
        served = {port["name"] for service in services for port in service["spec"]["ports"]}
        scraped = {endpoint["port"] for endpoint in monitor["spec"]["endpoints"]}
        metrics = {port for port in served if port.startswith("metrics")}
        if len(services) != 1 or not metrics or metrics - scraped:
            yield f"ServiceMonitor {name} does not scrape all of one Service's metrics ports"


def policies(cluster: Cluster) -> Problems:
    """Everything is denied but what programs need, and that is allowed at both ends."""
    for policy in cluster.all("NetworkPolicy"):
        name, spec = policy["metadata"]["name"], policy["spec"]
        targets = cluster.selected(spec["podSelector"])
        if not targets:
            yield f"NetworkPolicy {name} selects nothing"
        rules = [(rule, rule.get("from", []), targets) for rule in spec.get("ingress", [])]
        rules += [(rule, rule.get("to", []), None) for rule in spec.get("egress", [])]
        for rule, peers, listeners in rules:
            if not peers:
                yield f"NetworkPolicy {name}: a rule is for everybody"
            for peer in peers:
                space = peer.get("namespaceSelector", {}).get("matchLabels", {})
                space = space.get("kubernetes.io/metadata.name")
                if space:
                    if space not in FOREIGN_NAMESPACES:
                        yield f"NetworkPolicy {name} names an unknown namespace, {space}"
                    continue
                found = cluster.selected(peer["podSelector"])
                if not found:
                    yield f"NetworkPolicy {name} names pods that there are not: {peer}"
                listening = listeners if listeners is not None else found
                for port in rule.get("ports", []):
                    reached = range(port["port"], port.get("endPort", port["port"]) + 1)
                    if not any(number in reached for pods in listening
                               for number in pods.ports().values()):
                        yield f"NetworkPolicy {name}: nobody listens on {port}"
    for pods in cluster.pods():
        denied = {kind for policy in cluster.all("NetworkPolicy")
                  if pods in cluster.selected(policy["spec"]["podSelector"])
                  for kind in policy["spec"]["policyTypes"]}
        if denied != {"Ingress", "Egress"}:
            yield f"{pods.name}: not everything is denied by default"
    worker, coord = cluster.of("gan-worker"), cluster.of("gan-coord")
    for source, target, port, why in [
        (worker, coord, 50051, "workers reach the coordinator"),
        (worker, worker, 1, "workers reach each other on any port"),
        (worker, worker, 65535, "workers reach each other on any port"),
    ]:
        for direction, at, other in [("egress", source, target), ("ingress", target, source)]:
            if not any(allows(cluster, policy, direction, at, other, port)
                       for policy in cluster.all("NetworkPolicy")):
                yield f"no NetworkPolicy lets {why} ({direction})"


def allows(cluster: Cluster, policy: Document, direction: str, at: Pods, other: Pods,
           port: int) -> bool:
    spec, side = policy["spec"], {"egress": "to", "ingress": "from"}[direction]
    if at not in cluster.selected(spec["podSelector"]):
        return False
    for rule in spec.get(direction, []):
        peers = [peer for peer in rule.get(side, []) if "namespaceSelector" not in peer]
        if any(other in cluster.selected(peer["podSelector"]) for peer in peers) and any(
                entry["protocol"] == "TCP"
                and entry["port"] <= port <= entry.get("endPort", entry["port"])
                for entry in rule["ports"]):
            return True
    return False


def ports(cluster: Cluster) -> Problems:
    for pods in cluster.pods():
        entries = [port for container in pods.containers() for port in container.get("ports", [])]
        for key in ("name", "containerPort"):
            values = [port[key] for port in entries]
            if len(set(values)) != len(values):
                yield f"{pods.name}: two ports have one {key}"
        container = pods.main()
        for kind in ("startupProbe", "livenessProbe", "readinessProbe"):
            probe = container.get(kind)
            if probe is None:
                yield f"{pods.name}: {container['name']} has no {kind}"
                continue
            served = pods.ports()
            if "grpc" in probe:
                wanted = option(container, "listen")
                if str(probe["grpc"]["port"]) != (wanted or "").rsplit(":", 1)[-1]:
                    yield f"{pods.name}: the {kind} asks port {probe['grpc']['port']}, not {wanted}"
            elif "httpGet" in probe:
                asked = served.get(probe["httpGet"]["port"], probe["httpGet"]["port"])
                wanted = option(container, "metrics-listen") or ""
                if str(asked) != wanted.rsplit(":", 1)[-1] or probe["httpGet"]["path"] != "/health":
                    yield f"{pods.name}: the {kind} asks {probe['httpGet']}; /health is on {wanted}"
            else:
                yield f"{pods.name}: the {kind} asks nothing that the program answers"
        start = container.get("startupProbe", {})
        if start.get("periodSeconds", 10) * start.get("failureThreshold", 3) < 300:
            yield f"{pods.name}: the startupProbe gives less than five minutes"
        first = (option(container, "metrics-listen") or ":0").rsplit(":", 1)[-1]
        metrics = [number for name, number in pods.ports().items() if name.startswith("metrics")]
        count = processes(container) if program(container) == "gan-worker" else 1
        if sorted(metrics) != list(range(int(first), int(first) + count)):
            yield (f"{pods.name}: {count} processes serve metrics from {first} on, and the ports "
                   f"are {sorted(metrics)}")


def volumes(cluster: Cluster) -> Problems:
    for pods in cluster.pods():
        there = {volume["name"]: volume for volume in pods.spec["volumes"]}
        mounted = set()
        for container in pods.containers():
            where = f"{pods.name}/{container['name']}"
            mounts = container.get("volumeMounts", [])
            paths = [mount["mountPath"] for mount in mounts]
            if len(set(paths)) != len(paths):
                yield f"{where}: two volumes are mounted at one path"
            for mount in mounts:
                mounted.add(mount["name"])
                if mount["name"] not in there:
                    yield f"{where}: there is no volume {mount['name']}"
            kept = {mount["mountPath"]: there.get(mount["name"], {}) for mount in mounts}
            if "emptyDir" not in kept.get("/tmp", {}):
                yield f"{where}: the root is read-only, and /tmp is no emptyDir"
            limit = amount(container.get("resources", {}).get("limits", {}).get("memory"))
            if limit <= 0:
                yield f"{where}: no limit of memory"
            for path, volume in kept.items():
                if volume.get("emptyDir", {}).get("medium") == "Memory":
                    if amount(volume["emptyDir"].get("sizeLimit")) >= limit:
                        yield f"{where}: {path} may take all of the memory"
            if program(container) == "gan-worker":
                if kept.get("/dev/shm", {}).get("emptyDir", {}).get("medium") != "Memory":
                    yield f"{where}: /dev/shm is the container runtime's 64 MB"
        for name, volume in there.items():
            if name not in mounted:
                yield f"{pods.name}: volume {name} is not mounted"
            if "emptyDir" in volume and amount(volume["emptyDir"].get("sizeLimit")) <= 0:
                yield f"{pods.name}: emptyDir {name} has no limit"


def deviations(pods: Pods) -> Iterator[str]:
    """What the profile `restricted` forbids."""
    spec, security = pods.spec, pods.spec.get("securityContext", {})
    for key in ("hostNetwork", "hostPID", "hostIPC"):
        if spec.get(key):
            yield f"{pods.name}: {key}"
    for volume in spec.get("volumes", []):
        for kind in set(volume) - {"name"} - VOLUMES:
            yield f"{pods.name}: a volume of kind {kind}"
    if security.get("seccompProfile", {}).get("type") not in ("RuntimeDefault", "Localhost"):
        yield f"{pods.name}: no seccomp profile"
    if security.get("runAsNonRoot") is not True or security.get("runAsUser") == 0:
        yield f"{pods.name}: runs as root"
    for container in pods.containers():
        where, own = f"{pods.name}/{container['name']}", container.get("securityContext", {})
        if own.get("privileged"):
            yield f"{where}: is privileged"
        if own.get("allowPrivilegeEscalation") is not False:
            yield f"{where}: may escalate privileges"
        if own.get("runAsNonRoot") is False or own.get("runAsUser") == 0:
            yield f"{where}: runs as root"
        capabilities = own.get("capabilities", {})
        if "ALL" not in capabilities.get("drop", []):
            yield f"{where}: keeps capabilities"
        for capability in set(capabilities.get("add", [])) - {"NET_BIND_SERVICE"}:
            yield f"{where}: capability {capability}"
        if any("hostPort" in port for port in container.get("ports", [])):
            yield f"{where}: a port of the host"


def profile(cluster: Cluster) -> Problems:
    found = {deviation for pods in cluster.pods() for deviation in deviations(pods)}
    allowed = RDMA if cluster.overlay == "rdma" else set()
    for deviation in sorted(found - allowed):
        yield f"{deviation}, which `restricted` forbids"
    for deviation in sorted(allowed - found):
        yield f"{deviation}: expected of this overlay, and not there"
    for namespace in cluster.all("Namespace"):
        enforced = namespace["metadata"]["labels"].get("pod-security.kubernetes.io/enforce")
        wanted = "privileged" if allowed else "restricted"
        if enforced != wanted:
            yield f"the namespace enforces {enforced}, expected {wanted}"


def manners(cluster: Cluster) -> Problems:
    """What the profile doesn't ask for."""
    for pods in cluster.pods():
        spec, security = pods.spec, pods.spec.get("securityContext", {})
        if spec.get("automountServiceAccountToken") is not False:
            yield f"{pods.name}: a token is mounted"
        if spec.get("enableServiceLinks") is not False:
            yield f"{pods.name}: Services flow into its environment"
        if security.get("fsGroup") != UID or security.get("runAsGroup") != UID:
            yield f"{pods.name}: what it writes is not for group {UID}"
        if security.get("runAsUser") != UID and cluster.overlay != "rdma":
            yield f"{pods.name}: it is not user {UID}"
        for container in pods.containers():
            where = f"{pods.name}/{container['name']}"
            if container.get("securityContext", {}).get("readOnlyRootFilesystem") is not True:
                yield f"{where}: it can write to its root"
            name, _, tag = container["image"].rpartition(":")
            if program(container) is None:
                yield f"{where}: {container['image']} is none of ours"
            if not re.fullmatch(r"\d+\.\d+\.\d+", tag) or not name:
                yield f"{where}: {container['image']} is no version"
            if "command" in container:
                yield f"{where}: the image knows what to run"
            if not {"cpu", "memory"} <= set(container["resources"].get("requests", {})):
                yield f"{where}: it requests no processor or memory"


def restarts(cluster: Cluster) -> Problems:
    """When Kubernetes starts a pod again, and when it counts."""
    for pods in cluster.pods():
        job, names = pods.job, [container["name"] for container in pods.containers()]
        if pods.spec.get("restartPolicy") != "Never":
            yield f"{pods.name}: a podFailurePolicy needs restartPolicy Never"
        if job.get("podReplacementPolicy") != "Failed":
            yield f"{pods.name}: two pods could be the same worker at once"
        by_code: Dict[int, str] = {}
        disrupted = None
        for rule in job.get("podFailurePolicy", {}).get("rules", []):
            if rule["action"] not in ("FailJob", "FailIndex", "Ignore", "Count"):
                yield f"{pods.name}: there is no action {rule['action']}"
            codes = rule.get("onExitCodes")
            if codes:
                if codes["operator"] != "In" or 0 in codes["values"]:
                    yield f"{pods.name}: exit codes are chosen by {codes}"
                if codes["values"] != sorted(set(codes["values"])):
                    yield f"{pods.name}: exit codes {codes['values']} are not in order"
                if codes.get("containerName", names[0]) not in names:
                    yield f"{pods.name}: there is no container {codes['containerName']}"
                for code in codes["values"]:
                    by_code.setdefault(code, rule["action"])
            for condition in rule.get("onPodConditions", []):
                if condition.get("status") != "True":
                    yield f"{pods.name}: a condition without the status \"True\""
                if condition["type"] == "DisruptionTarget":
                    disrupted = rule["action"]
        wrong = WRONG.get(program(pods.main()) or "", [])
        wanted = {**{code: "FailJob" for code in wrong}, **{code: "Ignore" for code in LEFT}}
        if by_code != wanted:
            yield f"{pods.name}: exit codes mean {by_code}, expected {wanted}"
        if disrupted != "Ignore":
            yield f"{pods.name}: an eviction counts as a failure"
        if not pods.by and "ttlSecondsAfterFinished" not in job:
            yield f"{pods.name}: it stays for ever"
        if pods.by and "ttlSecondsAfterFinished" in job:
            yield f"{pods.name}: it would vanish from its JobSet"
        if job.get("completionMode") == "Indexed":
            if job.get("completions") != job.get("parallelism"):
                yield f"{pods.name}: only equal completions and parallelism can change"
            if not isinstance(job.get("backoffLimitPerIndex"), int) or "backoffLimit" in job:
                yield f"{pods.name}: one worker's faults would count for all"
            if not 0 <= job.get("maxFailedIndexes", -1) <= job["completions"]:
                yield f"{pods.name}: maxFailedIndexes {job.get('maxFailedIndexes')}"
        elif program(pods.main()) == "gan-worker":
            yield f"{pods.name}: workers need an index"
        grace, own = pods.spec["terminationGracePeriodSeconds"], option(pods.main(), "grace")
        if processes(pods.main()) > 1 and grace < seconds(own or "") + 5:
            yield f"{pods.name}: killed after {grace} s, before its --grace of {own} is over"
        if own and not seconds(own):
            yield f"{pods.name}: --grace {own}"


def devices(cluster: Cluster) -> Problems:
    for pods in cluster.pods():
        for container in pods.containers():
            where, resources = f"{pods.name}/{container['name']}", container.get("resources", {})
            for kind in ("limits", "requests"):
                for name, count in resources.get(kind, {}).items():
                    if "/" in name and (not isinstance(count, int) or count < 1):
                        yield f"{where}: {kind} {name} is {count!r}, expected an integer"
            limits = resources.get("limits", {})
            for name, count in resources.get("requests", {}).items():
                if "/" in name and limits.get(name) != count:
                    yield f"{where}: {name} is to be in limits"
            device = option(container, "device") or "cpu"
            if device.startswith("cuda") != (GPU in limits):
                yield f"{where}: --device={device}, and limits are {limits}"
            tolerated = [toleration.get("key") for toleration in pods.spec.get("tolerations", [])]
            if GPU in limits and GPU not in tolerated:
                yield f"{where}: nodes with GPUs are tainted"
            cores = int(option(container, "cores") or 0)
            if cores > amount(resources.get("requests", {}).get("cpu", 0)):
                yield f"{where}: --cores={cores}, and it requests {resources.get('requests')}"
            if device == "cpu" and program(container) == "gan-worker" and not cores:
                yield f"{where}: without --cores it would take the whole node"


def addresses(cluster: Cluster) -> Problems:
    """That programs look for each other where they are."""
    coord, worker = cluster.of("gan-coord"), cluster.of("gan-worker")
    for container in worker.spec["containers"]:
        url = option(container, "coordinator") or ""
        match = re.fullmatch(r"https?://([a-z0-9-]+):(\d+)", url)
        services = [service for service in cluster.all("Service")
                    if match and service["metadata"]["name"] == match[1]
                    and coord in cluster.selected(service["spec"]["selector"])]
        known = [port for service in services for port in service["spec"]["ports"]
                 if match and port["port"] == int(match[2])]
        listen = (option(coord.main(), "listen") or "").rsplit(":", 1)[-1]
        reached = [str(coord.ports().get(port["targetPort"], port["targetPort"])) for port in known]
        if reached != [listen]:
            yield f"--coordinator={url} leads to ports {reached}, and it listens on {listen}"
        expected = f"{worker.host}-0.{worker.spec.get('subdomain')}"
        if option(container, "advertise") != expected:
            yield f"--advertise={option(container, 'advertise')}, and the pod is {expected}"
    for pods in (coord, worker):
        for name in ("listen", "metrics-listen"):
            value = option(pods.main(), name)
            if value and not value.startswith("0.0.0.0:"):
                yield f"{pods.name}: --{name}={value} can't be reached"


def under(container: Document, path: str) -> Optional[Tuple[str, bool]]:
    """The volume that a path is on, and whether it can be written to."""
    mounts = sorted(container.get("volumeMounts", []), key=lambda mount: -len(mount["mountPath"]))
    for mount in mounts:
        if path == mount["mountPath"] or path.startswith(mount["mountPath"] + "/"):
            return mount["name"], not mount.get("readOnly", False)
    return None


def paths(cluster: Cluster) -> Problems:
    """That all see the run directory, and that the job file is where it is looked for."""
    coord, worker = cluster.of("gan-coord"), cluster.of("gan-worker")
    run = option(coord.main(), "run-dir") or ""

    def claim(pods: Pods, path: str) -> Optional[Tuple[str, bool]]:
        place = under(pods.main(), path)
        for volume in pods.spec["volumes"]:
            if place and volume["name"] == place[0] and "persistentVolumeClaim" in volume:
                writable = place[1] and not volume["persistentVolumeClaim"].get("readOnly")
                return volume["persistentVolumeClaim"]["claimName"], bool(writable)
        return None

    if claim(coord, run) is None or claim(coord, run) != claim(worker, run) or (
            not claim(coord, run)[1]):
        yield f"the run directory {run} is not one writable claim in all pods"
    modes = [mode for volume in cluster.all("PersistentVolumeClaim")
             for mode in volume["spec"]["accessModes"]]
    if modes != (["ReadWriteOnce"] if cluster.overlay == "cpu-demo" else ["ReadWriteMany"]):
        yield f"claims are {modes}"
    for container in coord.containers():
        file = next((text for text in arguments(container) if text.endswith(".toml")), "")
        place = under(container, file)
        maps = [volume["configMap"]["name"] for volume in coord.spec["volumes"]
                if place and volume["name"] == place[0] and "configMap" in volume]
        data = [document["data"] for document in cluster.all("ConfigMap")
                if document["metadata"]["name"] in maps]
        if not any(file.rsplit("/", 1)[-1] in keys for keys in data):
            yield f"gan-coord/{container['name']}: no ConfigMap has {file}"


def job_file(cluster: Cluster, job: Document) -> Problems:
    """What the job file says of the cluster. Whether it is one, gan-coord says."""
    coord, worker = cluster.of("gan-coord"), cluster.of("gan-worker")
    count = processes(worker.main()) * worker.job["parallelism"]
    most = job["train"].get("replicas", 8)
    if count > most:
        yield f"{count} worker processes, and train.replicas lets {most} take part"
    if job.get("workers", {}).get("min", 1) > count:
        yield f"{count} worker processes, and workers.min is {job['workers']['min']}"
    if processes(worker.main()) > 1 and job.get("workers", {}).get("min", 1) % processes(
            worker.main()):
        yield "workers.min is no multiple of a pod's processes"
    waits = seconds(option(worker.main(), "join-deadline") or "")
    if waits != seconds(job.get("deadlines", {}).get("join", "5m")):
        yield "a worker's --join-deadline and deadlines.join differ"
    for key, path, writable in [("uri", job["data"]["uri"], False),
                                ("shard_folder", job["data"].get("shard_folder", ""), True)]:
        if path in IN_IMAGES and not writable:
            continue
        for container in [*coord.containers(), *worker.containers()]:
            place = under(container, path)
            if place is None or (writable and not place[1]):
                yield f"data.{key} = {path}: {container['name']} has no such volume"


def variables(cluster: Cluster) -> Problems:
    for container in (container for pods in cluster.pods() for container in pods.containers()):
        for argument in arguments(container):
            if "$(" in argument:
                yield f"{container['name']}: {argument} names no variable"
    for document in cluster.all("ConfigMap"):
        if document["metadata"]["name"] == "gan-nccl":
            for name in document["data"]:
                if not re.fullmatch(r"NCCL_[A-Z0-9_]+", name):
                    yield f"gan-nccl: {name} is none of NCCL's"


def operators(cluster: Cluster) -> Problems:
    """Objects whose schemas are not Kubernetes' own: the fields that are used, and their kinds."""
    for group in cluster.all("JobSet"):
        spec = group["spec"]
        if group["apiVersion"] != "jobset.x-k8s.io/v1alpha2":
            yield f"JobSet of {group['apiVersion']}"
        yield from unknown("JobSet", spec, {"network", "successPolicy", "failurePolicy",
                                            "replicatedJobs", "ttlSecondsAfterFinished"})
        parts = [part["name"] for part in spec["replicatedJobs"]]
        success = spec["successPolicy"]
        if success["operator"] not in ("All", "Any"):
            yield f"JobSet: there is no operator {success['operator']}"
        if set(success["targetReplicatedJobs"]) - set(parts):
            yield f"JobSet: {success['targetReplicatedJobs']} are not all of {parts}"
        for part in spec["replicatedJobs"]:
            yield from unknown("replicatedJobs", part, {"name", "replicas", "template"})
            if part.get("replicas") != 1:
                yield f"JobSet: {part['name']} is there {part.get('replicas')} times"
    for monitor in cluster.all("ServiceMonitor"):
        if monitor["apiVersion"] != "monitoring.coreos.com/v1":
            yield f"ServiceMonitor of {monitor['apiVersion']}"
        yield from unknown("ServiceMonitor", monitor["spec"], {"selector", "endpoints"})
        for endpoint in monitor["spec"]["endpoints"]:
            yield from unknown("endpoints", endpoint, {"port", "interval", "scrapeTimeout"})
            if seconds(endpoint["scrapeTimeout"]) > seconds(endpoint["interval"]):
                yield "ServiceMonitor: a scrape may last longer than the interval"
    for resource in cluster.all("PrometheusRule"):
        if resource["apiVersion"] != "monitoring.coreos.com/v1":
            yield f"PrometheusRule of {resource['apiVersion']}"
        yield from unknown("PrometheusRule", resource["spec"], {"groups"})
        for group in resource["spec"]["groups"]:
            yield from unknown("groups", group, {"name", "rules", "interval"})
            for rule in group["rules"]:
                if "expr" not in rule or ("alert" in rule) == ("record" in rule):
                    yield f"PrometheusRule: {sorted(rule)} is neither an alert nor a record"
                own = {"for", "annotations", "alert"} if "alert" in rule else {"record"}
                yield from unknown("rules", rule, {"expr", "labels", *own})
    for job in cluster.all("Job"):
        queue = job["metadata"]["labels"].get("kueue.x-k8s.io/queue-name")
        if (cluster.overlay == "kueue") != bool(queue) or bool(queue) != job["spec"].get(
                "suspend", False):
            yield f"{job['metadata']['name']}: a queue's Job, and no other, starts suspended"


def certificate(cluster: Cluster, container: Document, pods: Pods) -> Optional[Document]:
    """The Certificate that a program shows, if its variables name what cert-manager writes."""
    known = environment(container)
    files = [known.get(f"GAN_TLS_{name}", "") for name in ("CA", "CERT", "KEY")]
    if [path.rsplit("/", 1)[-1] for path in files] != ["ca.crt", "tls.crt", "tls.key"]:
        return None
    places = {under(container, path) for path in files}
    secrets = [volume["secret"]["secretName"] for volume in pods.spec["volumes"]
               if "secret" in volume and places == {(volume["name"], False)}]
    return next((document for document in cluster.all("Certificate")
                 if document["spec"]["secretName"] in secrets), None)


def locks(cluster: Cluster) -> Problems:
    """Who listens has a lock, or says that there is none; and locks and keys fit."""
    wanted = cluster.overlay == "mtls"
    text = next((document["data"]["job.toml"] for document in cluster.all("ConfigMap")
                 if document["metadata"]["name"] == "gan-job"), "")
    job = re.search(r'^name = "([^"]+)"', text, re.MULTILINE)
    for name, part in [("gan-coord", "coordinator"), ("gan-worker", "worker")]:
        pods = cluster.of(name)
        container = pods.main()
        where, insecure = f"{pods.name}/{container['name']}", "--insecure" in arguments(container)
        shown = certificate(cluster, container, pods)
        tls = any(variable.startswith("GAN_TLS_") for variable in environment(container))
        url = option(container, "coordinator") or environment(container).get("GAN_COORDINATOR", "")
        if wanted == insecure:
            yield f"{where}: {'--insecure' if insecure else 'neither a lock nor --insecure'}"
        if wanted != tls or wanted != (shown is not None):
            yield f"{where}: its keys are not what a Certificate makes, or are not wanted here"
        if url and url.startswith("https:") != wanted:
            yield f"{where}: it looks for {url}"
        for kind in ("startupProbe", "livenessProbe", "readinessProbe"):
            if wanted and "grpc" in container.get(kind, {}):
                yield f"{where}: the {kind} speaks no TLS"
        if shown is None:
            continue
        spec = shown["spec"]
        uri = f"spiffe://ganglion/job/{job[1] if job else ''}/{part}"
        if spec.get("uris") != [uri]:
            yield f"{where}: its certificate is for {spec.get('uris')}, expected {uri}"
        if not {"server auth", "client auth"} <= set(spec.get("usages", [])):
            yield f"{where}: its certificate is for {spec.get('usages')}"
        hosts = [] if part == "worker" else ["gan-coord", "localhost"]
        for host in hosts:
            if host not in spec.get("dnsNames", []):
                yield f"{where}: its certificate has not the name {host}"


def issuers(cluster: Cluster) -> Problems:
    """cert-manager's objects: the fields that are used, and that one leads to the other."""
    made = {document["spec"]["secretName"]: document for document in cluster.all("Certificate")}
    for document in [*cluster.all("Issuer"), *cluster.all("Certificate")]:
        if document["apiVersion"] != "cert-manager.io/v1":
            yield f"{document['kind']} of {document['apiVersion']}"
    for issuer in cluster.all("Issuer"):
        name, spec = issuer["metadata"]["name"], issuer["spec"]
        yield from unknown("Issuer", spec, {"selfSigned", "ca"})
        authority = made.get(spec.get("ca", {}).get("secretName"), {"spec": {}})
        if len(spec) != 1 or ("ca" in spec and not authority["spec"].get("isCA")):
            yield f"Issuer {name}: no CA's Certificate makes its Secret"
    for document in cluster.all("Certificate"):
        name, spec = document["metadata"]["name"], document["spec"]
        yield from unknown("Certificate", spec, {
            "isCA", "commonName", "secretName", "duration", "renewBefore", "privateKey", "usages",
            "uris", "dnsNames", "ipAddresses", "issuerRef"})
        by = spec["issuerRef"]
        if by.get("kind") != "Issuer" or by["name"] not in cluster.names("Issuer"):
            yield f"Certificate {name}: there is no {by.get('kind')} {by['name']}"
        lasts, early = seconds(spec["duration"]), seconds(spec.get("renewBefore", "1s"))
        if not 3600 <= lasts or not 0 < early < lasts:
            yield f"Certificate {name}: it lasts {spec['duration']}, renewed {early} s before"
        key = spec.get("privateKey", {})
        if (key.get("algorithm"), key.get("size")) != ("ECDSA", 256):
            yield f"Certificate {name}: a key of {key}"


def unknown(what: str, found: Document, fields: set) -> Problems:
    for field in sorted(set(found) - fields):
        yield f"{what}: {field} is no field that is known here"


RULES: List[Callable[[Cluster], Problems]] = [
    objects, references, selectors, policies, ports, volumes, profile, manners, restarts, devices,
    addresses, paths, variables, operators, locks, issuers,
]
