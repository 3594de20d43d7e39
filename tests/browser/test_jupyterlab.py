"""Notebooks as a reader has them: JupyterLab in a real browser, Run All Cells, and no error anywhere.

The package `playwright` is not in the lock, as only this test needs it; `make test-browser` installs it. Screenshots
of what a reader sees lie in the figures folder afterwards.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import nbformat
import pytest
from record_factory import curve, outline, record

from mmgrpo import paths, records

playwright = pytest.importorskip("playwright.sync_api", reason="no playwright here: `make test-browser` installs it")
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(BROWSER is None, reason="no browser here: install chromium, and have it on PATH"),
]
TOKEN = "only-for-this-test"
PATIENCE = {"00_quickstart.ipynb": 3600, "08_report.ipynb": 600}  # seconds; the first one trains the real model
ERRORS = "[data-mime-type='application/vnd.jupyter.error'], [data-mime-type='application/vnd.jupyter.stderr']"
DONE = """errors => document.querySelector(errors) !== null
    || [...document.querySelectorAll('.jp-CodeCell .jp-InputArea-prompt')]
        .every(prompt => /^\\[\\d+\\]:$/.test(prompt.textContent.trim()))"""
SETTINGS = {  # render all cells, not only those in view; ask nothing about news
    "notebook-extension/tracker": '{"windowingMode": "none"}',
    "apputils-extension/notification": '{"fetchNews": "false"}',
}


@dataclass(frozen=True)
class Lab:
    """A running JupyterLab."""

    address: str
    log: Path


@pytest.fixture
def lab(tmp_path) -> Iterator[Lab]:
    """JupyterLab on a copy of the notebooks without outputs, with some made-up smoke records to report on.

    Each notebook has one of its own: a second page in the same JupyterLab would open the first notebook again.
    """
    _copy_notebooks(tmp_path / "notebooks")
    _write_records(tmp_path / "results")
    for plugin, settings in SETTINGS.items():
        file = tmp_path / "settings" / "@jupyterlab" / f"{plugin}.jupyterlab-settings"
        file.parent.mkdir(parents=True)
        file.write_text(settings)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    moved = {
        "MMGRPO_RESULTS_DIR": tmp_path / "results", "MMGRPO_FIGURES_DIR": tmp_path / "figures",
        "JUPYTERLAB_SETTINGS_DIR": tmp_path / "settings", "JUPYTERLAB_WORKSPACES_DIR": tmp_path / "workspaces",
        "JUPYTER_CONFIG_DIR": tmp_path / "config", "IPYTHONDIR": tmp_path / "ipython",
    }  # fmt: skip
    command = [
        sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", f"--ServerApp.root_dir={tmp_path / 'notebooks'}",
        f"--ServerApp.port={port}", "--ServerApp.port_retries=0", f"--IdentityProvider.token={TOKEN}",
    ]  # fmt: skip
    started = Lab(f"http://127.0.0.1:{port}", tmp_path / "lab.log")
    with started.log.open("w") as log:
        environment = os.environ | {name: str(value) for name, value in moved.items()}
        server = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
        try:
            _wait_for(started, server)
            yield started
        finally:
            server.terminate()
            server.wait(60)


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        arguments = ["--no-sandbox"] if os.geteuid() == 0 else []  # its sandbox doesn't start for root
        browser = driver.chromium.launch(executable_path=BROWSER, args=arguments)
        yield browser
        browser.close()


@pytest.mark.parametrize("notebook", PATIENCE)
def test_run_all_cells_ends_without_an_error(notebook, lab, browser):
    page = browser.new_page(viewport={"width": 1300, "height": 1000})
    page.goto(f"{lab.address}/lab/tree/{notebook}?token={TOKEN}")
    page.get_by_text("| Idle").wait_for(timeout=300_000)  # the status bar; what runs before that may be lost
    page.wait_for_timeout(2000)
    page.locator(".lm-MenuBar-itemLabel", has_text="Run").first.click()
    page.locator("[data-command='runmenu:run-all']").click()
    page.wait_for_function(DONE, arg=ERRORS, timeout=1000 * PATIENCE[notebook])
    _photograph(page, Path(notebook).stem)
    assert page.locator(ERRORS).all_inner_texts() == []
    assert page.locator(".jp-OutputArea-output table").count() > 0
    if notebook == "08_report.ipynb":
        assert page.locator(".jp-OutputArea-output img").count() >= 3  # scores, learning curves, cost
        assert page.get_by_text("No records of this profile yet").count() == 0
    page.close()


def _copy_notebooks(folder: Path) -> None:
    """Without outputs and run counts, so that those on the page are of this run."""
    folder.mkdir()
    for file in paths.NOTEBOOKS.glob("*.ipynb"):
        notebook = nbformat.read(file, as_version=4)
        for cell in notebook.cells:
            if cell.cell_type == "code":
                cell.outputs, cell.execution_count = [], None
        nbformat.write(notebook, folder / file.name)


def _write_records(folder: Path) -> None:
    smoke = {"profile": "smoke", "smoke": True}
    trained = {"curve": curve([0.1, 0.3, 0.2, 0.4]), "notes": {"rollouts": outline()}}
    made = [record(**smoke), record((1.0, 1.0), strategy="module_grpo", **trained, **smoke)]
    for each in made:
        records.write(each, folder / "smoke" / each.strategy / "record.json")


def _wait_for(lab: Lab, server: subprocess.Popen, seconds: float = 300) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        assert server.poll() is None, lab.log.read_text()
        try:
            urllib.request.urlopen(f"{lab.address}/api/status?token={TOKEN}", timeout=10).close()
            return
        except (urllib.error.URLError, OSError):
            time.sleep(0.5)
    pytest.fail(f"JupyterLab didn't answer in {seconds:.0f} s:\n{lab.log.read_text()}")


def _photograph(page, name: str) -> None:
    """A screenshot of the whole notebook, however long."""
    scroll = "document.querySelector('.jp-WindowedPanel-outer')"
    height = page.evaluate(f"{scroll}.scrollHeight")
    page.set_viewport_size({"width": 1300, "height": min(int(height) + 200, 12_000)})
    page.evaluate(f"{scroll}.scrollTop = 0")
    page.wait_for_timeout(1000)  # until it is drawn anew
    paths.figures().mkdir(parents=True, exist_ok=True)
    page.screenshot(path=paths.figures() / f"jupyterlab_{name}.png")
