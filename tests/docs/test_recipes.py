"""Each recipe does what its page says, and its page shows lines of it."""

from __future__ import annotations

import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from support.examples import EXAMPLES, LIMIT, printed, training  # noqa: F401 - a fixture
from support.flows import FlowRunner, flow_environment
from support.paths import ROOT
from support.requirements import require_packages

RECIPES = EXAMPLES / "recipes"
PAGES = sorted(path for path in (ROOT / "docs" / "recipes").glob("*.md") if path.name != "index.md")


@pytest.mark.big
@pytest.mark.usefixtures("training")
def test_a_seed_gives_the_same_weights_twice(flow_run: FlowRunner) -> None:
    run = flow_run(RECIPES / "reproducible.py").ok(LIMIT)
    assert "the same weights twice: True" in run.output
    tasks = run.node_tasks("train")
    assert len(tasks) == 2


@pytest.mark.slow
@pytest.mark.usefixtures("training")
def test_ranks_with_unequal_data_train_with_less_memory_and_fewer_bytes(flow_run: FlowRunner) -> None:
    run = flow_run(RECIPES / "techniques.py").ok(LIMIT)
    results = run.artifact("join", "results")
    assert [result["batches"] for result in results] == [40, 60]
    assert results[1]["loss"] < 0.3


@pytest.mark.big
@pytest.mark.usefixtures("training")
def test_divided_weights_are_saved_by_four_ranks_and_read_by_two(flow_run: FlowRunner) -> None:
    run = flow_run(RECIPES / "fsdp.py").ok(LIMIT)
    first, second = run.artifact("join", "first"), run.artifact("join", "second")
    assert (len(first), len(second)) == (4, 2)
    assert {done for done, _ in first} == {50} and {done for done, _ in second} == {100}
    assert second[0][1] < first[0][1]


@pytest.mark.big
@pytest.mark.usefixtures("training")
def test_a_small_gpt_says_its_sentence(flow_run: FlowRunner) -> None:
    run = flow_run(RECIPES / "gpt.py").ok(LIMIT)
    assert run.artifact("join", "said").startswith("a gang is the nodes of one step")


@pytest.mark.big
@pytest.mark.usefixtures("training")
def test_trainer_and_accelerate_find_all_ranks(flow_run: FlowRunner) -> None:
    require_packages("transformers", "accelerate")
    run = flow_run(RECIPES / "hugging_face.py").ok(LIMIT)
    for name in ("trainer", "accelerate"):
        results = run.artifact("join", name)
        assert [ranks for ranks, _ in results] == [2, 2] and all(loss < 1 for _, loss in results)


@pytest.mark.slow
def test_a_retry_goes_on_from_what_a_rank_has_saved(flow_run: FlowRunner) -> None:
    require_packages("torch", "metaflow_extensions.obcheckpoint")
    run = flow_run(RECIPES / "checkpoint.py").ok(LIMIT)
    assert "rank 1 fails on purpose in epoch 2" in run.output
    assert run.artifact("join", "epochs") == [2, 3]
    assert run.artifact("join", "total") == sum(epoch * 20 + 1 for epoch in range(4))


@pytest.mark.big
def test_a_run_goes_on_from_what_the_run_before_it_has_saved(flow_run: FlowRunner) -> None:
    require_packages("torch", "deepspeed", "metaflow_extensions.obcheckpoint")
    file = RECIPES / "checkpoint_runs.py"
    ranks = (RECIPES / "checkpoint_rank.py").name
    for begin, saved_by in ((0, "nobody"), (2, "the body")):
        run = flow_run(file).ok(2 * LIMIT)
        began = [{"epoch": begin, "saved_by": saved_by}] * 2
        assert run.artifact("compare", "began") == [began, began]
        for epoch in (begin, begin + 1):
            assert run.output.count(f"epoch {epoch} of 2 ranks is saved") == 2, f"{ranks}, by both launchers"


@pytest.mark.slow
def test_a_retry_goes_on_from_what_a_rank_of_mpirun_has_saved(flow_run: FlowRunner) -> None:
    require_packages("mpi4py", "metaflow_extensions.obcheckpoint")
    file, ranks = RECIPES / "checkpoint_mpi.py", (RECIPES / "checkpoint_mpi_rank.py").name
    run = flow_run(file).ok(LIMIT)
    assert "rank 1 fails on purpose in epoch 2" in run.output
    assert run.artifact("join", "begin") == {"epoch": 2, "saved_by": "a rank"}
    assert run.artifact("join", "saved")["name"] == "end"
    for epoch in range(4):
        assert run.output.count(f"epoch {epoch} of 2 ranks is saved") >= 1, ranks


@pytest.mark.slow
@pytest.mark.timeout(3 * LIMIT)
def test_ray_trains_a_network_and_trees_on_two_nodes(flow_run: FlowRunner) -> None:
    require_packages("ray", "torch", "xgboost")
    run = flow_run(RECIPES / "ray_train.py").ok(2 * LIMIT)
    for name in ("of_network", "of_trees"):
        metrics = run.artifact("join", name)
        assert metrics["workers"] == 2 and metrics["accuracy"] > 0.8


