"""How to break what rules.py asks for, once for each thing that it asks: check.py breaks a rendered
overlay in each of these ways, and wants the rule to notice. A rule that can't fail checks nothing."""

from typing import Any, Callable, Dict, List, NamedTuple, Tuple

Document = Dict[str, Any]


class Spoil(NamedTuple):
    """One fault."""

    rule: str  # the rule of rules.py that must notice, or "schema", "arguments", "job file"
    overlay: str
    what: str
    do: Callable[[List[Document]], Any]


def find(documents: List[Document], kind: str, name: str = "") -> Document:
    return next(document for document in documents
                if document["kind"] == kind and (document["metadata"]["name"] == name or not name))


def job(documents: List[Document], name: str) -> Document:
    return find(documents, "Job", name)["spec"]


def pod(documents: List[Document], name: str) -> Document:
    return job(documents, name)["template"]["spec"]


def container(documents: List[Document], name: str) -> Document:
    return pod(documents, name)["containers"][0]


def swap(argument: str, by: str, name: str = "gan-worker") -> Callable[[List[Document]], Any]:
    """Another argument in the place of the one that starts so."""

    def do(documents: List[Document]) -> None:
        arguments = container(documents, name)["args"]
        place = next(i for i, text in enumerate(arguments) if text.startswith(argument))
        arguments[place] = by

    return do


def in_job(old: str, new: str) -> Callable[[List[Document]], Any]:
    def do(documents: List[Document]) -> None:
        data = find(documents, "ConfigMap", "gan-job")["data"]
        assert old in data["job.toml"], old
        data["job.toml"] = data["job.toml"].replace(old, new)

    return do


def rules_of(documents: List[Document], name: str) -> List[Document]:
    return job(documents, name)["podFailurePolicy"]["rules"]


def at(documents: List[Document], kind: str, name: str, *path: Any) -> Any:
    place = find(documents, kind, name)
    for step in path:
        place = place[step]
    return place


def drop(documents: List[Document], name: str, argument: str) -> None:
    container(documents, name)["args"].remove(argument)


def named(entries: List[Document], name: str) -> Document:
    return next(entry for entry in entries if entry["name"] == name)


def secret(documents: List[Document], name: str) -> Document:
    return next(volume["secret"] for volume in pod(documents, name)["volumes"] if "secret" in volume)


def spec(documents: List[Document], name: str) -> Document:
    return find(documents, "Certificate", name)["spec"]


W, C = "gan-worker", "gan-coord"

