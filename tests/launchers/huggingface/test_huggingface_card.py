"""``@huggingface_card``: cards that follow a Trainer, read back as Metaflow's client and a browser show them."""

from __future__ import annotations

import base64
import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from html import unescape
from pathlib import Path
from typing import Any

import metaflow  # noqa: F401 - before any import of the extension
import pytest
from support.flows import FlowRun, FlowRunner, flow_environment
from support.paths import ROOT
from support.requirements import require_packages, require_tool

from metaflow_extensions.gang.launchers.huggingface.card import POINTS, MetricsCard, VariablesCard, thinned
from metaflow_extensions.gang.launchers.huggingface.card_file import FILE_VARIABLE, CardFile, Training, parse

EXAMPLE = ROOT / "examples" / "huggingface" / "card.py"
LIMIT = 240.0  # seconds: tells "slow" from "hangs" on a busy machine
NOTHING = "Nothing yet"

FLOW = """
from metaflow import FlowSpec, card, current, gang, huggingface_card, step
import body


class Train(FlowSpec):
    @step
    def start(self):
        self.next(self.train)

    {decorators}
    @step
    def train(self):
        body.train(self)
        self.next(self.end)

    @step
    def end(self):
        pass


if __name__ == "__main__":
    Train()
"""

TELL = """
import json, os
from metaflow import current

def tell(*losses, path=None):
    "What the callback writes, by other means."
    content = {
        "metrics": {"loss": [{"step": step, "value": value} for step, value in enumerate(losses, 1)]},
        "model_config": {"hidden_size": 32},
        "trainer_configuration": {"seed": 42, "odd": "a|b `c` <d>"},
        "runtime_info": {},
        "training_state": {"epoch": 0.5, "global_step": len(losses), "max_steps": 7, "num_train_epochs": 1},
        "created_on": "2026-01-02T03:04:05.678",
    }
    path = path or os.environ["METAFLOW_HF_CARD_SAVE_FILE_NAME"]
    with open(path + ".tmp", "w") as file:
        json.dump(content, file)
    os.replace(path + ".tmp", path)
"""


@pytest.fixture
def trainer() -> None:
    """What a Trainer needs."""
    require_packages("torch", "transformers", "accelerate")


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A working folder for a flow. Metaflow writes cards to the ``.metaflow`` of that, and its client looks for them in
    the datastore, which in these tests is elsewhere: so they are made one."""
    datastore = Path(os.environ["METAFLOW_DATASTORE_SYSROOT_LOCAL"]) / ".metaflow"
    datastore.mkdir(exist_ok=True)
    folder = tmp_path / "place"
    folder.mkdir()
    (folder / ".metaflow").symlink_to(datastore)
    return folder


def html(task: Any, card: str) -> str:
    from metaflow.cards import get_cards

    (found,) = get_cards(task, id=card)
    return str(found.get())


def components(task: Any, card: str) -> list[dict[str, Any]]:
    """What the card consists of, in order."""
    match = re.search(r'window\.__MF_DATA__\["[^"]+"\] = "([^"]+)"', html(task, card))
    assert match is not None
    (page,) = json.loads(base64.b64decode(match[1]))["components"]
    return [part for section in page["contents"] for part in section["contents"]]


def shown(task: Any, card: str) -> str:
    """The card's text."""
    return "\n".join(part["source"] for part in components(task, card) if part["type"] == "markdown")


def curves(task: Any) -> dict[str, list[tuple[float, float | None]]]:
    return {
        part["spec"]["title"]: [(point["step"], point["value"]) for point in part["spec"]["data"]["values"]]
        for part in components(task, "training_metrics")
        if part["type"] == "vegaChart"
    }


def row(text: str, name: str) -> list[str]:
    """The cells after the one that says this, in a table."""
    (line,) = [line for line in text.splitlines() if line.startswith(f"| `{name}` |")]
    return [cell.strip().strip("`") for cell in re.split(r"(?<!\\)\|", line)[2:-1]]


# ---------------------------------------------------------------- a real Trainer


@pytest.mark.slow
@pytest.mark.usefixtures("trainer")
def test_the_example_shows_its_training(flow_run: FlowRunner, place: Path) -> None:
    run = flow_run(EXAMPLE, "--steps", "40", folder=place).ok(LIMIT)
    task = run.client()["train"].task
    shape = {name: len(points) for name, points in curves(task).items()}
    assert shape == {"loss": 40, "grad_norm": 40, "learning_rate": 40, "eval_loss": 8}
    assert [step for step, _ in curves(task)["loss"]] == list(range(1, 41))
    assert [value for _, value in curves(task)["eval_loss"]] == run.artifact("train", "losses")
    metrics = shown(task, "training_metrics")
    assert "Step 40 of 40, epoch " in metrics and f"{task.pathspec}, attempt 0" in metrics
    assert float(row(metrics, "eval_loss")[0]) == pytest.approx(run.artifact("train", "losses")[-1], rel=1e-5)
    variables = shown(task, "training_variables")
    assert row(variables, "max_steps") == ["40"] and row(variables, "hidden_size") == ["32"]
    assert float(row(variables, "Train runtime")[0]) > 0 and row(variables, "Processes") == ["1"]


