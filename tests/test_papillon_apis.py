"""The untrusted language model and the judge behind an API that delays, fails and talks nonsense."""

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from papillon_setup import Policy, load, run_of
from tiny_policy import scripted_lm

from mmgrpo import rollout, tasks
from mmgrpo.errors import UserError
from mmgrpo.tasks.papillon import untrusted

pytestmark = pytest.mark.usefixtures("embedded_rows_and_no_api")


@contextmanager
def server(*answers):
    """A loopback server with OpenAI's API: (status, body) in turns, the last for ever; yields address and bodies."""
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            status, body = answers[min(len(asked), len(answers)) - 1]
            self.send_response(status)
            for name, value in {
                "Content-Type": "application/json",
                "Content-Length": len(body),
                "Retry-After": 0,
            }.items():
                self.send_header(name, str(value))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments):
            pass

    running = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=running.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{running.server_port}/v1", asked
    finally:
        running.shutdown()
        running.server_close()


def says(text):
    choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}
    usage = {"prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 120}
    reply = {
        "id": "x",
        "object": "chat.completion",
        "created": 1,
        "model": "gpt-4.1-mini",
        "choices": [choice],
        "usage": usage,
    }
    return 200, json.dumps(reply).encode()


def fails(status, message="no"):
    return status, json.dumps({"error": {"message": message, "type": "t", "code": None}}).encode()


def api(address, name="openai/gpt-4.1-mini"):
    return untrusted.language_model(name, max_tokens=32, api_base=address)


@pytest.fixture
def key(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "not-a-key")
    monkeypatch.setattr("time.sleep", lambda seconds: None)


def test_api_gets_one_user_message_and_is_asked_once_for_the_same(key):
    with server(says("Hello!")) as (address, asked):
        model = api(address)
        assert [model("Please write."), model("Please write.")] == ["Hello!", "Hello!"]
    (body,) = asked
    (message,) = body["messages"]
    assert message["role"] == "user" and "Please write." in json.dumps(message["content"])
    assert model.spent["calls"] == 1 and (model.spent["prompt"], model.spent["completion"]) == (100, 20)
    assert model.spent["dollars"] == pytest.approx(100 * 0.4e-6 + 20 * 1.6e-6)
    assert model._lm.history == []


@pytest.mark.parametrize("status", [429, 500, 503])
def test_api_in_trouble_is_asked_again(key, status):
    with server(fails(status), fails(status), says("Hello!")) as (address, asked):
        assert api(address)("Please.") == "Hello!"
    assert len(asked) == 3


@pytest.mark.parametrize(
    ("answer", "calls", "sentence"),
    [
        (fails(401, "bad key"), 1, r"can't be asked \(LMAuthError: .*\): check OPENAI_API_KEY"),
        (fails(429, "slow down"), untrusted.RETRIES + 1, r"can't be asked \(LMRateLimitError: "),
        (fails(500), untrusted.RETRIES + 1, r"can't be asked \(LMServerError: "),
    ],
    ids=["401", "429", "500"],
)
def test_api_that_keeps_failing_is_a_sentence_and_stops_the_run(key, answer, calls, sentence):
    with server(answer) as (address, asked), pytest.raises(UserError, match=sentence):
        run_of(Policy(), untrusted=api(address))
    assert len(asked) == calls


@pytest.mark.parametrize(
    "body", [b"<html>busy</html>", b"{}", b'{"choices": []}', b""], ids=["html", "empty", "none", "nothing"]
)
def test_garbage_from_an_api_crashes_its_run(key, body):
    failed = "1 of 1 runs failed, the first because the program raised"
    with server((200, body)) as (address, _), pytest.raises(UserError, match=failed):
        run_of(Policy(), untrusted=api(address))


def test_each_provider_has_a_key():
    task = tasks.get("papillon", {"untrusted": "openai/gpt-4.1-mini", "judge": "anthropic/claude-haiku"})
    assert task.api.keys == ("OPENAI_API_KEY", "ANTHROPIC_API_KEY")


def test_both_roles_are_asked_and_counted(key):
    with server(says("First")) as (address, asked):
        task = tasks.get("papillon", {"api_base": address})
        splits = load(2, 2, 2)
        runs = rollout.evaluate(
            task.program(splits), splits.test, policy=scripted_lm(Policy()).policy, metric=task.judge
        )
    assert [run.details["quality"] for run in runs] == [1.0, 1.0]
    assert len(asked) == 2 + 4
    assert {role: spent["calls"] for role, spent in task.spending().items()} == {"untrusted": 2, "judge": 4}
