"""Ends an engine's processes when ours is gone, however it went: killed, it would leave them with the GPU's memory."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence

WATCHER = """
import os, signal, sys
held = []
for pid in sys.argv[1:]:
    try:
        held.append(os.pidfd_open(int(pid)))  # no other process that gets the number is meant
    except ProcessLookupError:
        pass
sys.stdin.read()  # ends when the process that holds the other end does
for process in held:
    try:
        signal.pidfd_send_signal(process, signal.SIGKILL)
    except ProcessLookupError:
        pass
"""


def watcher_of(pids: Sequence[int]) -> subprocess.Popen:
    """A process that kills `pids` as soon as this process has ended, or lets go of what is returned."""
    command = [sys.executable, "-c", WATCHER, *map(str, pids)]
    # A session of its own: an interrupt of ours must not end it first.
    return subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
