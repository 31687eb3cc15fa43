// Elements and figures. Whatever comes from a job is put in as text, never as markup.

/** An element: `make("td.number", "12")`. Children are elements or text. */
export function make(kind, ...children) {
  const [tag, ...classes] = kind.split(".");
  const element = document.createElement(tag);
  if (classes.length) element.className = classes.join(" ");
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

/** An SVG element with attributes. */
export function draw(kind, attributes = {}, ...children) {
  const [tag, ...classes] = kind.split(".");
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  if (classes.length) element.setAttribute("class", classes.join(" "));
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

/** A word as a class, so that no text can choose any other. */
export function classOf(word) {
  return String(word).toLowerCase().replace(/[^a-z_]+/g, "-");
}

const NONE = "–";
const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });

export function count(value) {
  return Number.isFinite(value) ? whole.format(value) : NONE;
}

/** Four digits that count. */
export function figure(value) {
  if (!Number.isFinite(value)) return NONE;
  const size = Math.abs(value);
  if (size >= 1e6 || (size > 0 && size < 1e-3)) return value.toExponential(2);
  if (size >= 1000) return whole.format(value);
  return value.toFixed(size >= 100 ? 1 : size >= 10 ? 2 : size >= 1 ? 3 : 4);
}

/** Numbers of an axis, which differ by `step`. */
export function tick(value, step) {
  const size = Math.abs(value);
  if (size >= 1e6) return `${+(value / 1e6).toFixed(2)}M`;
  if (size >= 1e4) return `${+(value / 1e3).toFixed(1)}k`;
  if (size !== 0 && size < 1e-3) return value.toExponential(0);
  const power = Math.floor(Math.log10(step || size || 1));
  const quarters = Math.round((10 * step) / 10 ** power) === 25;
  return value.toFixed(Math.max(0, Math.min(4, Number(quarters) - power)));
}

export function seconds(value) {
  if (!Number.isFinite(value)) return NONE;
  if (value < 1) return `${count(value * 1000)} ms`;
  if (value < 60) return `${value.toFixed(value < 10 ? 2 : 1)} s`;
  const minutes = Math.floor(value / 60);
  if (minutes < 60) return `${minutes} min ${Math.floor(value % 60)} s`;
  const hours = Math.floor(minutes / 60);
  return hours < 48 ? `${hours} h ${minutes % 60} min` : `${(hours / 24).toFixed(1)} days`;
}

export function time(unix) {
  return Number.isFinite(unix) ? new Date(unix * 1000).toLocaleTimeString("en-GB") : NONE;
}

export function date(unix) {
  if (!Number.isFinite(unix)) return NONE;
  const when = new Date(unix * 1000);
  return `${when.toLocaleDateString("en-CA")} ${when.toLocaleTimeString("en-GB")}`;
}
