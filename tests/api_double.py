"""An API on the loopback interface that answers as a bad day would: late, not at all, cut off, refused, garbage."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Self

LATE_SECONDS = 3.0
REPLY = "[[ ## t ## ]]\nfine\n\n[[ ## completed ## ]]"
ERRORS = {"unauthorized": 401, "rate limit": 429, "broken": 500}


class ApiDouble:
    """Answers request after request as `days` says, the last of them for ever. Use as a context manager."""

    def __init__(self, days: Sequence[str], reply: str = REPLY):
        self.days = list(days)
        self.reply = reply
        self.asked = 0
        self.keys: list[str] = []
        double = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                double.keys.append(self.headers["Authorization"])
                self.rfile.read(int(self.headers["Content-Length"]))
                day = double.days[min(double.asked, len(double.days) - 1)]
                double.asked += 1
                double.answer(self, day)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}/v1"

    def __enter__(self) -> Self:
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()

    def answer(self, request: BaseHTTPRequestHandler, day: str) -> None:
        body = json.dumps(
            {
                "id": "x", "object": "chat.completion", "created": 0, "model": "m",
                "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": self.reply}}],
                "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
            }
        ).encode()  # fmt: skip
        if day == "late":
            time.sleep(LATE_SECONDS)
        if day in ERRORS:
            body = json.dumps({"error": {"message": f"{day}", "type": day, "code": day}}).encode()
        if day == "garbage":
            body = b"<html>\x00\xff not what was asked for"
        if day == "hangs up":
            request.close_connection = True
            return
        request.send_response(ERRORS.get(day, 200))
        request.send_header("Content-Type", "application/json")
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        request.wfile.write(body[: len(body) // 2] if day == "cut off" else body)
        request.close_connection = day == "cut off"
