"""How to break what the checks ask for, once for each thing that they ask: check.py breaks a copy in each
of these ways, and wants a check to notice. A check that can't fail checks nothing."""

from typing import Any, Callable, Dict, List, NamedTuple

Document = Dict[str, Any]


class Spoil(NamedTuple):
    """One fault."""

    check: str  # which must notice: a rule of dashboard.py or alerts.py, or a check of training.py
    what: str
    do: Callable[[Any], Any]


def panel(dashboard: Document, title: str) -> Document:
    return next(panel for panel in dashboard["panels"] if panel["title"] == title)


def swap(title: str, old: str, new: str) -> Callable[[Document], Any]:
    """Another word in the first query of a panel."""

    def do(dashboard: Document) -> None:
        target = panel(dashboard, title)["targets"][0]
        assert old in target["expr"], (title, old)
        target["expr"] = target["expr"].replace(old, new)

    return do


def variable(dashboard: Document, name: str) -> Document:
    return next(one for one in dashboard["templating"]["list"] if one["name"] == name)


def rule(groups: List[Document], name: str) -> Document:
    return next(rule for group in groups for rule in group["rules"]
                if name in (rule.get("alert"), rule.get("record")))


DASHBOARD = [Spoil(*fault) for fault in [
    ("identity", "an id of one Grafana", lambda d: d.update(id=7)),
    ("identity", "no uid", lambda d: d.pop("uid")),
    ("identity", "the format of another Grafana", lambda d: d.update(schemaVersion=38)),
    ("identity", "a dashboard that can be edited", lambda d: d.update(editable=True)),
    ("ids", "one id for two panels", lambda d: panel(d, "Lag").update(id=1)),
    ("places", "a panel over another", lambda d: panel(d, "Lag")["gridPos"].update(x=9)),
    ("places", "a panel beyond the edge", lambda d: panel(d, "Programs")["gridPos"].update(w=9)),
    ("rows", "a row less", lambda d: d["panels"].remove(panel(d, "Data"))),
    ("rows", "an empty row", lambda d: d["panels"].insert(0, dict(panel(d, "Overview")))),
    ("rows", "a panel in another row", lambda d: panel(d, "Lag")["gridPos"].update(y=2000)),
    ("words", "no title", lambda d: panel(d, "Lag").update(title="")),
    ("words", "no description", lambda d: panel(d, "Lag").pop("description")),
    ("words", "no unit", lambda d: panel(d, "Lag")["fieldConfig"]["defaults"].pop("unit")),
    ("words", "a unit that there is not",
     lambda d: panel(d, "Lag")["fieldConfig"]["defaults"].update(unit="seconds")),
    ("sources", "one Grafana's data source", lambda d: panel(d, "Lag").update(
        datasource={"type": "prometheus", "uid": "P1809F7CD0C75ACF3"})),
    ("sources", "another data source for a query", lambda d: panel(d, "Lag")["targets"][0].update(
        datasource={"type": "prometheus", "uid": "x"})),
    ("variables", "no choice of a job", lambda d: d["templating"]["list"].remove(variable(d, "job"))),
    ("variables", "no choice of the data source",
     lambda d: d["templating"]["list"].remove(variable(d, "datasource"))),
    ("variables", "one instance at a time", lambda d: variable(d, "instance").update(multi=False)),
    ("targets", "a metric that there is not", swap("Lag", "lag_steps", "lag")),
    ("targets", "a series that is not chosen", swap("Lag", 'job=~"$job", ', "")),
    ("targets", "a counter for itself",
     swap("Failures", "increase(gan_checkpoint_failures_total", "max(gan_checkpoint_failures_total")),
    ("targets", "the rate of a gauge", swap("Lag", "gan_coord", "rate(gan_coord")),
    ("targets", "a window of one's own", swap("Images", "$__rate_interval", "1m")),
    ("targets", "a histogram without its part", swap("Reductions", "_bucket", "")),
    ("targets", "a panel without a query", lambda d: panel(d, "Lag").update(targets=[])),
    ("annotations", "no mark for checkpoints", lambda d: d["annotations"]["list"].pop()),
    ("annotations", "marks that are not shown",
     lambda d: d["annotations"]["list"][0].update(enable=False)),
]]

