// The newest sample grid, and the film of all.

import { count } from "./text.js";

const FRAME = 160; // milliseconds

export class Film {
  constructor() {
    const by = (id) => document.getElementById(id);
    this.image = by("sample");
    this.caption = by("sample-caption");
    this.none = by("no-sample");
    this.controls = by("film");
    this.play = by("play");
    this.slider = by("frame");
    this.follow = by("follow");
    this.frames = [];
    this.shown = null;
    this.follows = true;
    this.timer = null;
    this.play.addEventListener("click", () => (this.timer === null ? this.start() : this.stop()));
    this.slider.addEventListener("input", () => {
      this.stop();
      this.followed(false);
      this.show(Number(this.slider.value));
    });
    this.follow.addEventListener("click", () => {
      this.stop();
      this.followed(true);
      this.show(this.frames.length - 1);
    });
  }

  followed(on) {
    this.follows = on;
    this.follow.setAttribute("aria-pressed", String(on));
  }

  /** The frames that there are; `job` keeps pictures of another job out of the browser's memory. */
  take(frames, job, total) {
    const at = this.frames[Number(this.slider.value)]?.name;
    this.frames = frames;
    this.job = job;
    this.total = total;
    this.none.hidden = frames.length > 0;
    this.image.hidden = frames.length === 0;
    this.controls.hidden = frames.length < 2;
    if (!frames.length) return;
    this.slider.max = String(frames.length - 1);
    const place = frames.findIndex((frame) => frame.name === at);
    this.show(this.follows || place < 0 ? frames.length - 1 : place);
  }

  address(frame) {
    return `samples/${encodeURIComponent(frame.name)}?job=${encodeURIComponent(this.job ?? "")}`;
  }

  show(index) {
    const frame = this.frames[index];
    if (!frame) return;
    this.slider.value = String(index);
    const text = `step ${count(frame.step)}`;
    this.slider.setAttribute("aria-valuetext", text);
    const all = this.total > 1 ? `, grid ${index + 1} of ${this.frames.length}` : "";
    const left = this.total > this.frames.length ? ` (${count(this.total)} were drawn)` : "";
    this.caption.textContent = `${text}${all}${left}`;
    this.image.alt = `Grid of generated samples at ${text}`;
    if (this.shown === this.address(frame)) return;
    this.shown = this.address(frame);
    this.image.src = this.shown;
  }

  start() {
    this.followed(false);
    this.play.textContent = "Pause";
    this.play.setAttribute("aria-pressed", "true");
    const last = this.frames.length - 1;
    const from = Number(this.slider.value);
    this.turn(from >= last ? 0 : from + 1);
  }

  /** Shows a frame once it is there, and the next one after a while. */
  turn(index) {
    this.timer = 0;
    const next = new Image();
    next.src = this.address(this.frames[index]);
    const done = () => {
      if (this.timer === null) return;
      this.show(index);
      if (index + 1 >= this.frames.length) return this.stop();
      this.timer = setTimeout(() => this.turn(index + 1), FRAME);
    };
    next.decode().then(done, done);
  }

  stop() {
    clearTimeout(this.timer ?? undefined);
    this.timer = null;
    this.play.textContent = "Play";
    this.play.setAttribute("aria-pressed", "false");
  }
}