@pytest.fixture
def real(trainer: None, tmp_path: Path) -> Iterator[Any]:
    """The callback's module, with the Trainer's own classes; the working folder is the test's."""
    from metaflow_extensions.gang.launchers.huggingface import callback

    before = os.getcwd()
    os.chdir(tmp_path)
    try:
        yield callback
    finally:
        os.chdir(before)


def state(**values: Any) -> Any:
    import transformers

    return transformers.TrainerState(**{"log_history": [], "global_step": 3, "max_steps": 9, **values})


def arguments() -> Any:
    import transformers

    return transformers.TrainingArguments(output_dir="unused", report_to="none", use_cpu=True, hub_token="hf_secret")


@pytest.mark.slow
def test_the_callback_writes_what_is_tracked_in_the_order_asked_for(real: Any, tmp_path: Path) -> None:
    told = real.MetaflowHuggingFaceCardCallback(["eval_loss", "loss"], save_file_name="card.json")
    told.on_train_begin(arguments(), state(log_history=[{"step": 2, "loss": 5.0, "epoch": 1.0}]), None)
    told.on_log(arguments(), state(), None, logs={"loss": 4.0, "grad_norm": 1.0, "eval_loss": math.nan})
    told.on_log(arguments(), state(), None, logs={"train_runtime": 2.0, "total_flos": 4e12})
    told.on_train_end(arguments(), state(), None)
    text = (tmp_path / "card.json").read_text()
    written = json.loads(text)
    assert list(written) == [
        "metrics",
        "model_config",
        "trainer_configuration",
        "runtime_info",
        "training_state",
        "created_on",
    ]
    assert list(written["metrics"]) == ["eval_loss", "loss"]
    assert written["metrics"]["loss"] == [{"step": 2, "value": 5.0}, {"step": 3, "value": 4.0}], "it resumed"
    assert written["runtime_info"]["TFLOPs"] == 2.0
    assert "hf_secret" not in text
    training = parse(text)
    assert training is not None and training.metrics["eval_loss"] == [(3, None)]
    assert os.listdir(tmp_path) == ["card.json"], "no unfinished file is left"


