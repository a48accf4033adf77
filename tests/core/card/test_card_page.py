"""The card's page: one file without outside resources, whatever it has to show, and drawn by a real browser."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import metaflow  # noqa: F401 - before any of its extensions
import pytest
from card_sample import START, snapshot
from card_states import replaced, traces
from support.requirements import require_tool

from metaflow_extensions.gang.core.card.html import LIVE, page
from metaflow_extensions.gang.core.guard.card.snapshot import traces as traces_of
from metaflow_extensions.gang.core.guard.node_roles import NodeRoles, without_ranks
from metaflow_extensions.gang.core.storage.traces import MOST_NAME

LIMIT_S = 120


def dom(text: str, tmp_path: Path, *options: str) -> str:
    """The page's content after its scripts have run in Chromium."""
    file = tmp_path / "card.html"
    file.write_text(text)
    done = subprocess.run(
        [
            require_tool("chromium", "chromium"),
            "--headless",
            "--no-sandbox",  # root's Chromium does not start otherwise
            "--disable-gpu",
            f"--user-data-dir={tmp_path / 'profile'}",
            "--virtual-time-budget=3000",
            "--enable-logging=stderr",
            *options,
            "--dump-dom",
            file.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
    )
    assert done.returncode == 0, done.stderr
    errors = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    assert not errors, errors
    return re.sub(r"<script.*?</script>|<style.*?</style>", "", done.stdout, flags=re.DOTALL)


def test_the_page_needs_nothing_from_elsewhere() -> None:
    text = page(snapshot(4))
    assert not re.search(r"""(?:src|href)=|url\(|@import|\bfetch\(|https?://(?!www\.w3\.org/2000/svg)""", text)
    assert f'METAFLOW_RELOAD_TOKEN = "{LIVE}"' in text


@pytest.mark.parametrize("nodes, most", [(2, 50_000), (64, 140_000), (1024, 1_000_000)])
def test_the_size_of_the_page(nodes: int, most: int) -> None:
    assert len(page(snapshot(nodes, 8)).encode()) < most


def test_the_size_of_the_page_of_a_thousand_nodes_whose_ranks_have_left_traces() -> None:
    files = [{"name": f"rank{rank}".ljust(MOST_NAME, "x"), "rank": rank, "bytes": 31_000_000} for rank in range(8)]
    left_out = "Not stored: 3 traces of torch's profiler, 411.0 MiB."
    found = {
        node: {"where": f"s3://bucket/{'x' * 200}/{node}", "files": files, "left_out": left_out} for node in range(1024)
    }
    shown = traces_of(found)
    assert shown is not None and shown["in_all"] == 8192
    assert len(page(snapshot(1024, 8, traces=shown)).encode()) < 1_000_000


def test_the_size_of_the_page_of_a_thousand_nodes_of_which_most_are_spare_or_lost() -> None:
    roles = NodeRoles()
    roles.world(range(512), range(512, 1024), START)
    for node in range(1, 512):
        roles.leave_out(node, f"lost: {'x' * 400}", START + node)
    roles.world((0, *range(512, 1023)), (1023,), START + 512)
    shown = snapshot(1024, 8, roles=roles.records(), roles_in_all=len(roles))
    for node, more in without_ranks(roles, START).items():
        shown["nodes"][node].update(more)
    assert (len(shown["roles"]), shown["roles_in_all"]) == (64, 1023)
    assert len(page(shown).encode()) < 1_000_000


def test_nodes_that_were_left_out_and_spare_ones_are_marked(tmp_path: Path) -> None:
    found = dom(page(replaced()), tmp_path)
    assert "Nodes left out, and spare nodes" in found
    for node, text, since in (
        (2, "left out: lost: the connection from it to node 0 was lost (reset): its container", "3 min 20 s"),
        (4, "left out: its ranks failed first 2 times", "5 min"),
        (5, "spare, took the place of node 2 (node rank 2)", "3 min 21 s"),
        (6, "spare, took the place of node 4 (node rank 4)", "5 min"),
        (7, "spare, waits", "6.4 s"),
    ):
        row = re.search(
            rf"<tr><td[^>]*>{node}</td><td[^>]*>gang{node}</td><td[^>]*>([^<]*)</td><td[^>]*>([^<]*)", found
        )
        assert row is not None, f"no row of node {node}"
        assert row[1].startswith(text) and row[2] == since, row.groups()
    # In the timeline a lost node's bar ends there, and spare nodes wait.
    bars = re.findall(r"<title>node (\d)[^:<]*: ([^<]*)</title>", found)
    waits = {int(node): text for node, text in bars if text.startswith("wait as a spare")}
    assert sorted(waits) == [5, 6, 7], bars
    assert waits[5] == "wait as a spare 3 min 15 s" and [text for node, text in bars if node == "2"][-1].startswith(
        "run"
    )
    assert found.count('class="mark"') == 2 and "failed, or left out" in found
    assert "Nodes left out" not in dom(page(snapshot(2)), tmp_path)


def test_traces_are_listed_with_a_link_to_a_local_file_and_the_command_that_fetches_them(tmp_path: Path) -> None:
    local = traces(4)
    local["files"][1]["where"] = "/tmp/100% #1/a b.pt.trace.json"
    found = dom(page(snapshot(2, traces=local)), tmp_path)
    assert '<a href="file:///tmp/100%25%20%231/a%20b.pt.trace.json">/tmp/100% #1/a b.pt.trace.json</a>' in found
    assert "metaflow-gang traces Digits/17/train/2 --attempt 0 --to traces" in found
    assert found.count("31 MiB") == 4 and "ui.perfetto.dev" in found and "411.0 MiB" in found
    remote = {"files": [{"node": 0, "rank": None, "bytes": 1, "where": "s3://bucket/a"}], "in_all": 100, "left_out": []}
    found = dom(page(snapshot(2, traces=remote)), tmp_path)
    assert "s3://bucket/a</td>" in found and "1 trace of 100." in found and "<a " not in found
    assert "Traces of torch" not in dom(page(snapshot(2)), tmp_path)


HOSTILE = "</script><script>document.title='owned'</script><img src=x onerror=alert(1)> & \u2028 ünï 'quote\" @@DATA@@"


def test_text_of_users_is_shown_and_never_run(tmp_path: Path) -> None:
    shown = snapshot(2, launcher="@gang", failure={"title": HOSTILE, "text": HOSTILE, "when": START + 3.0})
    shown["ranks"][0]["line"] = HOSTILE
    shown["curves"][HOSTILE] = shown["curves"].pop("loss")
    found = dom(page(shown), tmp_path)
    assert "<img" not in found
    assert "<title>owned" not in found
    assert found.count("&lt;/script&gt;") >= 4  # as title, text, last line and a curve's name


def test_a_browser_draws_each_part(tmp_path: Path) -> None:
    found = dom(page(snapshot(4)), tmp_path)
    for text in ("@torchrun on 4 nodes, 8 ranks", "running", "4 of 4", "Phases", "node 3", "CPU", "Network", "loss"):
        assert text in found, text
    assert "epoch 7, step 4003" in found
    assert found.count("<canvas") == 0
    assert "GPU memory" not in found  # nothing is known of it


def test_many_nodes_are_a_heat_map_and_a_failure_stands_first(tmp_path: Path) -> None:
    failure = {"title": "rank 3 was killed by SIGKILL", "text": "Traceback", "when": START + 440.0}
    shown = snapshot(64, state="failed", failure=failure)
    shown["nodes"][17]["at"]["failed"] = 440.0
    shown["ranks"][3] = {**shown["ranks"][3], "state": "killed by SIGKILL", "bad": True}
    found = dom(page(shown), tmp_path)
    assert found.count("<canvas") == 5
    assert found.index("rank 3 was killed by SIGKILL") < found.index("Phases")
    assert "node 17" in found and "10 of 64" in found


def test_a_live_page_takes_new_data(tmp_path: Path) -> None:
    new = json.dumps(snapshot(2, state="stalled", stall={"title": "no progress for 300 s", "text": "7 ranks in f"}))
    text = page(snapshot(2)).replace("</body>", f"<script>metaflow_card_update({new})</script></body>")
    found = dom(text, tmp_path)
    assert "no progress for 300 s" in found and "7 ranks in f" in found
