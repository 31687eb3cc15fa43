// What is told in rows.

import { classOf, count, date, figure, make, seconds, time } from "./text.js";

const PHASES = [
  ["detect", "noticing"],
  ["abort", "leaving the step"],
  ["connect", "connecting"],
  ["heal", "copying the state"],
  ["first_step", "first step"],
];

function fill(id, heads, rows, none) {
  const table = document.getElementById(id);
  if (!rows.length) {
    table.replaceChildren(make("tbody", make("tr", make("td.empty", none))));
    return;
  }
  const titles = heads.map(([kind, text]) => {
    const head = make(kind, text);
    head.scope = "col";
    return head;
  });
  table.replaceChildren(make("thead", make("tr", ...titles)), make("tbody", ...rows));
}

function note(id, shown, total, what) {
  const left = total - shown;
  document.getElementById(id).textContent = left > 0 ? `and ${count(left)} ${what}` : "";
}

const number = (text) => make("td.number", text);

export function workers({ total, rows }, live) {
  const seated = (row) => row.rank !== null && row.rank !== undefined;
  const replicas = (row) => {
    if (!row.replicas) return "–";
    return `${row.replicas} (${row.first_replica}–${row.first_replica + row.replicas - 1})`;
  };
  const heads = [["th", "rank"], ["th", "worker"], ["th", "state"], ["th.number", "replicas"]];
  if (live) heads.push(["th.number", "images/s"], ["th.number", "lag"], ["th.number", "seen"]);
  heads.push(["th", "where"]);
  fill("workers", heads, rows.map((row) => make("tr",
    make("td", seated(row) ? String(row.rank) : "–"),
    make("td", String(row.worker)),
    make("td.short", row.state ? (row.leaving ? `${row.state}, leaving` : row.state) : "–"),
    number(replicas(row)),
    ...(live ? [
      number(figure(row.images_per_s ?? NaN)),
      number(row.lag === null ? "–" : `${count(row.lag)} steps`),
      number(row.seen < 1 ? "now" : `${seconds(row.seen)} ago`),
    ] : []),
    make("td.where", [row.host && `${row.host}, pid ${row.pid}`, row.device].filter(Boolean).join(" · ")),
  )), live ? "No worker is there." : "No generation was formed.");
  note("workers-note", rows.length, total, "more");
  if (!live && rows.length) {
    document.getElementById("workers-note").textContent = "Members of the newest generation.";
  }
}

function recovery(took) {
  if (!took) return make("td.recovery", "–");
  const sum = PHASES.reduce((all, [name]) => all + took[name], 0) || 1;
  const bar = make("div.bar");
  bar.setAttribute("role", "img");
  const said = PHASES.map(([name, text]) => `${text} ${seconds(took[name])}`).join(", ");
  bar.setAttribute("aria-label", said);
  bar.title = said;
  for (const [name] of PHASES) {
    const part = make(`span.${name}`);
    part.style.width = `${(100 * took[name]) / sum}%`;
    bar.append(part);
  }
  return make("td.recovery", seconds(took.whole), bar);
}

export function generations({ total, rows }) {
  const heads = [
    ["th", "no."], ["th", "began"], ["th", "cause"], ["th.number", "workers"],
    ["th.number", "steps"], ["th", "recovery"],
  ];
  const steps = ({ from, until }) => (from === null ? "not formed" : `${count(from)} – ${count(until)}`);
  fill("generations", heads, rows.toReversed().map((row) => make("tr",
    make("td", String(row.generation)),
    make("td.short", date(row.at)),
    make("td.short", make(`span.key.${classOf(row.cause)}`, row.cause)),
    number(count(row.workers)),
    number(steps(row)),
    recovery(row.recovery),
  )), "No generation was formed.");
  const any = rows.some((row) => row.recovery);
  const legend = any ? [make("span", "Recovery: "), ...PHASES.flatMap(([name, text]) =>
    [make(`span.key.note.${name}`, text), " "])] : [];
  const more = total > rows.length ? [` and ${count(total - rows.length)} before these`] : [];
  document.getElementById("generations-note").replaceChildren(...legend, ...more);
}

export function checkpoints({ total, rows }) {
  const heads = [["th.number", "step"], ["th", "written"], ["th", "SHA-256 of the state"]];
  fill("checkpoints", heads, rows.toReversed().map((row) => {
    const line = make("tr", number(count(row.step)), make("td.short", date(row.at)),
      make("td.digest", make("code", row.digest), row.exists ? "" : " (removed)"));
    if (!row.exists) line.className = "gone";
    return line;
  }), "No checkpoint was written yet.");
  note("checkpoints-note", rows.length, total, "before these");
}

const BAD = ["died", "refused", "broken", "rewound", "checkpoint-failed"];

export function events({ total, rows }) {
  const list = document.getElementById("events");
  const line = (row) => make("li",
    make("span.muted", `${time(row.at)} `),
    make(BAD.includes(row.kind) ? "strong.bad" : "strong", row.kind),
    ` ${row.detail} `,
    make("span.muted", `· generation ${row.generation}`));
  list.replaceChildren(...(rows.length ? rows.toReversed().map(line) : [make("li.empty", "Nothing yet.")]));
  note("events-note", rows.length, total, "before these");
}

/** The order of scores, and those that are the better the smaller. */
const SCORES = ["fid", "kid", "kid-deviation", "precision", "recall", "density", "coverage", "modes"];
const SMALL = ["fid", "kid", "kl-uniform", "kl-data"];

/** The scores that there are. */
export function scoresOf(rows) {
  const found = [...new Set(rows.flatMap((row) => Object.keys(row.scores)))];
  const place = (name) => (SCORES.indexOf(name) + SCORES.length + 1) % (SCORES.length + 1);
  return found.sort((one, other) => place(one) - place(other));
}

export function evaluations(rows) {
  document.getElementById("scores").hidden = rows.length === 0;
  if (!rows.length) return;
  const names = scoresOf(rows);
  const best = Object.fromEntries(names.map((name) => {
    const values = rows.map((row) => row.scores[name]).filter(Number.isFinite);
    const value = SMALL.includes(name) ? Math.min(...values) : Math.max(...values);
    return [name, rows.find((row) => row.scores[name] === value)];
  }));
  const cell = (row, name) => {
    const value = row.scores[name];
    const shown = number(figure(value ?? NaN));
    if (row === best[name] && name !== "kid-deviation") shown.classList.add("best");
    return shown;
  };
  const newest = rows.at(-1);
  const floor = make("tr.gone", number("floor"), make("td", ""),
    ...names.map((name) => number(figure(newest.floor?.[name] ?? NaN))));
  fill("evaluations", [["th.number", "step"], ["th", "when"], ...names.map((name) => ["th.number", name])],
    [...rows.toReversed().map((row) => make("tr", number(count(row.step)), make("td.short", date(row.at)),
      ...names.map((name) => cell(row, name)))), floor], "");
}