@pytest.mark.slow
def test_what_is_tracked_is_a_curve_of_the_gang_s_card_too(
    real: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("METAFLOW_GANG_LOG_FILE", str(tmp_path / "gang-log"))
    monkeypatch.setenv("RANK", "0")
    told = real.MetaflowHuggingFaceCardCallback(["loss"])
    told.on_train_begin(arguments(), state(log_history=[{"step": 2, "loss": 5.0}]), None)
    told.on_log(arguments(), state(), None, logs={"loss": 4.0, "grad_norm": 1.0})
    told.on_log(arguments(), state(), None, logs={"train_runtime": 2.0})
    lines = [json.loads(line) for line in (tmp_path / "gang-log").read_text().splitlines()]
    assert lines == [{"rank": "0", "step": 3.0, "values": {"loss": 4.0}}]


@pytest.mark.slow
def test_only_rank_0_writes_and_a_second_training_starts_anew(real: Any, tmp_path: Path) -> None:
    told = real.MetaflowHuggingFaceCardCallback()
    assert told.tracked_metrics == ["loss", "grad_norm"]
    other = state(is_world_process_zero=False)
    told.on_train_begin(arguments(), other, None)
    told.on_log(arguments(), other, None, logs={"loss": 1.0})
    told.on_train_end(arguments(), other, None)
    assert os.listdir(tmp_path) == []
    for loss in (2.0, 1.0):
        told.on_train_begin(arguments(), state(), None)
        told.on_log(arguments(), state(), None, logs={"loss": loss})
        told.on_train_end(arguments(), state(), None)
    written = json.loads((tmp_path / "huggingface_model_card.json").read_text())
    assert written["metrics"] == {"loss": [{"step": 3, "value": 1.0}]}


def test_training_goes_on_where_the_file_cannot_be_written(
    real: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    told = real.MetaflowHuggingFaceCardCallback(save_file_name=tmp_path / "no" / "folder.json")
    told.on_train_begin(arguments(), state(), None)
    told.on_train_end(arguments(), state(), None)
    assert capfd.readouterr().err.count("cannot be written") == 1


def test_one_name_is_no_list_of_names(real: Any) -> None:
    with pytest.raises(TypeError, match="is a list of names"):
        real.MetaflowHuggingFaceCardCallback("loss")


def python(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], env=flow_environment(), capture_output=True, text=True, timeout=LIMIT
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_name_that_the_old_examples_import_is_loaded_when_it_is_used() -> None:
    out = python(
        "import sys, metaflow\n"
        "from metaflow import huggingface_card_callback\n"
        "assert 'transformers' not in sys.modules\n"
        "sys.modules['transformers'] = None\n"
        "try:\n"
        "    from metaflow.huggingface_card_callback import MetaflowHuggingFaceCardCallback\n"
        "except ImportError as error:\n"
        "    print(error)\n"
        "try:\n"
        "    huggingface_card_callback.Other\n"
        "except AttributeError as error:\n"
        "    print(error)\n"
    )
    assert "needs" not in out and "no package transformers" in out and "pip install transformers" in out
    assert "metaflow.huggingface_card_callback has no 'Other'" in out


@pytest.mark.slow
@pytest.mark.usefixtures("trainer")
def test_both_ways_to_import_it_give_the_callback() -> None:
    out = python(
        "from metaflow import huggingface_card_callback as module\n"
        "from metaflow.huggingface_card_callback import MetaflowHuggingFaceCardCallback as name\n"
        "import transformers\n"
        "print(module.MetaflowHuggingFaceCardCallback is name, issubclass(name, transformers.TrainerCallback))\n"
    )
    assert out.split() == ["True", "True"]


# ---------------------------------------------------------------- cards of a step


def train(flow_run: FlowRunner, body: str, folder: Path, **more: Any) -> FlowRun:
    decorators = more.pop("decorators", "@huggingface_card")
    files = {"body.py": TELL + body, **more.pop("files", {})}
    return flow_run(FLOW.replace("{decorators}", decorators), folder=folder, files=files, **more)


LIVE = """
import pathlib, time

def stored(folder, what):
    "Waits until this is in what is stored of the metrics while the step runs."
    root = pathlib.Path(".metaflow", "mf.cards", "Train", "runs", current.run_id)
    deadline = time.monotonic() + 200
    while not any(what in file.read_text() for file in root.rglob(folder + "/*training_metrics*")):
        assert time.monotonic() < deadline, f"the card never had {what}"
        time.sleep(0.1)

def train(flow):
    tell(0.75)
    stored("runtime", "0.75")
    tell(0.75, 0.625)
    stored("runtime", "0.625")
    print("seen while it ran")
    tell(0.75, 0.625, float("nan"), 0.375)
    raise ValueError("the data is bad")
"""


@pytest.mark.slow
def test_cards_are_live_and_a_failed_step_has_its_last_state(flow_run: FlowRunner, place: Path) -> None:
    run = train(flow_run, LIVE, place)
    output = run.fails(LIMIT)
    assert "ValueError: the data is bad" in output and "seen while it ran" in output
    task = run.client()["train"].task
    assert curves(task) == {"loss": [(1, 0.75), (2, 0.625), (3, None), (4, 0.375)]}
    metrics = shown(task, "training_metrics")
    assert "Step 4 of 7, epoch 0.50 of 1, reported on `2026-01-02 03:04:05`" in metrics
    assert row(metrics, "loss") == ["0.375", "4", "0.375", "0.75"]
    variables = shown(task, "training_variables")
    assert row(variables, "seed") == ["42"] and row(variables, "hidden_size") == ["32"]
    assert row(variables, "odd") == ["a\\|b 'c' <d>"], "as code, so that it is no HTML"
    assert run.left(5) == []


GARBAGE = """
import time

def train(flow):
    path = os.environ["METAFLOW_HF_CARD_SAVE_FILE_NAME"]
    assert os.path.isabs(path)
    for text in ("", '{"metrics": {"loss": [', "[1]", '{"metrics": 3}', "\\0\\xff"):
        with open(path, "w") as file:
            file.write(text)
        time.sleep(0.1)
"""


@pytest.mark.slow
def test_what_is_no_training_is_nothing_yet(flow_run: FlowRunner, place: Path) -> None:
    # The file of an earlier training lies in the working folder.
    old = json.dumps({"metrics": {"loss": [{"step": 1, "value": 1.0}]}})
    run = train(flow_run, GARBAGE, place, files={"huggingface_model_card.json": old}).ok(LIMIT)
    task = run.client()["train"].task
    for card in ("training_metrics", "training_variables"):
        assert NOTHING in shown(task, card), card
    assert curves(task) == {}
    assert "no longer updated" not in run.output


OWN = """
def train(flow):
    from metaflow.cards import Markdown

    current.card["mine"].append(Markdown("my own words"))
    current.card.append(Markdown("and more"))
    tell(1.0, path="huggingface_model_card.json")
"""


@pytest.mark.slow
def test_cards_of_ones_own_stay_as_they_are(flow_run: FlowRunner, place: Path) -> None:
    decorators = '@card(type="blank", id="mine")\n    @huggingface_card\n    @card(type="blank")'
    run = train(flow_run, OWN, place, decorators=decorators).ok(LIMIT)
    task = run.client()["train"].task
    assert shown(task, "mine").strip() == "my own words"
    assert curves(task) == {"loss": [(1, 1.0)]}, "the old file name in the working folder is followed too"
    assert "WARNING" not in run.output


GIVEN = """
def train(flow):
    assert os.environ["METAFLOW_HF_CARD_SAVE_FILE_NAME"] == os.path.abspath("mine.json")
    os.makedirs("elsewhere")
    os.chdir("elsewhere")
    tell(0.5)
    os.chdir("..")
"""


BROKEN = """
def train(flow):
    assert "METAFLOW_HF_CARD_SAVE_FILE_NAME" not in os.environ
"""


@pytest.mark.slow
def test_a_step_whose_cards_cannot_be_fed_runs(flow_run: FlowRunner, place: Path) -> None:
    # Imported by the flow's file, and so in the task: no folder can be made for the file.
    full = """
    import tempfile

    def full(*_, **__):
        raise OSError(28, "no space")

    tempfile.TemporaryDirectory = full
    """
    run = train(flow_run, "import full\n" + BROKEN, place, files={"full.py": full}).ok(LIMIT)
    assert "There are no cards of the training: OSError: [Errno 28] no space" in run.output


@pytest.mark.slow
def test_a_path_of_ones_own_is_kept(flow_run: FlowRunner, place: Path) -> None:
    run = train(flow_run, GIVEN, place, env={FILE_VARIABLE: "mine.json"}).ok(LIMIT)
    assert curves(run.client()["train"].task) == {"loss": [(1, 0.5)]}
    assert (run.folder / "mine.json").exists()


GANG_FLOW = """
from metaflow import FlowSpec, current, gang, huggingface_card, step
import body


class Train(FlowSpec):
    @step
    def start(self):
        self.next(self.train, num_parallel=2)

    @huggingface_card
    @gang
    @step
    def train(self):
        if current.gang.is_control:
            body.tell(0.5, path="huggingface_model_card.json")
            body.tell(0.5, 0.25)
        current.gang.barrier()
        self.next(self.join)

    @step
    def join(self, inputs):
        self.next(self.end)

    @step
    def end(self):
        pass


if __name__ == "__main__":
    Train()
"""


@pytest.mark.slow
def test_of_a_gang_the_node_of_rank_0_shows_the_training(flow_run: FlowRunner, place: Path) -> None:
    run = flow_run(GANG_FLOW, folder=place, files={"body.py": TELL}).ok(LIMIT)
    tasks = run.node_tasks("train")
    assert curves(tasks[0])["loss"]
    assert curves(tasks[1]) == {} and NOTHING in shown(tasks[1], "training_metrics")


# ---------------------------------------------------------------- parts


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "3", "null", '{"metrics": []}', "[" * 100_000, b"\xff\xfe"], ids=lambda text: str(text[:12])
)
def test_a_file_that_makes_no_sense_says_nothing(text: str | bytes) -> None:
    assert parse(text) is None


