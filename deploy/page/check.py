"""Looks at gan-coord's page with a real browser, and at its event files with TensorBoard: `make page-check`.

    1. a job with two workers: the page has what the coordinator says, and news arrive without a reload
    2. a worker is killed: the page tells of the generation that follows, and of what it took to go on
    3. dark and light, a desk's width and a phone's: nothing is wider than the screen, all text can be read
    4. by keyboard: values of the curves, logarithms, the film
    5. the job is stopped: the page says so; `gan-coord view` shows the same from the run directory
    6. event files: every step, grid and score stands once, also after a crash in the middle of an event

The exit status is 0 if all of that holds. --pictures names a folder for pictures of the page; --bin that of gan-coord
and gan-worker (default: target/debug).
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
import urllib.request
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path.insert(0, str(HERE))
import boards  # noqa: E402
from webdriver import Browser, Failed  # noqa: E402

# For anything that is waited for; a machine may be busy.
PATIENCE = 180
# Grids come faster than any film shows them, and soon too many for one: that must not matter.
SETTINGS = ["train.steps=1000000", "checkpoint.every_steps=10", "sample.every_steps=2", "train.ema_decay=0"]


def expect(holds: bool, what: str) -> None:
    if not holds:
        raise Failed(what)


def wait(what: str, holds: Callable[[], Any]) -> Any:
    until = time.monotonic() + PATIENCE
    while True:
        value = holds()
        if value:
            return value
        expect(time.monotonic() < until, f"waited {PATIENCE} s for {what}")
        time.sleep(0.1)


class Process:
    """A program that doesn't outlive the check."""

    def __init__(self, stack: ExitStack, command: List[str], log: Path) -> None:
        self.log = log
        with log.open("w") as out:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out)
        stack.callback(self.kill)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def said(self, pattern: str) -> str:
        """What it says of `pattern`, once it does."""
        def found() -> Optional[str]:
            match = re.search(pattern, self.log.read_text())
            expect(bool(match) or self.process.poll() is None, f"it ended:\n{self.log.read_text()}")
            return match.group(1) if match else None
        return wait(f"{pattern!r} in {self.log.name}", found)

    def end(self) -> int:
        return self.process.wait(timeout=PATIENCE)


class Job:
    """The small job of the tests, with its run directory in `folder`."""

    def __init__(self, stack: ExitStack, programs: Path, folder: Path) -> None:
        self.stack, self.programs, self.folder = stack, programs, folder
        self.run_dir = folder / "run"
        self.lives = self.workers = 0
        self.begin()

    def begin(self) -> None:
        """A coordinator, also one that goes on with what is there."""
        self.lives += 1
        command = [str(self.programs / "gan-coord"), "serve", str(ROOT / "tests/data/small.toml"),
                   "--listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0",
                   "--run-dir", str(self.run_dir), "--set", f"data.shard_folder={self.folder}/cache"]
        for setting in SETTINGS:
            command += ["--set", setting]
        self.coordinator = Process(self.stack, command, self.folder / f"coordinator-{self.lives}.log")
        self.page = self.coordinator.said(r"page on (\S+)")
        self.url = "http://" + self.coordinator.said(r"listening on (\S+)")

    def worker(self) -> Process:
        self.workers += 1
        command = [str(self.programs / "gan-worker"), "train", "--coordinator", self.url, "--cores", "1",
                   "--advertise", "127.0.0.1"]
        return Process(self.stack, command, self.folder / f"worker-{self.workers}.log")

    def stop(self) -> None:
        subprocess.run([str(self.programs / "gan-coord"), "stop", "--coordinator", self.url], check=True,
                       stdout=subprocess.DEVNULL, timeout=PATIENCE)
        code = self.coordinator.end()
        expect(code == 0, f"gan-coord ended with {code}:\n{self.coordinator.log.read_text()}")

    def records(self) -> List[Dict[str, float]]:
        """The whole lines of its records."""
        path = self.run_dir / "metrics.jsonl"
        lines = path.read_text().split("\n")[:-1] if path.exists() else []
        return [json.loads(line) for line in lines]


def get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=PATIENCE) as answer:
        return answer.read().decode()


def text(name: str) -> str:
    return f"document.getElementById('{name}').textContent"


def rows(table: str) -> str:
    """Its cells, but for the one that says that there are none."""
    return f"""[...document.querySelectorAll('#{table} tbody tr:not(:has(.empty))')]
        .map(row => [...row.cells].map(cell => cell.textContent))"""


STEP = "Number(document.getElementById('step').textContent.replaceAll(',', ''))"
# Of the frame of the film that is shown.
SHOWN = "Number(document.getElementById('frame').getAttribute('aria-valuetext').replace(/\\D/g, ''))"
# Points that are drawn of each line of the first two charts.
POINTS = """[...document.querySelectorAll('#chart-loss .line, #chart-d-s-verdict .line')]
    .map(line => (line.getAttribute('d').match(/[ML]/g) ?? []).length)"""
