// Generations along time: who took part, why there was a new one, and where checkpoints lie.

import { classOf, count, date, draw, make, seconds, time } from "./text.js";

const HEIGHT = 74;
const LANE = { top: 6, height: 26 };

export class Timeline {
  constructor(place) {
    this.svg = draw("svg", { role: "img", height: HEIGHT });
    this.legend = make("div.legend");
    place.append(this.svg, this.legend);
    new ResizeObserver(() => this.show()).observe(this.svg);
  }

  /** `end`: seconds since 1970, until which the newest generation lasts. */
  take(generations, checkpoints, end) {
    this.given = { generations, checkpoints, end };
    const causes = [...new Set(generations.map((generation) => generation.cause))];
    const marks = checkpoints.length ? [make("span", "▾ checkpoint")] : [];
    this.legend.replaceChildren(
      ...causes.map((cause) => make(`span.key.${classOf(cause)}`, cause)), ...marks);
    this.show();
  }

  show() {
    if (!this.given?.generations.length) return this.svg.replaceChildren();
    const { generations, checkpoints } = this.given;
    const width = Math.max(120, this.svg.clientWidth);
    this.svg.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
    const first = generations[0].at;
    const last = Math.max(this.given.end ?? 0, generations.at(-1).at, first + 1);
    const x = (at) => Math.max(0, Math.min(1, (at - first) / (last - first))) * width;
    const parts = generations.flatMap((generation, index) => {
      const from = x(generation.at);
      const wide = Math.max(1.5, x(generations[index + 1]?.at ?? last) - from - 1);
      const box = { x: from, y: LANE.top, width: wide, height: LANE.height, rx: 4 };
      const bar = draw(`rect.span.${classOf(generation.cause)}`, box, draw("title", {}, about(generation)));
      const label = `${generation.generation}`;
      if (wide < 9 * label.length + 8) return [bar];
      const place = { x: from + 8, y: LANE.top + 17, "pointer-events": "none" };
      return [bar, draw("text.on", place, label)];
    });
    for (const checkpoint of checkpoints) {
      const at = x(checkpoint.at);
      if (checkpoint.at < first) continue;
      const y = LANE.top + LANE.height + 4;
      const title = draw("title", {}, `checkpoint of step ${count(checkpoint.step)}, ${date(checkpoint.at)}`);
      parts.push(draw("path.mark", { d: `M${at - 4} ${y}h8l-4 6z` }, title));
    }
    parts.push(
      draw("text", { x: 0, y: HEIGHT - 8 }, time(first)),
      draw("text", { x: width, y: HEIGHT - 8, "text-anchor": "end" }, time(last)));
    this.svg.replaceChildren(...parts);
    const newest = generations.at(-1);
    this.svg.setAttribute("aria-label", `${generations.length} generations; the newest: ${about(newest)}`);
  }
}

function about(generation) {
  const { cause, workers, at, recovery } = generation;
  const took = recovery ? `, on its way after ${seconds(recovery.whole)}` : "";
  const many = `${count(workers)} worker${workers === 1 ? "" : "s"}`;
  return `generation ${generation.generation}: ${cause}, ${many}, ${date(at)}${took}`;
}