def test_what_does_not_fit_is_left_out() -> None:
    points = [
        {"step": 1, "value": 2},
        {"step": None, "value": 1},
        7,
        {"step": 2, "value": "x"},
        {"step": 3, "value": 1e999},
    ]
    assert parse(json.dumps({"metrics": {"loss": points, "none": [], "odd": 3}, "model_config": 5})) == Training(
        metrics={"loss": [(1, 2), (3, None)]}
    )


@pytest.mark.parametrize("number", [1, POINTS, POINTS + 1, 12_345])
def test_long_curves_are_thinned_between_their_ends(number: int) -> None:
    points: list[tuple[float, float | None]] = [(step, 0.5) for step in range(number)]
    few = thinned(points)
    assert len(few) == min(number, POINTS) and few[0] == points[0] and few[-1] == points[-1]
    assert few == sorted(set(few))


def test_cards_take_any_training() -> None:
    for card in (MetricsCard("Flow/1/train/2"), VariablesCard("Flow/1/train/2")):
        for training in (Training(), Training(metrics={"a/b": [(1, None)]}, training_state={"epoch": "?"})):
            card.update(training)
        json.dumps([part.render() for part in card.components], allow_nan=False)


def test_a_file_is_read_when_it_changes(tmp_path: Path) -> None:
    path = tmp_path / "card.json"
    text = json.dumps({"metrics": {"loss": [{"step": 1, "value": 1.0}]}})
    path.write_text(text)
    with CardFile({FILE_VARIABLE: str(path)}) as file:
        assert file.changed() is None, "it was there before"
        path.write_text(text + " ")
        training = file.changed()
        assert training is not None and training.metrics == {"loss": [(1, 1.0)]}
        assert file.changed() is None
        path.unlink()
        assert file.changed() is None
    with CardFile({}) as control, CardFile({FILE_VARIABLE: control.path}) as node:
        assert node.path != control.path, "control's own path, inherited"
        folders = [Path(own.path).parent for own in (control, node)]
        assert all(folder.is_dir() for folder in folders)
    assert not any(folder.exists() for folder in folders)


