"""Pictures of the card in a real browser, of a run that fails and is tried again, and of gangs that no test can have.

GANG_PICTURES=docs/images has those that the docs show written there.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from card_sample import snapshot
from card_states import STATES
from pictures import small
from support.flows import FlowRunner
from support.machine.browser import DESKTOP, PHONE, Browser, browser

from metaflow_extensions.gang.core.card.html import page

LIMIT_S = 240.0

IN_DOCS = {
    ("running", DESKTOP, False): "card.png",
    ("failed", DESKTOP, False): "card_failed.png",
    ("many", DESKTOP, True): "card_many.png",
    ("running", PHONE, True): "card_phone.png",
}

TOP = 1180.0
"""Pixels of a page that a picture of the docs has."""

MOST_BYTES = 150_000

LOW_CONTRAST = """(() => {
  const channels = (text) => text.match(/[\\d.]+/g).map(Number);
  const linear = (value) => (value <= 0.03928 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4);
  const light = (rgb) => rgb.slice(0, 3).map((value) => linear(value / 255))
    .reduce((sum, v, index) => sum + v * [0.2126, 0.7152, 0.0722][index], 0);
  const behind = (element) => {
    for (; element; element = element.parentElement) {
      const colour = channels(getComputedStyle(element).backgroundColor);
      if (colour.length === 3 || colour[3] > 0.5) return colour;
    }
    return [255, 255, 255];
  };
  const found = new Set();
  for (const element of document.querySelectorAll("main *")) {
    const text = Array.from(element.childNodes).filter((node) => node.nodeType === 3 && node.data.trim());
    if (!text.length || element.tagName === "title") continue;
    const style = getComputedStyle(element);
    const [a, b] = [light(channels(element.ownerSVGElement ? style.fill : style.color)), light(behind(element))];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) found.add(`${text[0].data.trim().slice(0, 40)}: ${ratio.toFixed(1)}`);
  }
  return [...found];
})()"""
"""Texts whose contrast is less than WCAG's 4.5 (level AA)."""

WIDE = """Array.from(document.querySelectorAll("main *")).filter((element) => {
  const box = element.getBoundingClientRect();
  return box.width && (box.right > innerWidth + 0.5 || box.left < -0.5);
}).map((element) => element.outerHTML.slice(0, 80))"""
"""Elements that are cut off at a side of the page."""

pytestmark = pytest.mark.big  # needs a browser, which the ordinary tests do without

FLOW = """
import os, signal, sys, time
from metaflow import FlowSpec, current, gang_log, retry, step, torchrun

def train(steps, fails):
    rank = int(os.environ["RANK"])
    for number in range(steps):
        gang_log(step=number, loss=2.3 * 0.93 ** number + 0.01 * rank)
        print(f"step {number}: loss {2.3 * 0.93 ** number:.3f}", flush=True)
        until = time.monotonic() + 0.05
        while time.monotonic() < until:
            pass
        time.sleep(0.2)
    if fails and rank == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(1 if fails else 0)

class Digits(FlowSpec):
    @step
    def start(self):
        self.next(self.train, num_parallel=2)

    @retry(times=1, minutes_between_retries=0)
    @torchrun(nproc_per_node=2)
    @step
    def train(self):
        first = current.retry_count == 0
        current.torch.run(entrypoint=train, entrypoint_args={"steps": 56 if first else 24, "fails": first})
        self.next(self.join)

    @step
    def join(self, inputs):
        self.next(self.end)

    @step
    def end(self):
        pass

if __name__ == "__main__":
    Digits()
"""


STALLS = """
import time
from metaflow import FlowSpec, current, step, torchrun

def load_shard():
    time.sleep(10_000)

def train():
    import torch
    import torch.distributed as dist

    dist.init_process_group("gloo")
    print("epoch 3, step 1200", flush=True)
    if dist.get_rank() == 1:
        load_shard()
    dist.all_reduce(torch.ones(4))

class Digits(FlowSpec):
    @step
    def start(self):
        self.next(self.train, num_parallel=2)

    @torchrun(nproc_per_node=2, stall_timeout=10)
    @step
    def train(self):
        current.torch.run(entrypoint=train)
        self.next(self.join)

    @step
    def join(self, inputs):
        self.next(self.end)

    @step
    def end(self):
        pass

if __name__ == "__main__":
    Digits()
"""


