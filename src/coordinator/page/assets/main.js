// Listens to the server, and shows what it says.

import { Chart } from "./chart.js";
import { Curves } from "./curves.js";
import { Film } from "./film.js";
import * as tables from "./tables.js";
import { count, date, figure, make, seconds, time } from "./text.js";
import { Timeline } from "./timeline.js";

const by = (id) => document.getElementById(id);
const curves = new Curves(by("curves"));
const film = new Film();
const timeline = new Timeline(by("timeline"));
let scored = null;

/** What was told so far: later news hold only what is another than it was. */
let known = {};
const shown = new Map();

/** Whether a part is another than it was: what stays the same is not drawn again. */
function changed(name, ...parts) {
  const text = JSON.stringify(parts);
  if (shown.get(name) === text) return false;
  shown.set(name, text);
  return true;
}

const GOOD = ["running", "ended"];

function head(state) {
  const { job, phase, step, total_steps: total } = state;
  const name = job?.name ?? "Ganglion";
  by("name").textContent = name;
  document.title = `${name} · step ${count(step)}`;
  by("phase").textContent = phase === "open" ? "not ended" : phase;
  const failed = phase === "ended" && /^(failed|drained)/.test(state.detail ?? "");
  by("phase").className = `chip ${GOOD.includes(phase) && !failed ? "good" : "warn"}`;
  by("about").textContent = [
    job?.objective, job?.image_size && `${job.image_size} × ${job.image_size} pixels`,
    job?.device, job && `seed ${job.seed}`,
    job && `begun ${date(job.started)}`,
  ].filter(Boolean).join(" · ");
  by("step").textContent = count(step);
  by("of").textContent = total ? `of ${count(total)} steps` : "steps";
  const done = total ? step / total : phase === "ended" ? 1 : 0;
  by("bar").value = done;
  by("bar").hidden = !total && phase !== "ended";
  const facts = [
    ["images a second", figure(state.images_per_s ?? NaN)],
    ["epoch", count(state.epoch ?? NaN)],
    ["generation", count(state.generation ?? NaN)],
    ["workers", count(state.workers?.total ?? NaN)],
    ["trained for", seconds(state.seconds ?? NaN)],
  ];
  if (!state.live) facts.push(["last written", time(state.written ?? NaN)]);
  by("facts").replaceChildren(...facts.map(([term, value]) => make("div", make("dt", term), make("dd", value))));
  const said = [state.detail, ...(state.troubles ?? [])];
  if (phase === "open") {
    said.push("Read from the run directory: whether a coordinator is at work can’t be seen from here.");
  }
  if (state.reading) said.push("The records are still being read.");
  const detail = said.filter(Boolean).join(" · ");
  by("detail").textContent = detail;
  by("detail").hidden = !detail;
  by("version").textContent = `Ganglion ${state.version}`;
}

function scores(rows) {
  tables.evaluations(rows);
  const [name] = tables.scoresOf(rows);
  if (!name || rows.length < 2) return;
  if (scored?.title !== name) {
    scored = new Chart({ title: name, series: [{ name, label: "newest", colour: "d" }], log: true });
    by("score-curve").replaceChildren(scored.element);
  }
  const mean = rows.map((row) => row.scores[name] ?? null);
  scored.take({ step: rows.map((row) => row.step), series: { [name]: { mean } } });
}

function state(now) {
  head(now);
  const { generations, checkpoints, events, evaluations, frames, job } = now;
  if (changed("frames", frames, job?.id)) film.take(frames ?? [], job?.id, now.pictures);
  if (now.workers && changed("workers", now.workers, now.live)) tables.workers(now.workers, now.live);
  if (generations && changed("generations", generations)) tables.generations(generations);
  if (checkpoints && changed("checkpoints", checkpoints)) tables.checkpoints(checkpoints);
  if (events && changed("events", events)) tables.events(events);
  if (evaluations && changed("evaluations", evaluations)) scores(evaluations);
  if (generations && checkpoints) {
    const at = events?.rows.at(-1)?.at ?? 0;
    const end = now.phase === "ended" ? at : now.live ? Date.now() / 1000 : now.written;
    timeline.take(generations.rows, checkpoints.rows, end);
  }
  document.body.dataset.ready = "true";
}

function connection(text) {
  by("connection").textContent = text;
  by("connection").hidden = !text;
}

const source = new EventSource("events");
source.addEventListener("open", () => {
  known = {};
  connection("");
});
source.addEventListener("curves", (event) => curves.take(JSON.parse(event.data)));
source.addEventListener("state", (event) => {
  Object.assign(known, JSON.parse(event.data));
  state(known);
});
source.addEventListener("end", () => {
  source.close();
  document.body.dataset.over = "true";
  connection("The program that served this page has ended. gan-coord view shows a run directory at any time.");
});
source.addEventListener("error", () => {
  const closed = source.readyState === EventSource.CLOSED;
  connection(closed ? "News are refused; reload the page to try again." : "The connection is lost; trying again.");
});
