// One chart: lines of means over bands of bounds, linear or logarithmic, with a value under the pointer.

import { classOf, count, draw, figure, make, tick } from "./text.js";

const HEIGHT = 210;
const SIDES = { left: 46, right: 10, top: 10, bottom: 22 };

export class Chart {
  /** `series`: [{ name, label, colour }]; `range`: [low, high] if it is known; `log`: may be switched. */
  constructor({ title, series, range = null, log = false }) {
    this.title = title;
    this.series = series;
    this.range = range;
    this.log = false;
    this.data = { step: [], series: {} };
    this.chosen = null;
    this.svg = draw("svg", { role: "img", tabindex: 0, height: HEIGHT });
    this.values = series.map(() => make("output"));
    this.at = make("output.at");
    const legend = make("div.legend", ...series.map((one, index) =>
      make(`span.key.${one.colour}`, `${one.label} `, this.values[index])), this.at);
    const head = make("header", make("h2", title));
    if (log) head.append(this.switch());
    this.element = make("article.chart", head, legend, this.svg);
    this.element.id = `chart-${classOf(title)}`;
    this.listen();
    new ResizeObserver(() => this.show()).observe(this.svg);
  }

  switch() {
    const button = make("button", "log");
    button.type = "button";
    button.setAttribute("aria-label", `${this.title}: logarithmic scale`);
    const press = (on) => button.setAttribute("aria-pressed", String(on));
    press(false);
    button.addEventListener("click", () => {
      this.log = !this.log;
      press(this.log);
      this.show();
    });
    return button;
  }

  listen() {
    const point = (event) => {
      const box = this.svg.getBoundingClientRect();
      this.choose(this.nearest(event.clientX - box.left));
    };
    this.svg.addEventListener("pointermove", point);
    this.svg.addEventListener("pointerdown", point);
    this.svg.addEventListener("pointerleave", () => this.choose(null));
    this.svg.addEventListener("blur", () => this.choose(null));
    this.svg.addEventListener("keydown", (event) => {
      const last = this.data.step.length - 1;
      const now = this.chosen ?? last;
      const stride = event.shiftKey ? 10 : 1;
      const to = { ArrowLeft: now - stride, ArrowRight: now + stride, Home: 0, End: last }[event.key];
      if (to === undefined) return;
      event.preventDefault();
      this.choose(Math.max(0, Math.min(last, to)));
    });
  }

  /** `data`: { step: […], series: { name: { mean, min?, max? } } } */
  take(data) {
    this.data = data;
    this.show();
  }

  show() {
    const width = Math.max(120, this.svg.clientWidth);
    this.svg.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
    const { step } = this.data;
    const first = step.find((value) => value !== null) ?? 0;
    const last = step.findLast((value) => value !== null) ?? 1;
    const [low, high] = this.bounds();
    const inner = [SIDES.left, width - SIDES.right];
    this.x = (value) => inner[0] + ((value - first) / (last - first || 1)) * (inner[1] - inner[0]);
    const put = (value) => (this.log ? Math.log10(value) : value);
    const span = put(high) - put(low) || 1;
    const bottom = HEIGHT - SIDES.bottom;
    this.y = (value) => {
      const share = (put(value) - put(low)) / span;
      return bottom - Math.max(-0.05, Math.min(1.05, share)) * (bottom - SIDES.top);
    };
    const parts = [...this.axes(first, last, low, high, width)];
    for (const one of this.series) {
      const column = this.data.series[one.name];
      if (!column) continue;
      if (column.min?.length) parts.push(draw(`path.band.${one.colour}`, { d: this.band(column) }));
      parts.push(draw(`path.line.${one.colour}`, { d: this.line(column.mean) }));
    }
    this.svg.replaceChildren(...parts);
    this.choose(this.chosen);
  }

  shows(value) {
    return Number.isFinite(value) && (!this.log || value > 0);
  }

  bounds() {
    if (this.range && !this.log) return this.range;
    let [low, high] = [Infinity, -Infinity];
    for (const { name } of this.series) {
      for (const value of this.data.series[name]?.mean ?? []) {
        if (value === null || !this.shows(value)) continue;
        low = Math.min(low, value);
        high = Math.max(high, value);
      }
    }
    if (low > high) return this.log ? [0.1, 1] : [0, 1];
    if (this.log) return [low / 1.15, high * 1.15];
    const room = (high - low) * 0.06 || Math.abs(high) * 0.1 || 1;
    return [low >= 0 ? Math.max(0, low - room) : low - room, high + room];
  }

