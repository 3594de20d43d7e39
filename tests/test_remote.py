"""Sampling through servers, against a server that speaks vLLM's interface over a tiny model."""

import json
import shutil
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from factories import random_ids, shake, tiny_llama, with_lora

from mmgrpo.errors import UserError
from mmgrpo.policy import remote
from mmgrpo.policy.remote import RemoteSampler
from mmgrpo.policy.sampler import SamplingRequest, TreeSampler

STOPS = tuple(range(5, 97, 12))


class Server(ThreadingHTTPServer):
    """Answers completions with a `TreeSampler`; `failures` is how many requests it fails first."""

    def __init__(self, folder: Path):
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder = folder
        model = tiny_llama()
        self.sampler = TreeSampler(tiny_llama(), STOPS, 8, model)
        self.adapters: dict[str, Path] = {}
        self.takes_adapters = True
        self.failures = 0
        self.asked: list[dict] = []
        self.sampling = threading.Lock()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def answer(self, path: str, asked: dict) -> tuple[int, dict]:
        self.asked.append(asked)
        if self.failures:
            self.failures -= 1
            return 503, {}
        if path == "/v1/load_lora_adapter" and asked["lora_name"] in self.adapters:
            return 400, {"message": f"The lora adapter '{asked['lora_name']}' has already been loaded."}
        if path == "/v1/load_lora_adapter" and self.takes_adapters:
            self.adapters[asked["lora_name"]] = self.folder / asked["lora_name"]
            shutil.copytree(asked["lora_path"], self.folder / asked["lora_name"])
            return 200, {}
        if path != "/v1/completions" or asked["model"] not in {"tiny", *self.adapters}:
            return 404, {"error": "not found"}
        if asked["max_tokens"] > 100:
            return 400, {"error": "max_tokens is too large"}
        request = SamplingRequest(
            tuple(asked["prompt"]), asked["max_tokens"], asked["temperature"], asked["top_p"], asked["top_k"] or None,
            asked["seed"], self.adapters.get(asked["model"]),
        )  # fmt: skip
        with self.sampling:
            one = self.sampler.generate([request])[0]
        assert asked["return_token_ids"] and asked["logprobs"] == 0 and asked["stop_token_ids"] == list(STOPS)
        return 200, {"choices": [{"token_ids": one.ids, "logprobs": {"token_logprobs": one.logprobs}}]}


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        status, content = self.server.answer(self.path, asked)
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


@pytest.fixture
def servers(tmp_path_factory):
    started = [Server(tmp_path_factory.mktemp("server")) for _ in range(2)]
    threads = [threading.Thread(target=server.serve_forever, daemon=True) for server in started]
    for thread in threads:
        thread.start()
    yield started
    for server in started:
        server.shutdown()
        server.server_close()


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setattr(remote, "BACKOFF", (0.0, 0.0))


def sampler_of(servers, folder):
    return RemoteSampler([server.address + "/" for server in servers], "tiny", STOPS, 4, folder)


def requests(**changes):
    """Eight: two of each prompt, sampled in different ways."""
    how = [{"top_k": 9}, {"top_p": 0.8}, {}]
    return [
        SamplingRequest(random_ids(6, place // 2), 12, 0.7, **how[place % 3], seed=place, **changes)
        for place in range(8)
    ]


def assert_same(completions, expected):
    assert [(one.ids, one.finish) for one in completions] == [(one.ids, one.finish) for one in expected]
    for one, other in zip(completions, expected, strict=True):
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-4)


def test_completions_are_those_of_the_model_behind_the_servers(servers, tmp_path):
    expected = TreeSampler(tiny_llama(), STOPS, 8).generate(requests())
    assert {one.finish for one in expected} == {"stop", "length"}
    assert_same(sampler_of(servers, tmp_path).generate(requests()), expected)
    assert sampler_of(servers, tmp_path).generate([]) == []


def test_servers_get_equally_many_and_the_requests_of_a_prompt_together(servers, tmp_path):
    sampler_of(servers, tmp_path).generate(requests())
    first, second = ({tuple(asked["prompt"]) for asked in server.asked} for server in servers)
    assert [len(server.asked) for server in servers] == [4, 4]
    assert not first & second


def test_servers_answer_with_each_version_of_the_policy(servers, tmp_path):
    sampler, policy = sampler_of(servers, tmp_path), with_lora(tiny_llama())
    local = TreeSampler(tiny_llama(), STOPS, 8)
    found = []
    for seed in (1, 2):
        shake(policy, seed)
        for one in (sampler, local):
            one.follow(policy)
        found.append(sampler.generate(requests()))
        assert_same(found[-1], local.generate(requests()))
    assert found[0] != found[1]
    assert [len(server.adapters) for server in servers] == [2, 2]
    unknown = requests(adapter="of no module")
    assert_same(sampler.generate(unknown), TreeSampler(tiny_llama(), STOPS, 8).generate(unknown))


def test_adapter_in_a_folder_that_is_written_again_is_a_new_one(servers, tmp_path):
    sampler, policy, folder = sampler_of(servers, tmp_path), with_lora(tiny_llama()), tmp_path / "best"
    for seed in (1, 2):
        shake(policy, seed)
        policy.save_pretrained(folder)
        asked = requests(weights=folder)
        assert_same(sampler.generate(asked), TreeSampler(tiny_llama(), STOPS, 8, tiny_llama()).generate(asked))
    with pytest.raises(UserError, match="can't be read"):
        sampler.generate(requests(weights=tmp_path / "nowhere"))


def test_server_that_is_away_for_a_moment_is_asked_again(servers, tmp_path):
    servers[0].failures = 2
    sampler = RemoteSampler([servers[0].address], "tiny", STOPS, 1, tmp_path)
    assert_same(sampler.generate(requests()), TreeSampler(tiny_llama(), STOPS, 8).generate(requests()))


def test_server_that_stays_away_is_named(servers, tmp_path):
    servers[1].failures = 1000
    with pytest.raises(UserError, match=rf"{servers[1].address} did not answer 3 times \(status 503\): start it again"):
        sampler_of(servers, tmp_path).generate(requests())
    gone = RemoteSampler(["http://127.0.0.1:9"], "tiny", STOPS, 1, tmp_path)
    with pytest.raises(UserError, match="did not answer 3 times .*ConnectError"):
        gone.generate(requests())


@pytest.mark.parametrize("again", [(0,), (0, 1)], ids=["one", "all"])
def test_server_that_was_started_again_gets_its_adapters_again(again, servers, tmp_path):
    sampler, policy = sampler_of(servers, tmp_path), with_lora(tiny_llama())
    sampler.follow(policy)
    before = sampler.generate(requests())
    for place in again:
        (name,) = servers[place].adapters
        shutil.rmtree(servers[place].adapters.pop(name))
    assert_same(sampler.generate(requests()), before)
    loads = [[asked for asked in server.asked if "lora_name" in asked] for server in servers]
    assert [len(loaded) for loaded in loads] == [1 + (place in again) for place in (0, 1)]


def test_server_that_refuses_is_named_with_its_reason(servers, tmp_path):
    sampler = sampler_of(servers, tmp_path)
    with pytest.raises(UserError, match="refused a request .*400.*max_tokens is too large"):
        sampler.generate([SamplingRequest((1, 2), 101, 1.0)])
    for server in servers:
        server.takes_adapters = False
    sampler.follow(with_lora(tiny_llama()))
    with pytest.raises(UserError, match="takes no adapters: start it with VLLM_ALLOW_RUNTIME_LORA_UPDATING=1"):
        sampler.generate(requests())
