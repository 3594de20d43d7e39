"""Sampling from vLLM servers on other machines, through their OpenAI interface with token ids.

`MMGRPO_VLLM_SERVERS` names them. Each is started like this, with the LoRA rank of the profile or more, room for an adapter
of each training process (or it would load them over and over), and must see the cache folder (`MMGRPO_CACHE_DIR`) by the same
path:

    VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 vllm serve MODEL --enable-lora --max-loras 8 --max-lora-rank 16 \
        --logprobs-mode processed_logprobs --generation-config vllm
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx

from mmgrpo.errors import UserError
from mmgrpo.policy.adapter_folders import AdapterFolders
from mmgrpo.policy.sampler import Completion, Sampler, SamplingRequest

BACKOFF = (1.0, 4.0, 15.0, 60.0)  # seconds before each further attempt


class AdapterLost(Exception):
    """The server at `args[0]` does not know an adapter that it was given: it was started again since."""


class RemoteSampler(Sampler):
    """Spreads requests over `servers` ("http://host:8000"), all of which serve `model`.

    Log-probabilities and seeds are as with `VLLMSampler` on a GPU. Each version of the policy is written to
    `folder` and loaded by the servers from there. Raises UserError where a server stays away or refuses.
    """

    def __init__(self, servers: Sequence[str], model: str, stop_ids: Sequence[int], concurrency: int, folder: Path):
        self.servers = [server.rstrip("/") for server in servers]
        self.model = model
        self.stop_ids = sorted(stop_ids)
        self.concurrency = concurrency  # requests at a time, of each server
        self._adapters = AdapterFolders(folder)
        self._client = httpx.Client(
            timeout=httpx.Timeout(600.0, connect=10.0), limits=httpx.Limits(max_connections=None)
        )
        self._loaded: set[tuple[str, str]] = set()  # server and adapter name

    def follow(self, policy) -> None:
        """Sample from `policy` (a PEFT model with LoRA adapters) as it is now; call again after each update."""
        self._adapters.write(policy)

    def generate(self, requests: Sequence[SamplingRequest]) -> list[Completion]:
        """Completions in the order of `requests`; a server that was started again is given its adapters again, once."""
        for _ in self.servers:
            try:
                return self._answers(requests)
            except AdapterLost as lost:
                self._loaded = {(server, name) for server, name in self._loaded if server != lost.args[0]}
        return self._answers(requests)

    def _answers(self, requests: Sequence[SamplingRequest]) -> list[Completion]:
        # Requests of one prompt go to one server, as far as all servers get equally many, for its prefix cache.
        order = sorted(range(len(requests)), key=lambda index: requests[index].prompt_ids)
        server_of = {index: self.servers[place * len(self.servers) // len(order)] for place, index in enumerate(order)}
        model_of = [self._served(request, server_of[index]) for index, request in enumerate(requests)]
        with ThreadPoolExecutor(self.concurrency * len(self.servers)) as pool:
            jobs = [
                pool.submit(self._complete, server_of[index], model_of[index], request)
                for index, request in enumerate(requests)
            ]
            return [job.result() for job in jobs]

    def _served(self, request: SamplingRequest, server: str) -> str:
        """The name under which `server` has the weights that answer; loads them where it hasn't."""
        adapter = self._adapters.of(request)
        if adapter is None:
            return self.model
        number, folder = adapter
        name = f"{self._adapters.folder.name}-{number}"  # servers may be shared with other runs
        if (server, name) not in self._loaded:
            response = self._post(server, "/v1/load_lora_adapter", {"lora_name": name, "lora_path": str(folder)})
            if response.status_code == 404:
                raise UserError(
                    f"The vLLM server {server} takes no adapters: "
                    "start it with VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 and --enable-lora."
                )
            if "already been loaded" not in response.text:  # by a request whose answer was lost
                self._check(response, server)
            self._loaded.add((server, name))
        return name

    def _complete(self, server: str, model: str, request: SamplingRequest) -> Completion:
        wanted = {
            "model": model,
            "prompt": list(request.prompt_ids),
            "max_tokens": request.max_tokens,
            "temperature": request.temperature,
            "top_p": request.top_p,
            "top_k": request.top_k or 0,
            "seed": request.seed,
            "stop_token_ids": self.stop_ids,
            "logprobs": 0,
            "return_token_ids": True,
        }
        response = self._post(server, "/v1/completions", wanted)
        if response.status_code == 404 and model != self.model:
            raise AdapterLost(server)
        self._check(response, server)
        choice = response.json()["choices"][0]
        ids = tuple(choice["token_ids"])
        return Completion(
            ids, tuple(choice["logprobs"]["token_logprobs"]), "stop" if ids and ids[-1] in self.stop_ids else "length"
        )

    def _post(self, server: str, path: str, content: dict) -> httpx.Response:
        """The answer of a server that may be away for a while; UserError where it stays away."""
        for pause in itertools.chain(BACKOFF, [None]):
            try:
                response = self._client.post(server + path, json=content)
                if not response.is_server_error:
                    return response
                problem = f"status {response.status_code}"
            except httpx.TransportError as error:
                problem = f"{type(error).__name__}: {error}"
            if pause is not None:
                time.sleep(pause)
        raise UserError(
            f"The vLLM server {server} did not answer {len(BACKOFF) + 1} times ({problem}): start it again, then run again; "
            "it goes on from the last checkpoint, or the last reply of a search."
        )

    @staticmethod
    def _check(response: httpx.Response, server: str) -> None:
        if response.is_error:
            raise UserError(
                f"The vLLM server {server} refused a request ({response.status_code}: {response.text[:300]}): "
                "start it as the top of mmgrpo/policy/remote.py says, with the model of the profile."
            )