  *axes(first, last, low, high, width) {
    const ticks = this.log ? decades(low, high) : rounds(low, high, 5);
    for (const value of ticks) {
      const y = this.y(value);
      yield draw("line.gridline", { x1: SIDES.left, x2: width - SIDES.right, y1: y, y2: y });
      const place = { x: SIDES.left - 8, y: y + 4, "text-anchor": "end" };
      yield draw("text", place, tick(value, this.log ? value : ticks[1] - ticks[0]));
    }
    for (const value of rounds(first, last, width > 420 ? 6 : 4)) {
      if (!Number.isInteger(value)) continue;
      const anchor = this.x(value) > width - 26 ? "end" : "middle";
      yield draw("text", { x: this.x(value), y: HEIGHT - 5, "text-anchor": anchor }, tick(value, 1));
    }
  }

  line(values) {
    let path = "";
    let pen = "M";
    values.forEach((value, index) => {
      const step = this.data.step[index];
      if (step === null) return;
      if (value === null || !this.shows(value)) {
        pen = "M";
        return;
      }
      path += `${pen}${this.x(step).toFixed(1)} ${this.y(value).toFixed(1)}`;
      pen = "L";
    });
    return path;
  }

  band({ min, max }) {
    const points = this.data.step.map((step, index) => [step, min[index], max[index]])
      .filter(([step, low, high]) => step !== null && this.shows(low) && this.shows(high) && high !== null);
    const edge = (point, side) => `${this.x(point[0]).toFixed(1)} ${this.y(point[side]).toFixed(1)}`;
    const upper = points.map((point) => edge(point, 2));
    const lower = points.map((point) => edge(point, 1)).reverse();
    return points.length ? `M${[...upper, ...lower].join("L")}Z` : "";
  }

  nearest(x) {
    let [best, distance] = [null, Infinity];
    this.data.step.forEach((step, index) => {
      const away = step === null ? Infinity : Math.abs(this.x(step) - x);
      if (away < distance) [best, distance] = [index, away];
    });
    return best;
  }

  /** Shows the values of a point, or of the newest. */
  choose(index) {
    this.chosen = index;
    this.svg.querySelectorAll(".rule, .dot").forEach((old) => old.remove());
    const shown = index ?? this.data.step.length - 1;
    const step = this.data.step[shown];
    const texts = this.series.map(({ name }) => figure(this.data.series[name]?.mean[shown] ?? NaN));
    texts.forEach((text, place) => (this.values[place].textContent = text));
    this.at.textContent = Number.isFinite(step) && index !== null ? `step ${count(step)}` : "";
    const said = this.series.map(({ label }, place) => `${label} ${texts[place]}`).join(", ");
    this.svg.setAttribute("aria-label", `${this.title}, step ${count(step)}: ${said}`);
    if (index === null || !Number.isFinite(step)) return;
    const x = this.x(step);
    const rule = { x1: x, x2: x, y1: SIDES.top, y2: HEIGHT - SIDES.bottom };
    this.svg.append(draw("line.rule", rule));
    for (const { name, colour } of this.series) {
      const value = this.data.series[name]?.mean[shown] ?? NaN;
      if (!this.shows(value)) continue;
      this.svg.append(draw(`circle.dot.${colour}`, { cx: x, cy: this.y(value), r: 3.2 }));
    }
  }
}

/** Round numbers from `low` to `high`, about `wanted` of them. */
export function rounds(low, high, wanted) {
  const rough = (high - low) / wanted;
  if (!(rough > 0)) return [low];
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * ([1, 2, 2.5, 5, 10].find((factor) => factor * power >= rough) ?? 10);
  const ticks = [];
  for (let index = Math.ceil(low / step); index * step <= high + step * 1e-6; index += 1) {
    ticks.push(index * step);
  }
  return ticks;
}

/** Powers of ten, and where there are few their doubles and fives. */
function decades(low, high) {
  const factors = Math.log10(high / low) > 2.5 ? [1] : [1, 2, 5];
  const ticks = [];
  for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power += 1) {
    ticks.push(...factors.map((factor) => factor * 10 ** power));
  }
  return ticks.filter((value) => value >= low && value <= high);
}
