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
    const at = this.step();
    this.frames = frames;
    this.job = job;
    this.total = total;
    this.none.hidden = frames.length > 0;
    this.image.hidden = frames.length === 0;
    this.controls.hidden = frames.length < 2;
    if (!frames.length) return;
    this.slider.max = String(frames.length - 1);
    // A long film leaves frames out, other ones than before: the place is the newest that isn't later.
    const later = frames.findIndex((frame) => frame.step > at);
    this.show(this.follows || later < 0 ? frames.length - 1 : Math.max(later - 1, 0));
  }

  /** That of the frame that is shown. */
  step() {
    return this.frames[Number(this.slider.value)]?.step ?? Infinity;
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
    const last = this.frames[this.frames.length - 1].step;
    const from = this.step() < last ? this.step() : -1;
    this.turn(from, last);
  }

  /**
   * Shows the frame after that of step `from` once it is there, and the next one after a while, until step `last` is
   * reached: a job that draws grids faster than they are shown has no end.
   */
  turn(from, last) {
    const frame = this.frames.find((frame) => frame.step > from);
    if (!frame) return this.stop();
    this.timer = 0;
    const next = new Image();
    next.src = this.address(frame);
    const done = () => {
      if (this.timer === null) return;
      // Frames may have come and gone in the meantime.
      const place = this.frames.findIndex((other) => other.step >= frame.step);
      this.show(place < 0 ? this.frames.length - 1 : place);
      if (frame.step >= last) return this.stop();
      this.timer = setTimeout(() => this.turn(frame.step, last), FRAME);
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
