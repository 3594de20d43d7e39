"""Runs cells on a Ray cluster: a task each, with the GPUs and cores of its model.

The project and its results folder must be seen by all nodes under the same path, and keys stand in their own
environments. When a node dies, Ray runs its cells
again elsewhere; the record is written by one rename, so that none is there twice. Needs the extra `cluster`.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from concurrent.futures import Future
from typing import Self
from urllib.parse import urlsplit

from mmgrpo.cells import Cell
from mmgrpo.errors import UserError
from mmgrpo.local import notebook_command, run_process
from mmgrpo.plan import MODELS

ANSWER_SECONDS = 5
CPUS = 2  # of a cell without a GPU
CPUS_PER_GPU = 4


def resources(cell: Cell) -> dict[str, int]:
    """What a cell's task asks of its node."""
    gpus = MODELS[cell.model].gpus
    return {"num_gpus": gpus, "num_cpus": gpus * CPUS_PER_GPU or CPUS}


class Cluster:
    """A Ray cluster at `address` (`host:port` or `ray://host:port`), or a new one of this machine (`local`)."""

    def __init__(
        self,
        address: str,
        command: Callable[[Cell], list[str]] = notebook_command,
        needs: Callable[[Cell], dict[str, int]] = resources,
    ):
        try:
            import ray
        except ImportError:
            raise UserError(
                "Ray is not installed: .venv/bin/pip install -e '.[cluster]', or leave --ray out."
            ) from None
        if address != "local":
            _knock(address)
        self.address, self.command, self.needs = address, command, needs
        self._ray = ray

    def __enter__(self) -> Self:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        try:
            self._ray.init(address=self.address, log_to_driver=False)
        except (ConnectionError, RuntimeError, ValueError) as error:
            first = str(error).strip().splitlines()[0]
            raise UserError(f"The Ray cluster at {self.address} can't be joined: {first}") from None
        self._task = self._ray.remote(run_process)
        self.slots = max(1, int(self._ray.cluster_resources().get("CPU", 1)) // CPUS)
        return self

    def __exit__(self, *_: object) -> None:
        self._ray.shutdown()

    def submit(self, cell: Cell) -> Future[None]:
        """Run the cell; the future raises UserError with the reason where it fails."""
        wanted = self.needs(cell)
        if not self._fits(wanted):  # Ray would wait for such a node without end
            refused: Future[None] = Future()
            refused.set_exception(UserError(f"no node of the Ray cluster has {wanted}"))
            return refused
        task = self._task.options(max_retries=3, name=cell.name, **wanted)
        ours = {name: value for name, value in os.environ.items() if name.startswith("MMGRPO_")}
        # Ray shows GPUs also to tasks that asked for none; they are those of other cells.
        environment = ours if wanted.get("num_gpus") else ours | {"CUDA_VISIBLE_DEVICES": ""}
        outcome: Future[None] = Future()
        reference = task.remote(self.command(cell), cell.folder, environment)
        reference.future().add_done_callback(lambda done: _pass_on(done.exception(), outcome))
        return outcome

    def _fits(self, wanted: dict[str, int]) -> bool:
        nodes = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        return any(
            node.get("CPU", 0) >= wanted.get("num_cpus", 0) and node.get("GPU", 0) >= wanted.get("num_gpus", 0)
            for node in nodes
        )


def _pass_on(error: BaseException | None, outcome: Future[None]) -> None:
    """End `outcome` as a task ended. Ray wraps what was raised in an error whose text is a traceback."""
    if error is None:
        outcome.set_result(None)
    else:
        outcome.set_exception(getattr(error, "cause", None) or error)


def _knock(address: str) -> None:
    """Raise UserError unless something answers at the address; Ray itself would wait for half a minute or more."""
    place = urlsplit(address if "://" in address else f"ray://{address}")
    try:
        port = place.port
        if place.hostname is None or port is None:
            raise ValueError
        socket.create_connection((place.hostname, port), timeout=ANSWER_SECONDS).close()
    except ValueError:
        raise UserError(
            f"{address!r} is no address of a Ray cluster: allowed are host:port, ray://host:port, local."
        ) from None
    except OSError as error:
        raise UserError(
            f"The Ray cluster at {address} does not answer ({error}): start it, or leave --ray out."
        ) from None