# What reaches beyond the screen, but for what can be scrolled within it.
WIDE = """[...document.querySelectorAll('body *')].filter(e => !e.closest('.scroll > *') && !e.closest('svg > *')
    && e.getBoundingClientRect().right > document.documentElement.clientWidth + 1)
    .map(e => e.tagName + '#' + e.id + '.' + e.className)"""
# Texts whose contrast with what lies behind them is less than WCAG's AA.
FAINT = """(() => {
  const channel = v => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
  const light = ([r, g, b]) => 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
  const numbers = colour => colour.match(/[\\d.]+/g).map(Number);
  const behind = element => {
    for (let e = element; e; e = e.parentElement) {
      const colour = numbers(getComputedStyle(e).backgroundColor);
      if (colour.length === 3 || colour[3] === 1) return colour;
    }
    return [255, 255, 255];
  };
  const faint = [];
  let count = 0;
  for (const e of document.querySelectorAll('body *')) {
    const own = [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim());
    if (!own || !e.getClientRects().length || e.closest('text.on')) continue;
    const style = getComputedStyle(e);
    const ink = light(numbers(e.closest('svg') ? style.fill : style.color)), paper = light(behind(e));
    const contrast = (Math.max(ink, paper) + 0.05) / (Math.min(ink, paper) + 0.05);
    count += 1;
    if (contrast < 4.5) faint.push(`${e.tagName} "${e.textContent.trim().slice(0, 30)}" ${contrast.toFixed(2)}`);
  }
  return {count, faint};
})()"""
BACKGROUND = "getComputedStyle(document.body).backgroundColor"


def shows_the_job(browser: Browser, job: Job) -> None:
    """Elements are there, with what the coordinator says; and news arrive."""
    browser.size(1320, 1000)
    browser.scheme("light")
    browser.open(job.page)
    browser.wait("two workers", rows("workers"), lambda r: sum(c[2] == "training" for c in r) == 2, PATIENCE)
    browser.wait("a checkpoint", rows("checkpoints"), lambda r: len(r) > 0, PATIENCE)
    browser.wait("a grid of samples", "document.getElementById('sample').naturalWidth > 0", bool, PATIENCE)
    expect(browser.run(text("name")) == "small", "the job's name is not there")
    expect(browser.run(text("of")) == "of 1,000,000 steps", "the job's length is not there")
    expect(browser.run(text("phase")) == "running", "the job's phase is not there")
    said = {fact[0]: fact[1] for fact in browser.run(
        "[...document.querySelectorAll('#facts > div')].map(f => [...f.children].map(c => c.textContent))")}
    expect(float(said["images a second"].replace(",", "")) > 0, f"no images a second: {said}")
    expect(said["workers"] == "2", f"not two workers: {said}")
    for cells in browser.run(rows("workers")):
        rank, _, state, replicas, images, lag = cells[:6]
        told = re.fullmatch(r"[01] training 2 \((0–1|2–3)\) [\d.,]+ [\d,]+ steps",
                            f"{rank} {state} {replicas} {images} {lag}")
        expect(bool(told), f"a worker's row is wrong: {cells}")
    kept = {str(row["digest"]) for row in json.loads(get(f"{job.page}state"))["checkpoints"]["rows"]}
    shown = {row[-1][:64] for row in browser.run(rows("checkpoints"))}
    expect(bool(shown & kept) and all(re.fullmatch("[0-9a-f]{64}", digest) for digest in shown),
           f"the checkpoints' digests are wrong: {shown}")

    step, points = browser.run(STEP), browser.run(POINTS)
    picture = browser.run("document.getElementById('sample').src")
    expect(len(points) == 4 and min(points) > 0, f"four lines of curves, with points: {points}")
    browser.wait("later steps to arrive", STEP, lambda now: now > step + 5, PATIENCE)
    browser.wait("the curves to grow", POINTS, lambda now: min(now) > max(points), PATIENCE)
    browser.wait("a new grid", "document.getElementById('sample').src", lambda now: now != picture, PATIENCE)
    records = job.records()
    shown = browser.run("document.querySelector('#chart-loss svg').getAttribute('aria-label')")
    told = re.fullmatch(r"Loss, step ([\d,]+): D (\S+), G (\S+)", shown)
    expect(bool(told), f"the newest loss can't be heard: {shown}")
    record = next(r for r in records if r["step"] == int(told.group(1).replace(",", "")))
    expect(abs(float(told.group(2)) - record["loss_d"]) < 1e-3 * max(1, abs(record["loss_d"])),
           f"{shown}, but the record is {record}")