# ---------------------------------------------------------------- in a browser


def browse(page: Path, profile: Path, picture: Path, size: str) -> str:
    """The page's content once its scripts have run; a picture of it is saved."""
    done = subprocess.run(
        [
            require_tool("chromium", "chromium"),
            "--headless",
            "--no-sandbox",  # root's Chromium does not start otherwise
            "--disable-gpu",
            "--hide-scrollbars",
            f"--user-data-dir={profile}",
            f"--window-size={size}",
            # The page's clock runs ahead as fast as its scripts allow, and the picture is taken at this time of it.
            "--virtual-time-budget=20000",
            f"--screenshot={picture}",
            "--dump-dom",
            page.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=LIMIT,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


UNDER_TORCHRUN = """
import importlib.util, sys
from metaflow import FlowSpec, current, huggingface_card, step, torchrun


def learn(path):
    spec = importlib.util.spec_from_file_location("example", path)
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    return example.train(10)


class Train(FlowSpec):
    @step
    def start(self):
        self.next(self.train, num_parallel=2)

    @huggingface_card
    @torchrun(nproc_per_node=2)
    @step
    def train(self):
        current.torch.run(entrypoint=learn, entrypoint_args={"path": "EXAMPLE"})
        self.next(self.join)

    @step
    def join(self, inputs):
        self.next(self.end)

    @step
    def end(self):
        pass


if __name__ == "__main__":
    Train()
"""


@pytest.mark.big
@pytest.mark.usefixtures("trainer")
def test_four_ranks_on_two_nodes_have_one_training(flow_run: FlowRunner, place: Path) -> None:
    run = flow_run(UNDER_TORCHRUN.replace("EXAMPLE", str(EXAMPLE)), folder=place).ok(LIMIT)
    tasks = run.node_tasks("train")
    assert [step for step, _ in curves(tasks[0])["loss"]] == list(range(1, 11))
    assert row(shown(tasks[0], "training_variables"), "Processes") == ["4"]
    assert curves(tasks[1]) == {}


@pytest.mark.big
@pytest.mark.usefixtures("trainer")
def test_a_browser_draws_the_curves(flow_run: FlowRunner, place: Path, tmp_path: Path) -> None:
    """With GANG_SCREENSHOTS=docs/images in the environment, the documentation's picture is made anew."""
    run = flow_run(EXAMPLE, folder=place).ok(LIMIT)
    page, picture = tmp_path / "card.html", tmp_path / "huggingface_card.png"
    page.write_text(html(run.client()["train"].task, "training_metrics"))
    content = browse(page, tmp_path / "profile", picture, "1000,970")
    drawn = re.findall(r'aria-roledescription="line mark" d="([^"]+)"', content)
    shape = [len(re.findall(r"[ML]", path)) for path in drawn]
    # The first evaluation comes later than the first loss, and before or after the card's first look at the training.
    assert shape in ([40, 8, 40, 40], [40, 40, 40, 8])
    heights = [float(y) for _, y in re.findall(r"[ML]([-\d.]+),([-\d.]+)", drawn[0])]
    assert heights[-1] - heights[0] > 100, "the loss falls: pixels count from the top"
    assert "Step 400 of 400" in unescape(content)
    assert picture.read_bytes().startswith(b"\x89PNG")
    folder = os.environ.get("GANG_SCREENSHOTS")
    if folder:
        (Path(folder) / picture.name).write_bytes(picture.read_bytes())
