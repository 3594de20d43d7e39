"""What a process leaves behind when it is killed: no engine."""

import os
import signal
import subprocess
import sys
import time

HOLDER = """
import subprocess, sys, time
from mmgrpo.policy.orphans import watcher_of
engine = subprocess.Popen(["sleep", "600"])
ended = subprocess.Popen(["true"])
ended.wait()
watcher = watcher_of([ended.pid, engine.pid])
print(engine.pid, flush=True)
time.sleep(600)
"""


def alive(pid):
    """Whether the process runs: one that ended and that nobody has waited for doesn't."""
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True).stdout.strip()
    return bool(state) and not state.startswith("Z")


def test_engine_of_a_killed_process_ends():
    holder = subprocess.Popen([sys.executable, "-c", HOLDER], stdout=subprocess.PIPE, text=True)
    engine = int(holder.stdout.readline())
    try:
        assert alive(engine)
        holder.kill()
        holder.wait()
        deadline = time.monotonic() + 20
        while alive(engine) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert not alive(engine)
    finally:
        holder.kill()
        if alive(engine):
            os.kill(engine, signal.SIGKILL)