@pytest.fixture
def chromium() -> Iterator[Browser]:
    with browser() as found:
        yield found


def judge(chromium: Browser, state: str, text: str, folder: Path, expected: tuple[str, ...]) -> None:
    """The page in both widths and both tones: nothing cut off, all legible, and no two parts without a content."""
    file = folder / f"{state}.html"
    file.write_text(text)
    for width in (DESKTOP, PHONE):
        for dark in (False, True):
            with chromium.page(file.as_uri(), width, dark) as page:
                what = (state, width, dark)
                page.value("document.querySelectorAll('details').forEach((element) => { element.open = true; })")
                assert page.value("document.documentElement.scrollWidth") == width, what
                assert page.value(WIDE) == [], what
                assert page.value(LOW_CONTRAST) == [], what
                shown = page.text
                for part in expected:
                    assert part in shown, (what, part)
                for never in ("NaN", "undefined", "null", "Infinity"):
                    assert never not in shown, (what, never)
                name = IN_DOCS.get(what)
                if name and "GANG_PICTURES" in os.environ:
                    page.value("document.querySelectorAll('details').forEach((element) => { element.open = false; })")
                    picture = folder / name
                    page.picture(picture, TOP if width == DESKTOP else 1400.0)
                    small(picture)
                    assert picture.stat().st_size < MOST_BYTES
                    Path(os.environ["GANG_PICTURES"], name).write_bytes(picture.read_bytes())


def test_simulated_gangs(chromium: Browser, tmp_path: Path) -> None:
    expected = {
        "stalled": ("no progress", "No rank has made progress for 5 minutes.", "rank 5 in load_shard"),
        "many": ("64 of 64", "512 of 512", "10 of 64", "Xid 79", "tokens per second"),
    }
    for state, parts in expected.items():
        judge(chromium, state, page(STATES[state]()), tmp_path, parts)


def test_a_run_that_fails_and_is_tried_again(chromium: Browser, flow_run: FlowRunner, tmp_path: Path) -> None:
    run = flow_run(FLOW)
    running: dict[str, Any] = {}

    deadline = time.monotonic() + LIMIT_S
    while not running:
        assert time.monotonic() < deadline and run.exit_code is None, run.dump()
        for file in run.folder.rglob("gang-*.data.json"):
            with contextlib.suppress(ValueError):  # it is being written
                data = json.loads(file.read_text())["data"]
                curves = data["curves"].get("loss", {"ranks": {}})["ranks"]
                if len(curves) == 4 and all(points[-1][0] >= 36 for points in curves.values()):
                    running = data
        time.sleep(0.1)
    run.ok(LIMIT_S)
    assert running["state"] == "running"
    pages = {}
    for file in run.folder.rglob("gang-*.html"):
        text = file.read_text()
        pages["failed" if '"state":"failed"' in text else "succeeded"] = text
    judge(chromium, "running", page(running), tmp_path, ("@torchrun on 2 nodes, 4 ranks", "2 of 2", "4 of 4", "loss"))
    judge(chromium, "failed", pages["failed"], tmp_path, ("SIGKILL", "rank 3", "failed"))
    judge(chromium, "succeeded", pages["succeeded"], tmp_path, ("succeeded", "store", "CPU"))


def test_a_run_that_stalls(chromium: Browser, flow_run: FlowRunner, tmp_path: Path) -> None:
    run = flow_run(STALLS)
    run.fails(LIMIT_S)
    (file,) = run.folder.rglob("gang-*.html")
    text = file.read_text()
    parts = ("has made no progress for 10 s", "rank 1 in load_shard", "3 ranks (0, 2, 3) in all_reduce")
    judge(chromium, "stalled_run", text, tmp_path, parts)


def test_a_gang_that_has_just_begun(chromium: Browser, tmp_path: Path) -> None:
    nodes = [{"index": index, "host": "", "at": {"started": 0.0, "met": 0.4} if index else {}} for index in range(4)]
    series = {"start": 0.4, "every": 2.0, "values": {}}
    shown = snapshot(4, state="forming", ranks=[], ranks_in_all=0, ranks_running=0, series=series)
    shown.update(nodes=nodes, curves={}, launches=[], now=shown["started"] + 4.0)
    judge(chromium, "forming", page(shown), tmp_path, ("4 nodes", "forming", "0 of 4"))
