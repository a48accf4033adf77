"""What the card shows of samples, phases, ranks and failures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from metaflow_extensions.gang.core.guard.card import snapshot
from metaflow_extensions.gang.core.guard.card.launched import HOSTFILE_BYTES, MOST, Launched

NOW = 1_700_000_000.0


def record(rank: int, **more: Any) -> dict[str, Any]:
    return {"rank": rank, "title": f"rank {rank}", "state": "S", "cpu_s": 1.5, "rss": 1000, "line": "x", **more}


def test_a_sample_becomes_percents_and_rates() -> None:
    sample = {"cpu": 3.0, "memory": 25, "limit": 100, "rx": 10, "tx": 5, "read": 1, "written": 2}
    assert snapshot.metrics(sample, 4) == {"cpu": 75.0, "memory": 25.0, "network": 15.0, "disk": 3.0}
    assert snapshot.metrics({"cpu": 9.0}, 4)["cpu"] == 100.0
    assert "memory" not in snapshot.metrics({"cpu": 1.0, "memory": 3, "limit": 0}, 1)


def test_gpus_are_averaged_and_unknown_values_left_out() -> None:
    gpus = [
        {"util": 100, "memory": 30, "total": 40, "power": 300.0},
        {"util": 50, "memory": 10, "total": 40, "power": None},
    ]
    found = snapshot.metrics({"gpus": gpus}, 1)
    assert (found["gpu"], found["gpu_memory"], found["gpu_power"]) == (75.0, 50.0, 300.0)
    assert "gpu" not in snapshot.metrics({"gpus": [{"util": None}, "nonsense"]}, 1)


def test_the_table_of_gpus_has_errors_first() -> None:
    gpu = {"util": 90, "memory": 30, "total": 40, "power": None, "ecc": 0, "xid": None}
    samples = {node: {"gpus": [gpu, {**gpu, "util": node}]} for node in range(50)}
    samples[49] = {"gpus": [{**gpu, "ecc": 2, "xid": 79}, "nonsense"]}
    rows = snapshot.gpus(samples)
    assert len(rows) == 99
    shown = snapshot.shown_gpus(rows)
    assert len(shown) == snapshot.MOST_GPUS
    assert shown[-1] == {
        "node": 49, "gpu": 0, "util": 90, "memory": 30, "total": 40, "power": None, "errors": "2 ECC, Xid 79"
    }  # fmt: skip
    assert [row["gpu"] for row in shown[:-1]].count(1) == 49  # the least busy
    assert snapshot.gpus({0: {"gpus": None}, 1: {}}) == []


def test_phases_count_from_the_first_start() -> None:
    phases = {0: (NOW, {"started": 0.0, "joined": 3.0}), 1: (NOW - 2.0, {"started": 0.0})}
    since = snapshot.first_start(phases, 5.0)
    assert since == NOW - 2.0
    first, second, third = snapshot.nodes({0: "a"}, 3, phases, since)
    assert first == {"index": 0, "host": "a", "at": {"started": 2.0, "joined": 5.0}}
    assert (second["at"], third["at"]) == ({"started": 0.0}, {})
    assert snapshot.first_start({}, 5.0) == 5.0


def test_the_rank_that_failed_is_marked_and_the_others_have_ended() -> None:
    report = {"report": "first line\n  | text", "failure": {"node": 1, "rank": 3, "time": NOW}}
    records = [(0, record(1)), (1, record(3, state="T")), (1, record(2, state="T", line_at=NOW - 4))]
    rows = snapshot.ranks(records, NOW, report, is_over=True)
    assert [(row["rank"], row["state"], row["bad"]) for row in rows] == [
        (1, "ended", False),
        (2, "ended", False),
        (3, "failed", True),
    ]
    running = snapshot.ranks(records, NOW, None, is_over=False)
    assert [(row["rank"], row["state"], row["silent"]) for row in running] == [
        (1, "running", None),
        (2, "stopped (SIGSTOP)", 4.0),
        (3, "stopped (SIGSTOP)", None),
    ]
    assert snapshot.failure(report) == {"title": "first line", "text": "text", "when": NOW}
    assert snapshot.failure(None) is None


def test_ranks_of_a_node_that_was_left_out_do_not_run() -> None:
    records = [(0, record(0, line_at=NOW - 1)), (1, record(1, line_at=NOW - 60)), (3, record(1, line_at=NOW - 2))]
    rows = snapshot.ranks(records, NOW, None, is_over=False, left_out={1})
    assert [(row["node"], row["state"], row["runs"], row["silent"]) for row in rows] == [
        (0, "running", True, 1.0),
        (1, "left out", False, None),
        (3, "running", True, 2.0),
    ]
    assert snapshot.ranks(records, NOW, None, is_over=True, left_out={1})[1]["state"] == "ended"


def test_of_many_ranks_the_silent_ones_are_kept() -> None:
    records = [(rank // 8, record(rank, line_at=NOW - rank)) for rank in range(1, 2000)]
    rows = snapshot.ranks(records, NOW, {"failure": {"node": 0, "rank": 5}}, is_over=False)
    assert len(rows) == snapshot.MOST_RANKS
    assert {5, 1999, 1998} <= {row["rank"] for row in rows} and 6 not in {row["rank"] for row in rows}


def test_what_was_started_has_no_secret() -> None:
    task = {"MY_API_KEY": "planted-secret", "HOME": "/home/me", "METAFLOW_X": "1"}
    launched = Launched(task)
    env = {**task, "MASTER_PORT": "1234", "WORLD_SIZE": "8", "HF_TOKEN": "other", "URL": "https://planted-secret@x"}
    launched.add({"processes": [{"title": "train.py", "argv": ["python", "--key=planted-secret"], "env": env}]})
    (found,) = launched.records
    assert found["environment"] == {"MASTER_PORT": "1234", "WORLD_SIZE": "8", "HF_TOKEN": "***", "URL": "https://***@x"}
    assert found["argv"] == ["python", "--key=***"]
    assert launched.ranks == 8


def test_a_hostfile_and_a_title_are_shown_without_secrets(tmp_path: Path) -> None:
    file = tmp_path / "hosts"
    file.write_text("gang0 slots=2\nplanted-secret slots=2\n")
    launched = Launched({"MY_API_KEY": "planted-secret"})
    named = (
        ["mpirun", "--hostfile", str(file)],
        ["python", f"--hostfile={file}"],
        ["/usr/bin/mpiexec", "-f", str(file)],
    )
    for argv in named:
        launched.add({"processes": [{"title": "solve --key planted-secret", "argv": argv, "env": {}}]})
        assert launched.records[-1]["hostfile"] == "gang0 slots=2\n*** slots=2\n"
        assert launched.records[-1]["what"] == "solve --key ***"
    for argv in (
        ["tail", "-f", str(file)],
        ["mpirun", "--hostfile", str(tmp_path / "gone")],
        ["mpirun", "--hostfile"],
        [],
    ):
        launched.add({"processes": [{"title": "x", "argv": argv, "env": {}}]})
        assert launched.records[-1]["hostfile"] is None
    file.write_text("gang0 slots=2\n" * 10_000)
    launched.add({"processes": [{"argv": ["mpirun", "--hostfile", str(file)], "env": {}}]})
    text = launched.records[-1]["hostfile"]
    assert len(text) <= HOSTFILE_BYTES + 4 and text.endswith("\ngang0 slots=2\n...")


def test_the_first_launch_and_the_latest_are_kept() -> None:
    launched = Launched({})
    for number in range(30):
        launched.add({"processes": [{"title": str(number), "argv": ["x"], "env": {}}]})
    launched.add({"processes": []})
    titles = [found["what"] for found in launched.records]
    assert len(titles) == MOST and titles[0] == "0" and titles[-1] == "29"
