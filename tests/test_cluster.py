"""Cells on a Ray cluster: a node that dies costs time, and nothing else."""

import socket
import threading
import time

import cheap_cell
import pytest

from mmgrpo import cells, grid, profiles, records
from mmgrpo.cluster import Cluster, resources
from mmgrpo.errors import UserError

NODES = 3


def installed():
    return pytest.importorskip("ray", reason="Ray is not installed (the extra `cluster`): cells are not run there.")


@pytest.fixture
def todo(tmp_path, monkeypatch):
    monkeypatch.setenv("MMGRPO_RESULTS_DIR", str(tmp_path / "results"))
    changes = {"strategies": ("vanilla", "prompt_optimization", "composition"), "seeds": (0, 1, 2)}
    return cells.expand(profiles.load("smoke").model_copy(update=changes), ["banking77"])


@pytest.fixture
def nodes():
    """A cluster on this machine: a head and two workers of one core each."""
    ray = installed()
    from ray.cluster_utils import Cluster as Nodes

    nodes = Nodes(initialize_head=True, head_node_args={"num_cpus": 1})
    nodes.workers = [nodes.add_node(num_cpus=1) for _ in range(NODES - 1)]
    nodes.wait_for_nodes()
    yield nodes
    ray.shutdown()
    nodes.shutdown()


def starts(cell):
    file = cell.folder / "starts.txt"
    return len(file.read_text().splitlines()) if file.exists() else 0


def one_core(cell):
    return {"num_cpus": 1}


def test_cells_of_a_node_that_dies_run_again_elsewhere(todo, nodes):
    def kill_one_when_all_are_busy():
        while sum(starts(cell) > 0 for cell in todo) < NODES:
            time.sleep(0.05)
        nodes.remove_node(nodes.workers[0], allow_graceful=False)

    killer = threading.Thread(target=kill_one_when_all_are_busy, daemon=True)
    killer.start()
    place = Cluster(nodes.address, lambda cell: cheap_cell.command(cell, seconds=2), one_core)
    assert grid.run(todo, place) == []
    killer.join(timeout=30)
    assert not killer.is_alive()
    assert len(todo) < sum(map(starts, todo)) <= len(todo) + 2  # what ran on the dead node ran twice
    found = records.read_all(todo[0].folder.parents[3])
    assert sorted((one.strategy, one.seed) for one in found) == sorted((cell.strategy, cell.seed) for cell in todo)


def test_failure_says_what_it_says_here_and_a_cell_that_fits_nowhere_says_so(todo, nodes):
    first, second = todo[0], todo[3]
    place = Cluster(
        nodes.address,
        lambda cell: cheap_cell.command(cell, how="fails"),
        lambda cell: {"num_cpus": 1, "num_gpus": 2 * (cell == second)},
    )
    failed = {failure.cell: failure.reason for failure in grid.run([first, second], place)}
    assert failed[first].startswith("ValueError: no luck (partial notebook and error.txt in ")
    assert failed[second] == "no node of the Ray cluster has {'num_cpus': 1, 'num_gpus': 2}"


def test_a_model_gets_its_gpus_and_cores():
    assert resources(cells.Cell("paper", "banking77", "Qwen/Qwen3-8B", "module_grpo", 0)) == {
        "num_gpus": 1,
        "num_cpus": 4,
    }
    assert resources(cells.Cell("laptop", "banking77", "smollm2-135m", "vanilla", 0)) == {"num_gpus": 0, "num_cpus": 2}


def test_address_where_nothing_answers_is_one_sentence():
    installed()
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    started = time.monotonic()
    with pytest.raises(UserError, match=f"The Ray cluster at 127.0.0.1:{port} does not answer .*leave --ray out"):
        Cluster(f"127.0.0.1:{port}")
    assert time.monotonic() - started < 10


@pytest.mark.parametrize("address", ["somewhere", "host:port", "ray://"])
def test_what_is_no_address_is_one_sentence(address):
    installed()
    with pytest.raises(
        UserError, match="is no address of a Ray cluster: allowed are host:port, ray://host:port, local"
    ):
        Cluster(address)