def tells_of_a_death(browser: Browser, job: Job, victim: Process) -> None:
    victim.kill()
    job.worker()
    def recovered(generations: List[List[str]]) -> bool:
        return any(re.search(r"death", g[2]) and re.match(r"[\d.,]+ m?s", g[5]) for g in generations)
    browser.wait("a death's recovery", rows("generations"), recovered, PATIENCE)
    browser.wait("who died", text("events"), lambda events: "died" in events, PATIENCE)
    browser.wait("both workers", rows("workers"), lambda r: sum(c[2] == "training" for c in r) == 2, PATIENCE)
    drawn = browser.run("[...document.querySelectorAll('#timeline .span')].map(e => e.getAttribute('class'))")
    expect("span death" in drawn and "span start" in drawn, f"the timeline lacks causes: {drawn}")


def fits_and_can_be_read(browser: Browser, pictures: Optional[Path]) -> None:
    backgrounds = {}
    for name, width, phone in (("desk", 1320, False), ("phone", 360, True)):
        for scheme in ("light", "dark"):
            browser.size(width, 800, phone)
            browser.scheme(scheme)
            time.sleep(0.5)  # Two frames, also on a busy machine: what follows is measured, not waited for.
            widths = browser.run("[document.documentElement.scrollWidth, document.documentElement.clientWidth]")
            expect(widths == [width, width], f"{name}: the page is {widths[0]} pixels wide, the screen {width}")
            wide = browser.run(WIDE)
            expect(not wide, f"{name}: wider than the screen: {wide}")
            looked = browser.run(FAINT)
            expect(looked["count"] > 60, f"{name}: only {looked['count']} texts are there")
            expect(not looked["faint"], f"{name}, {scheme}: hard to read: {looked['faint']}")
            backgrounds[scheme] = browser.run(BACKGROUND)
            if pictures:
                pictures.mkdir(parents=True, exist_ok=True)
                height = browser.run("document.documentElement.scrollHeight")
                browser.size(width, height, phone)
                time.sleep(0.5)
                browser.picture(pictures / f"{name}-{scheme}.png")
    expect(backgrounds["light"] != backgrounds["dark"], f"dark is as light: {backgrounds}")
    browser.size(1320, 1000)
    browser.scheme("light")


def obeys_the_keyboard(browser: Browser) -> None:
    def press(selector: str, key: str) -> None:
        browser.run(f"""(() => {{ const e = document.querySelector('{selector}'); e.focus();
            e.dispatchEvent(new KeyboardEvent('keydown', {{key: '{key}', bubbles: true}})); }})()""")
    press("#chart-loss svg", "Home")
    at = browser.run("document.querySelector('#chart-loss .at').textContent")
    expect(at == "step 1", f"the first step's loss is at {at!r}")
    browser.run("document.querySelector('#chart-loss svg').dispatchEvent(new FocusEvent('blur'))")
    drawn = "document.querySelector('#chart-loss .line').getAttribute('d')"
    linear = browser.run(drawn)
    browser.run("document.querySelector('#chart-loss button').click()")
    expect(browser.run(drawn) != linear, "logarithms draw the same line")
    expect(browser.run("document.querySelector('#chart-loss button').ariaPressed") == "true", "it does not say so")
    browser.run("document.getElementById('follow').click()")
    newest = browser.run(SHOWN)
    browser.run("""(() => { const e = document.getElementById('frame'); e.value = 0;
        e.dispatchEvent(new Event('input')); })()""")
    expect("step-00000002.png" in browser.run("document.getElementById('sample').src"), "the film has no beginning")
    browser.run("document.getElementById('play').click()")
    # The job draws on; the film must end nevertheless, where the job was when it began.
    end = browser.wait("the film to end", f"[document.getElementById('play').textContent, {SHOWN}]",
                       lambda shown: shown[0] == "Play", PATIENCE)[1]
    expect(newest <= end, f"the film ended at step {end}, and there was step {newest} already")


