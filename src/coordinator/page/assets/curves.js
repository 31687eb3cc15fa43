// The curves of a run, as they come in pieces.

import { Chart } from "./chart.js";

const CHARTS = [
  {
    title: "Loss",
    log: true,
    series: [
      { name: "loss_d", label: "D", colour: "d" },
      { name: "loss_g", label: "G", colour: "g" },
    ],
  },
  {
    title: "D’s verdict",
    range: [0, 1],
    series: [
      { name: "d_real", label: "D(x)", colour: "real" },
      { name: "d_fake", label: "D(G(z))", colour: "fake" },
    ],
  },
  {
    title: "Gradient norms",
    log: true,
    series: [
      { name: "grad_norm_d", label: "D", colour: "d" },
      { name: "grad_norm_g", label: "G", colour: "g" },
    ],
  },
  {
    title: "Images a second",
    series: [{ name: "images_per_s", label: "all workers", colour: "other" }],
  },
];

export class Curves {
  constructor(place) {
    this.data = { step: [], series: {} };
    this.charts = CHARTS.map((about) => new Chart(about));
    place.append(...this.charts.map((chart) => chart.element));
  }

  /** What the server tells: from a bucket on, those before stay. */
  take({ from, step, series }) {
    const kept = (old, news) => [...(old ?? []).slice(0, from), ...news];
    const merged = {};
    for (const [name, column] of Object.entries(series)) {
      merged[name] = {};
      for (const [kind, values] of Object.entries(column)) {
        merged[name][kind] = kept(this.data.series[name]?.[kind], values);
      }
    }
    this.data = { step: kept(this.data.step, step), series: merged };
    for (const chart of this.charts) chart.take(this.data);
  }
}