# Of a dictionary with `groups`, `runbook` and `tests`.
BOOK = [Spoil(*fault) for fault in [
    ("names", "one name for two alerts",
     lambda b: rule(b["groups"], "GanglionStraggler").update(alert="GanglionStalled")),
    ("names", "no alert for NaN",
     lambda b: rule(b["groups"], "GanglionNonFinite").update(alert="GanglionOther")),
    ("names", "a record without its level", lambda b: rule(
        b["groups"], "namespace:gan_train_step:rate5m").update(record="gan_train_step:rate5m")),
    ("told", "no severity", lambda b: rule(b["groups"], "GanglionStalled").pop("labels")),
    ("told", "no summary",
     lambda b: rule(b["groups"], "GanglionStalled")["annotations"].pop("summary")),
    ("told", "another alert's page", lambda b: rule(b["groups"], "GanglionStalled")[
        "annotations"].update(runbook="deploy/prometheus/runbook.md#ganglionstraggler")),
    ("told", "no paragraph", lambda b: b.update(
        runbook=b["runbook"].replace("## GanglionStalled", "## Stalled"))),
    ("tested", "an alert that is never seen to fire", lambda b: [
        case.update(exp_alerts=[]) for file in b["tests"] for test in file["tests"]
        for case in test["alert_rule_test"] if case["alertname"] == "GanglionStraggler"]),
    ("tested", "an alert without tests", lambda b: b["tests"].pop()),
    ("expressions", "a metric that there is not",
     lambda b: rule(b["groups"], "GanglionFewerWorkers").update(expr="gan_coord_worker < 2")),
    ("expressions", "a record that there is not", lambda b: rule(
        b["groups"], "GanglionDataStarved").update(expr="instance:gan_worker_wait:ratio5m > 1")),
    ("expressions", "a counter for itself", lambda b: rule(
        b["groups"], "GanglionCheckpointFailed").update(expr="gan_checkpoint_failures_total > 0")),
]]

# Of README.md.
TABLE = [Spoil("metrics", what, do) for what, do in [
    ("a metric that the table lacks", lambda text: "\n".join(
        line for line in text.split("\n") if not line.startswith("| `gan_train_epoch`"))),
    ("a metric that nobody exports", lambda text: text.replace(
        "<!-- /metrics -->", "| `gan_x` | gauge |  |  | gan-worker | Nothing. |\n<!-- /metrics -->")),
    ("another type", lambda text: text.replace(
        "| `gan_train_epoch` | gauge |", "| `gan_train_epoch` | counter |")),
    ("another unit", lambda text: text.replace(
        "| `gan_checkpoint_bytes` | gauge | bytes |", "| `gan_checkpoint_bytes` | gauge | seconds |")),
    ("another meaning", lambda text: text.replace("Epoch of the newest step.", "Epoch.")),
    ("another program", lambda text: text.replace("|  | gan-coord | The current generation",
                                                  "|  | gan-worker | The current generation")),
    ("a value that is not told of", lambda text: text.replace("joining, waiting,", "joining,")),
    ("a counter's value that is never exported",
     lambda text: text.replace("start, join, leave,", "start, join, leave, sleep,")),
    ("a label that there is not", lambda text: text.replace("`net`: ", "`network`: ")),
]]

# What only a Prometheus that watches can notice, of the dashboard.
ANSWERS = [Spoil("answers", what, do) for what, do in [
    ("a metric that there is not", swap("Lag", "lag_steps", "lag")),
    ("a value of a label that there is not", swap("Steps", 'phase="whole"', 'phase="all"')),
    ("a legend without its label", lambda d: panel(d, "Lag")["targets"][0].update(
        legendFormat="{{instance}}")),
    ("a quotient of series that don't match",
     swap("Waiting for a batch", "/ sum by (namespace, instance)", "/ sum by (namespace)")),
    ("no expression", swap("Lag", "max by", "max bye")),
]]

# What only it can notice, of the rules.
DEFINED = [Spoil("defined", what, do) for what, do in [
    ("an alert on a metric that there is not", lambda groups: rule(
        groups, "GanglionFewerWorkers").update(expr="gan_coord_workers_wished > 1")),
    ("an alert on a state that there is not", lambda groups: rule(
        groups, "GanglionFewerWorkers").update(expr='gan_coord_workers{state="trainning"} < 1')),
    ("a record of which nothing came", lambda groups: rule(
        groups, "namespace:gan_train_step:rate5m").update(record="namespace:gan_step:rate5m")),
]]

# Of training.Health.
HEALTH = [Spoil("health", what, do) for what, do in [
    ("a rule that can't be evaluated", lambda h: h.groups[0]["rules"][0].update(health="err")),
    ("a scrape that can't be read", lambda h: h.targets[0].update(health="down", lastError="x")),
]]

# Of the overlay `monitoring`, rendered.
OVERLAY = [Spoil("kubernetes", what, do) for what, do in [
    ("another threshold on Kubernetes", lambda documents: rule(next(
        one for one in documents if one["kind"] == "PrometheusRule")["spec"]["groups"],
        "GanglionDataStarved").update(expr="instance:gan_worker_data_wait:ratio5m > 0.9")),
    ("a dashboard that Grafana doesn't look for", lambda documents: next(
        one for one in documents if one["metadata"]["name"] == "gan-dashboard")["metadata"][
            "labels"].pop("grafana_dashboard")),
]]