FAULTS: List[Tuple[str, str, str, Callable[[List[Document]], Any]]] = [
    # what Kubernetes' schemas see
    ("schema", "gpu", "a field with a typing error",
     lambda d: pod(d, W).update(terminationGracePeriodSecond=1)),
    ("schema", "gpu", "a number for a string",
     lambda d: container(d, W)["args"].append(4)),
    ("schema", "gpu", "a condition without its status",
     lambda d: rules_of(d, W)[1]["onPodConditions"][0].pop("status")),
    ("schema", "jobset", "a field with a typing error within a JobSet",
     lambda d: find(d, "JobSet")["spec"]["replicatedJobs"][1]["template"]["spec"].update(paralel=1)),
    # what they don't
    ("objects", "gpu", "an object twice", lambda d: d.append(find(d, "Service", C))),
    ("objects", "gpu", "another namespace",
     lambda d: find(d, "Service", C)["metadata"].update(namespace="other")),
    ("objects", "gpu", "a token", lambda d: find(d, "ServiceAccount", W).pop(
        "automountServiceAccountToken")),
    ("references", "gpu", "no ConfigMap", lambda d: d.remove(find(d, "ConfigMap", "gan-nccl"))),
    ("references", "gpu", "no claim",
     lambda d: find(d, "PersistentVolumeClaim")["metadata"].update(name="other")),
    ("references", "gpu", "no account",
     lambda d: pod(d, C).update(serviceAccountName="default")),
    ("selectors", "gpu", "a Service for nobody",
     lambda d: at(d, "Service", C, "spec", "selector").update({"app.kubernetes.io/name": "coord"})),
    ("selectors", "gpu", "a Service for a port that is not there",
     lambda d: at(d, "Service", W, "spec", "ports", 0).update(targetPort="metrics-9")),
    ("selectors", "gpu", "hidden pods",
     lambda d: find(d, "Service", W)["spec"].pop("publishNotReadyAddresses")),
    ("selectors", "gpu", "a budget in percent",
     lambda d: find(d, "PodDisruptionBudget")["spec"].update(minAvailable="50%")),
    ("selectors", "gpu", "a budget that forbids every eviction",
     lambda d: find(d, "PodDisruptionBudget")["spec"].update(minAvailable=2)),
    ("selectors", "gpu", "a spread over other pods",
     lambda d: pod(d, W)["topologySpreadConstraints"][0]["labelSelector"].update(
         matchLabels={"app": "x"})),
    ("selectors", "monitoring", "a port that is not scraped",
     lambda d: at(d, "ServiceMonitor", W, "spec", "endpoints").pop()),
    ("selectors", "jobset", "a subdomain of another name",
     lambda d: find(d, "JobSet")["spec"]["network"].update(subdomain="other")),
    ("policies", "gpu", "no default", lambda d: d.remove(find(d, "NetworkPolicy", "gan-default"))),
    ("policies", "gpu", "a coordinator that can't be reached",
     lambda d: d.remove(find(d, "NetworkPolicy", C))),
    ("policies", "gpu", "workers that hear each other on one port",
     lambda d: at(d, "NetworkPolicy", W, "spec", "ingress", 0, "ports", 0).pop("endPort")),
    ("policies", "gpu", "a door for everybody",
     lambda d: at(d, "NetworkPolicy", C, "spec", "ingress", 0).pop("from")),
    ("policies", "gpu", "a port on which nobody listens",
     lambda d: at(d, "NetworkPolicy", C, "spec", "ingress", 0, "ports", 0).update(port=50052)),
    ("ports", "gpu", "one name for two ports",
     lambda d: container(d, W)["ports"][1].update(name="metrics-1")),
    ("ports", "gpu", "no probe", lambda d: container(d, C).pop("livenessProbe")),
    ("ports", "gpu", "a probe of another port",
     lambda d: container(d, C)["readinessProbe"]["grpc"].update(port=9464)),
    ("ports", "gpu", "a probe of another path",
     lambda d: container(d, W)["livenessProbe"]["httpGet"].update(path="/healthz")),
    ("ports", "gpu", "a hasty probe",
     lambda d: container(d, W)["startupProbe"].update(failureThreshold=3)),
    ("ports", "gpu", "fewer ports than processes", lambda d: container(d, W)["ports"].pop(0)),
    ("volumes", "gpu", "a mount of nothing",
     lambda d: container(d, W)["volumeMounts"][0].update(name="runs")),
    ("volumes", "gpu", "a volume that nobody mounts",
     lambda d: pod(d, W)["volumes"].append({"name": "x", "emptyDir": {"sizeLimit": "1Gi"}})),
    ("volumes", "gpu", "no /tmp", lambda d: container(d, C)["volumeMounts"].pop()),
    ("volumes", "gpu", "shared memory without a limit",
     lambda d: [v["emptyDir"].pop("sizeLimit") for v in pod(d, W)["volumes"] if v["name"] == "shm"]),
    ("volumes", "gpu", "shared memory of all the memory",
     lambda d: container(d, W)["resources"]["limits"].update(memory="16Gi")),
    ("profile", "gpu", "root", lambda d: pod(d, W)["securityContext"].update(runAsUser=0)),
    ("profile", "gpu", "the host's network", lambda d: pod(d, W).update(hostNetwork=True)),
    ("profile", "gpu", "a folder of the host", lambda d: pod(d, W)["volumes"].append(
        {"name": "x", "hostPath": {"path": "/"}})),
    ("profile", "gpu", "capabilities that stay",
     lambda d: pod(d, C)["initContainers"][0]["securityContext"].pop("capabilities")),
    ("profile", "gpu", "no seccomp", lambda d: pod(d, C)["securityContext"].pop("seccompProfile")),
    ("profile", "rdma", "one capability more", lambda d: container(d, W)["securityContext"][
        "capabilities"]["add"].append("SYS_ADMIN")),
    ("profile", "gpu", "a namespace that lets everything in", lambda d: find(d, "Namespace")[
        "metadata"]["labels"].update({"pod-security.kubernetes.io/enforce": "baseline"})),
    ("manners", "gpu", "a root that can be written to", lambda d: container(d, C)[
        "securityContext"].update(readOnlyRootFilesystem=False)),
    ("manners", "gpu", "the newest image, whichever it is",
     lambda d: container(d, C).update(image="ganglion/coord:latest")),
    ("manners", "gpu", "another user", lambda d: pod(d, C)["securityContext"].update(runAsUser=1000)),
    ("manners", "gpu", "service links", lambda d: pod(d, C).pop("enableServiceLinks")),
    ("restarts", "gpu", "a wrong job file that is tried again",
     lambda d: rules_of(d, W)[0]["onExitCodes"].update(values=[64])),
    ("restarts", "gpu", "a job that its guard stopped, tried again",
     lambda d: rules_of(d, C)[0]["onExitCodes"].update(values=[64, 78])),
    ("restarts", "gpu", "exit codes out of order",
     lambda d: rules_of(d, C)[0]["onExitCodes"].update(values=[78, 76, 64])),
    ("restarts", "gpu", "a worker that left and is counted", lambda d: rules_of(d, W).pop()),
    ("restarts", "gpu", "a rule for no container",
     lambda d: rules_of(d, W)[0]["onExitCodes"].update(containerName="main")),
    ("restarts", "gpu", "an action that there is not",
     lambda d: rules_of(d, W)[2].update(action="ignore")),
    ("restarts", "gpu", "evictions that count", lambda d: rules_of(d, W).pop(1)),
    ("restarts", "gpu", "two pods of one index",
     lambda d: job(d, W).update(podReplacementPolicy="TerminatingOrFailed")),
    ("restarts", "gpu", "a size that can't change", lambda d: job(d, W).update(completions=3)),
    ("restarts", "gpu", "a kill before the grace is over",
     lambda d: pod(d, W).update(terminationGracePeriodSeconds=60)),
    ("devices", "gpu", "a piece of a GPU",
     lambda d: container(d, W)["resources"]["limits"].update({"nvidia.com/gpu": "500m"})),
    ("devices", "gpu", "GPUs that are only requested", lambda d: container(d, W)[
        "resources"].update(requests={"nvidia.com/gpu": 4, "cpu": 1, "memory": "1Gi"})),
    ("devices", "gpu", "no toleration", lambda d: pod(d, W).pop("tolerations")),
    ("devices", "gpu", "the processor on a node of GPUs", swap("--device", "--device=cpu")),
    ("devices", "cpu-demo", "more cores than it may use", swap("--cores", "--cores=2")),
    ("addresses", "gpu", "another name", swap("--coordinator", "--coordinator=http://coord:50051")),
    ("addresses", "gpu", "another port",
     swap("--coordinator", "--coordinator=http://gan-coord:9464")),
    ("addresses", "gpu", "another pod's name", swap("--advertise", "--advertise=gan-worker")),
    ("addresses", "jobset", "a name that no pod of the set has", lambda d: find(d, "JobSet")[
        "spec"]["replicatedJobs"][1].update(name="worker", template=_renamed(d))),
    ("addresses", "gpu", "loopback", swap("--listen", "--listen=127.0.0.1:50051", C)),
    ("paths", "gpu", "a run directory of its own", swap("--run-dir", "--run-dir=/tmp/run", C)),
    ("paths", "gpu", "a claim for one node only", lambda d: find(d, "PersistentVolumeClaim")[
        "spec"].update(accessModes=["ReadWriteOnce"])),
    ("paths", "gpu", "another job file",
     lambda d: container(d, C)["args"].__setitem__(1, "/etc/ganglion/other.toml")),
    ("variables", "gpu", "no such variable", lambda d: container(d, W).pop("env")),
    ("variables", "gpu", "a variable with a typing error",
     lambda d: find(d, "ConfigMap", "gan-nccl")["data"].update(NCLL_DEBUG="INFO")),
    ("operators", "jobset", "success of nobody", lambda d: find(d, "JobSet")["spec"][
        "successPolicy"].update(targetReplicatedJobs=["coordinator"])),
    ("operators", "jobset", "a field of its own", lambda d: find(d, "JobSet")["spec"].update(x=1)),
    ("operators", "monitoring", "a scrape that never ends", lambda d: at(
        d, "ServiceMonitor", C, "spec", "endpoints", 0).update(scrapeTimeout="30s")),
    ("operators", "monitoring", "a rule that is nothing", lambda d: at(
        d, "PrometheusRule", "", "spec", "groups", 0, "rules", 0).pop("record")),
    ("operators", "monitoring", "a field with a typing error in an alert", lambda d: at(
        d, "PrometheusRule", "", "spec", "groups", 1, "rules", 0).update(annotation={})),
    ("references", "monitoring", "a dashboard that Grafana doesn't look for", lambda d: find(
        d, "ConfigMap", "gan-dashboard")["metadata"]["labels"].pop("grafana_dashboard")),
    ("operators", "kueue", "a Job that starts by itself", lambda d: job(d, C).pop("suspend")),
    ("references", "mtls", "a Secret that nobody makes",
     lambda d: secret(d, W).update(secretName="gan-worker-key")),
    ("locks", "gpu", "an open door that nobody owns to", lambda d: drop(d, C, "--insecure")),
    ("locks", "gpu", "a worker's door that is open", lambda d: drop(d, W, "--insecure")),
    ("locks", "mtls", "a lock and an open door",
     lambda d: container(d, W)["args"].append("--insecure")),
    ("locks", "mtls", "another's certificate",
     lambda d: secret(d, W).update(secretName="gan-coord-tls")),
    ("locks", "mtls", "no key",
     lambda d: named(container(d, C)["env"], "GAN_TLS_KEY").update(name="GAN_KEY")),
    ("locks", "mtls", "a key where it is not",
     lambda d: named(container(d, W)["volumeMounts"], "tls").update(mountPath="/etc/tls")),
    ("locks", "mtls", "another job's certificate", lambda d: spec(d, W).update(
        uris=["spiffe://ganglion/job/mnist/worker"])),
    ("locks", "mtls", "a worker that can't be called",
     lambda d: spec(d, W).update(usages=["client auth"])),
    ("locks", "mtls", "a name that is not in the certificate",
     lambda d: spec(d, C)["dnsNames"].remove("gan-coord")),
    ("locks", "mtls", "a way without TLS",
     swap("--coordinator", "--coordinator=http://gan-coord:50051")),
    ("locks", "mtls", "a probe that speaks no TLS",
     lambda d: container(d, C).update(livenessProbe={"grpc": {"port": 50051}})),
    ("issuers", "mtls", "a CA that is none", lambda d: spec(d, "gan-ca").pop("isCA")),
    ("issuers", "mtls", "an issuer that there is not",
     lambda d: spec(d, W)["issuerRef"].update(name="letsencrypt")),
    ("issuers", "mtls", "a field of its own", lambda d: spec(d, W).update(uri="x")),
    ("issuers", "mtls", "renewed before it is made", lambda d: spec(d, W).update(renewBefore="49h")),
    # what only the programs can say
    ("arguments", "mtls", "a variable that no program knows",
     lambda d: named(container(d, W)["env"], "GAN_TLS_KEY").update(name="GAN_TLS_KEYS")),
    ("arguments", "cpu-demo", "an option that there is not", swap("--cores", "--core=1")),
    ("arguments", "cpu-demo", "a value that can't be", swap("--cores", "--cores=many")),
    ("arguments", "cpu-demo", "no such command",
     lambda d: container(d, C)["args"].__setitem__(0, "server")),
    ("job file", "cpu-demo", "a key with a typing error", in_job("replicas", "replica")),
    ("job file", "cpu-demo", "a size that can't be", in_job("image_size = 32", "image_size = 33")),
    ("job file", "cpu-demo", "fewer replicas than workers", in_job("replicas = 4", "replicas = 1")),
    ("job file", "cpu-demo", "data that no pod sees", in_job("/usr/share/ganglion/mnist", "/mnist")),
    ("job file", "gpu", "more workers at least than there are", in_job("min = 8", "min = 24")),
    ("job file", "gpu", "half a node", in_job("min = 8", "min = 4")),
    ("job file", "gpu", "another deadline", in_job('join = "30m"', 'join = "5m"')),
]


def _renamed(documents: List[Document]) -> Document:
    template = find(documents, "JobSet")["spec"]["replicatedJobs"][1]["template"]
    arguments = template["spec"]["template"]["spec"]["containers"][0]["args"]
    place = next(i for i, text in enumerate(arguments) if text.startswith("--advertise"))
    arguments[place] = "--advertise=gan-worker-$(GAN_INDEX).gan-worker"
    return template


SPOILS = [Spoil(*fault) for fault in FAULTS]