@pytest.mark.slow
def test_lightning_finds_the_ranks_of_the_gang(flow_run: FlowRunner) -> None:
    require_packages("torch", "lightning")
    run = flow_run(RECIPES / "lightning_trainer.py").ok(LIMIT)
    # 512 rows in batches of 16, divided among 4 ranks, 4 times.
    assert run.artifact("join", "found") == [(4, rank, 32) for rank in range(4)]


@pytest.mark.slow
def test_the_cells_of_a_notebook_run_a_gang(tmp_path: Path) -> None:
    require_packages("torch", "nbclient", "ipykernel")
    import nbformat
    from nbclient import NotebookClient

    cells = (RECIPES / "notebook.py").read_text().split("# %%")
    assert cells[1].startswith(" [markdown]")
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell.strip()) for cell in cells[2:]])
    client = NotebookClient(notebook, timeout=int(LIMIT), resources={"metadata": {"path": str(tmp_path)}})
    client.execute(env=flow_environment())
    (said,) = (output["text"] for output in notebook.cells[-1].outputs)
    assert said == "the ranks said: ['rank 0 of 2 at 0.5', 'rank 1 of 2 at 0.5']\n"


@pytest.mark.slow
def test_a_restart_goes_on_from_each_nodes_own_checkpoint_and_a_retry_from_the_stored_one(flow_run: FlowRunner) -> None:
    require_packages("torch", "metaflow_extensions.obcheckpoint")
    recipe = RECIPES / "local_checkpoints.py"
    undisturbed = flow_run(recipe, "--undisturbed", "1").ok(LIMIT)
    assert set(begun(undisturbed.output)) == {"0"}
    run = flow_run(recipe).ok(LIMIT)
    assert begun(run.output) == ["0", "0", "10", "10", "16", "16"]
    assert re.search(r"restart 1 of 1: rank 1 on node 1\b.* was killed by SIGKILL", run.output)
    assert run.artifact("join", "losses") == undisturbed.artifact("join", "losses")
    assert len(run.artifact("join", "losses")) == 24


def begun(output: str) -> list[str]:
    """The steps at which ranks have begun, in the order of the log; its reports repeat some lines, indented."""
    return re.findall(r"\] rank \d begins at step (\d+)", output)


@pytest.mark.slow
@pytest.mark.usefixtures("training")
def test_a_mutator_adds_the_launcher_that_the_configuration_names(flow_run: FlowRunner) -> None:
    run = flow_run(RECIPES / "configured.py").ok(LIMIT)
    assert run.artifact("join", "ranks") == [0, 1, 2, 3]


@pytest.mark.slow
def test_a_script_runs_a_gang_for_each_value_of_a_foreach(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(RECIPES / "from_a_script.py")],
        cwd=tmp_path,
        env=flow_environment(),
        capture_output=True,
        text=True,
        timeout=LIMIT,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    # foreach.py prints the line too, which Runner passes on.
    assert done.stdout.splitlines()[-1] == "gangs: [[(0.01, 0), (0.01, 1)], [(0.1, 0), (0.1, 1)]]"


@pytest.mark.slow
def test_the_stacks_of_ranks_that_hang_are_kept(flow_run: FlowRunner) -> None:
    require_packages("torch", "metaflow_extensions.obpyspy")
    run = flow_run(RECIPES / "hang.py")
    assert "Step train timed out after 0 hours, 0 minutes, 25 seconds" in run.fails(LIMIT)
    said = subprocess.run(
        [sys.executable, str(RECIPES / "hang_stacks.py"), run.run_id],
        env=flow_environment(),
        capture_output=True,
        text=True,
        check=True,
        timeout=LIMIT,
    ).stdout
    assert re.fullmatch(r"rank 0 in barrier <.*\nrank 1 in load_shard < train <.*\n", said), said


def examples_of(page: Path) -> list[Path]:
    return [
        (page.parent / link).resolve()
        for link in re.findall(r"\]\((\.\./\.\./examples/[\w/.]+\.py)\)", page.read_text())
    ]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_shows_lines_of_its_example(page: Path) -> None:
    sources = [textwrap.dedent(file.read_text()) for file in examples_of(page)]
    assert sources, "the page names no example"
    for block in re.findall(r"^```python\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL):
        shown = [line.strip() for line in block.splitlines() if line.strip()]
        assert any(
            "\n".join(shown) in "\n".join(line.strip() for line in source.splitlines() if line.strip())
            for source in sources
        ), f"no example has, one after the other:\n{block}"


def test_no_recipe_is_left_out() -> None:
    tested = set(re.findall(r'RECIPES / "(\w+\.py)"', Path(__file__).read_text())) | {"foreach.py"}  # the script's
    on_argo = (ROOT / "tests" / "backends" / "test_argo.py").read_text()
    tested |= set(re.findall(r'"recipes" / "(\w+\.py)"', on_argo)) | {"deployed.py"}  # the script's
    assert tested == {file.name for file in RECIPES.glob("*.py")}
    shown = {file for page in PAGES for file in examples_of(page)}
    assert shown >= set(RECIPES.glob("*.py"))