def is_shown_afterwards(browser: Browser, job: Job, stack: ExitStack) -> None:
    """The page of files, after the job, says what the page of the job has said last."""
    job.stop()
    browser.wait("the end", "document.body.dataset.over", bool, PATIENCE)
    expect(browser.run(text("phase")) == "ended", "the page doesn't say that the job has ended")
    expect("stopped at step" in browser.run(text("detail")), "the page doesn't say how")
    same = [STEP, rows("checkpoints"), rows("generations"), text("events"),
            "document.querySelector('#chart-loss svg').getAttribute('aria-label')"]
    live = [browser.run(script) for script in same]
    # As an evaluation would have left it.
    evaluation = {"step": 10, "digest": "0" * 64, "scores": {"fid": 12.5, "modes": 7.0}, "floor": {"fid": 1.5},
                  "protocol": {"samples_of": "average", "samples": 100, "seed": 7, "data": "d", "reals": 100,
                               "floor_samples": 50, "extractor": {"kind": "none", "hash": "h", "features": 2}},
                  "unix_seconds": time.time(), "seconds": 1.0}
    (job.run_dir / "evaluations.jsonl").write_text(json.dumps(evaluation) + "\n")
    viewer = Process(stack, [str(job.programs / "gan-coord"), "view", str(job.run_dir)], job.folder / "view.log")
    browser.open(viewer.said(r"(http://\S+/)"))
    browser.wait("the run", "document.body.dataset.ready", bool, PATIENCE)
    browser.wait("the curves", POINTS, lambda points: len(points) == 4 and min(points) > 0, PATIENCE)
    expect(browser.run(text("phase")) == "ended", "the run directory doesn't say that the job has ended")
    for script, before in zip(same, live):
        after = browser.run(script)
        expect(after == before, f"after the job {script} is {after!r}, and was {before!r}")
    scores = browser.wait("scores", rows("evaluations"), lambda r: len(r) == 2, PATIENCE)
    expect(scores[0][2:] == ["12.50", "7.000"] and scores[1][2] == "1.500", f"the scores are wrong: {scores}")


def reads_as_a_board(job: Job) -> None:
    """After a crash in the middle of an event, and another life: each step once, and each as it is recorded."""
    folder = job.run_dir / "tensorboard"
    first = next(folder.iterdir())
    first.write_bytes(first.read_bytes()[:-7])
    before = job.records()[-1]["step"]
    job.begin()
    job.worker()
    wait("steps of another life", lambda: job.records()[-1]["step"] > before + 12)
    job.stop()
    expect(len(list(folder.iterdir())) == 2, "the second life has no event file of its own")
    board = boards.read(folder)
    records = job.records()
    tags = {"loss/discriminator": "loss_d", "loss/generator": "loss_g", "probability/real": "d_real",
            "probability/fake": "d_fake", "gradient_norm/discriminator": "grad_norm_d",
            "gradient_norm/generator": "grad_norm_g", "images_per_second": "images_per_s"}
    expect(set(board.Tags()["scalars"]) == {*tags, "evaluation/fid", "evaluation/modes"},
           f"TensorBoard finds other figures: {board.Tags()}")
    for tag, name in tags.items():
        scalars = board.Scalars(tag)
        expect([s.step for s in scalars] == [r["step"] for r in records], f"{tag}: not each step once, in order")
        wrong = [(s, r) for s, r in zip(scalars, records) if abs(s.value - r[name]) > 1e-5 * max(1, abs(r[name]))]
        expect(not wrong, f"{tag} differs from the records: {wrong[:1]}")
    expect([(s.step, s.value) for s in board.Scalars("evaluation/fid")] == [(10, 12.5)], "the score is wrong")
    grids = {f"step-{image.step:08}.png": image for image in board.Images("samples")}
    files = {path.name: path for path in (job.run_dir / "samples").glob("*.png")}
    expect(len(board.Images("samples")) == len(grids) and set(grids) == set(files),
           f"TensorBoard finds the grids {sorted(grids)}, the folder has {sorted(files)}")
    for name, path in files.items():
        expect(grids[name].encoded_image_string == path.read_bytes(), f"TensorBoard's {name} is another picture")


def main() -> None:
    parser = argparse.ArgumentParser(description="checks gan-coord's page and its event files")
    parser.add_argument("--bin", type=Path, default=ROOT / "target/debug", help="folder of the programs")
    parser.add_argument("--pictures", type=Path, help="folder for pictures of the page")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="ganglion-page-") as folder, ExitStack() as stack:
        browser = stack.enter_context(Browser())
        job = Job(stack, options.bin, Path(folder))
        victim, _ = job.worker(), job.worker()
        checks: Dict[str, Callable[[], None]] = {
            "the job, as it goes on": lambda: shows_the_job(browser, job),
            "a worker's death": lambda: tells_of_a_death(browser, job, victim),
            "dark and light, wide and narrow": lambda: fits_and_can_be_read(browser, options.pictures),
            "the keyboard": lambda: obeys_the_keyboard(browser),
            "metrics and health beside it": lambda: expect(
                get(f"{job.page}health") == "OK" and "gan_coord_generation" in get(f"{job.page}metrics"),
                "/health or /metrics is gone"),
            "after the job, from its files": lambda: is_shown_afterwards(browser, job, stack),
            "nothing that the browser complains of": lambda: expect(
                not (said := browser.complaints()), f"the browser says: {said}"),
            "TensorBoard's event files": lambda: reads_as_a_board(job),
        }
        for name, check in checks.items():
            try:
                check()
            except Failed as failed:
                sys.exit(f"page-check: {name}: {failed}")
            print(f"page-check: {name}: good", flush=True)


if __name__ == "__main__":
    main()
