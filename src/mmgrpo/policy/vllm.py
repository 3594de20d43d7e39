"""Sampling with vLLM on this machine: continuous batching and prefix caching, in an engine process of its own.

The engine holds the original weights. Each version of the policy comes to it as a PEFT folder under a new number, so
that nothing it cached for one version answers for another. Only public interfaces of vLLM are used.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from subprocess import Popen

import torch

from mmgrpo.errors import UserError
from mmgrpo.policy.adapter_folders import AdapterFolders
from mmgrpo.policy.orphans import watcher_of
from mmgrpo.policy.sampler import Completion, Sampler, SamplingRequest
from mmgrpo.settings import PolicySettings

GPU_SHARE = 0.5  # of the GPU's memory for the engine while it is awake; asleep it has none
CPU_CACHE = 4 << 30  # bytes for keys and values where there is no GPU
ADAPTERS = 4  # of one engine pass; requests for further ones wait
LOOK_SECONDS = 1.0  # between two looks at whether the engine is alive
RANKS = (8, 16, 32, 64, 128, 256, 512)  # the LoRA ranks that vLLM makes room for


def memory_options() -> dict[str, float | int | None]:
    """vLLM's options for how much memory an engine takes."""
    return {
        "gpu_memory_utilization": GPU_SHARE,
        "kv_cache_memory_bytes": None if torch.cuda.is_available() else CPU_CACHE,
    }


class VLLMSampler(Sampler):
    """Samples from the model `source` (a folder, or a hub name with its revision).

    A completion's log-probabilities are those of the distribution it was drawn from: after temperature, top-k and
    top-p. Without top-k and top-p they mean what `TreeSampler`'s do; with them they are higher, by -log of the
    probability that was kept. Greedy tokens are scored at temperature 1.

    On a GPU each request is seeded by itself, and the engine sleeps when told to, its memory free for training.
    vLLM's builds for CPUs can do neither: there the engine's seed and the order of all requests decide.
    """

    def __init__(
        self, source: Path | str, stop_ids: Sequence[int], settings: PolicySettings,
        *, dtype: torch.dtype, revision: str | None = None, seed: int = 0,
    ):  # fmt: skip
        self.stop_ids = sorted(stop_ids)
        self._gpu = torch.cuda.is_available()
        self._options = {
            "model": str(source),
            "revision": revision,
            "skip_tokenizer_init": True,  # token ids go in and come out
            "generation_config": "vllm",  # no sampling defaults of the model's
            "dtype": str(dtype).removeprefix("torch."),
            "seed": seed % 2**31,
            "max_model_len": settings.context,
            "max_num_seqs": settings.batch,
            "enable_prefix_caching": True,
            "enable_lora": True,
            "max_loras": ADAPTERS,
            "max_lora_rank": next(rank for rank in RANKS if rank >= settings.lora_rank),
            "logprobs_mode": "processed_logprobs",
            **memory_options(),
            "enable_sleep_mode": self._gpu,
            "enforce_eager": not self._gpu,
        }
        self._engine = None  # started by the first call
        self._processes: list[BaseProcess] = []  # the engine's
        self._watcher: Popen | None = None  # ends them when we are gone
        self._asleep = False
        self._adapters = AdapterFolders()

    def follow(self, policy) -> None:
        """Sample from `policy` (a PEFT model with LoRA adapters) as it is now; call again after each update."""
        self._adapters.write(policy)

    def generate(self, requests: Sequence[SamplingRequest]) -> list[Completion]:
        """Completions in the order of `requests`. An engine that dies is started again, once, and asked again."""
        from vllm.v1.engine.exceptions import EngineDeadError

        if not requests:
            return []
        try:
            return self._answers(requests)
        except EngineDeadError:
            self._engine = None
            return self._answers(requests)

    def sleep(self) -> None:
        """Give the GPU's memory to the trainer until the next call; the weights wait in main memory."""
        if self._engine is not None and self._gpu and not self._asleep:
            from vllm.v1.engine.exceptions import EngineDeadError

            try:
                self._watched(self._engine.sleep, level=1)
                self._asleep = True
            except EngineDeadError:
                self._engine = None  # the next call starts another

    def _answers(self, requests: Sequence[SamplingRequest]) -> list[Completion]:
        adapters = [self._lora(request) for request in requests]
        # Apart: in a batch with adapters, vLLM's build for CPUs adds one to the requests without any, too.
        without = [index for index, adapter in enumerate(adapters) if adapter is None]
        adapted = [index for index, adapter in enumerate(adapters) if adapter is not None]
        done: dict[int, Completion] = {}
        for chosen in filter(None, (without, adapted)):
            outputs = self._watched(
                self._awake().generate,
                [{"prompt_token_ids": list(requests[index].prompt_ids)} for index in chosen],
                [self._parameters(requests[index]) for index in chosen],
                lora_request=[adapters[index] for index in chosen],
                use_tqdm=False,
            )
            done.update(zip(chosen, (self._completion(output.outputs[0]) for output in outputs), strict=True))
        return [done[index] for index in range(len(requests))]

    def _watched(self, call: Callable, *args, **kwargs):
        """`call(*args, **kwargs)`; raises EngineDeadError where the engine dies meanwhile, which vLLM may wait out."""
        from vllm.v1.engine.exceptions import EngineDeadError

        answer: Future = Future()

        def work() -> None:
            try:
                answer.set_result(call(*args, **kwargs))
            except BaseException as error:
                answer.set_exception(error)

        # No pool: it would wait at the end of the program for a call that nothing answers any more.
        threading.Thread(target=work, name="mmgrpo-vllm", daemon=True).start()
        while not wait([answer], timeout=LOOK_SECONDS).done:
            if any(not process.is_alive() for process in self._processes):
                raise EngineDeadError()
        return answer.result()

    def _awake(self):
        """The engine, started or woken where necessary."""
        if self._engine is not None and not self._asleep:
            return self._engine
        torch.cuda.empty_cache()  # what the trainer keeps for reuse
        if self._engine is None:
            self._engine = self._start()
        else:
            self._watched(self._engine.wake_up)
        self._asleep = False
        return self._engine

    def _start(self):
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
        from vllm import LLM

        others = multiprocessing.active_children()
        try:
            engine = LLM(**self._options)
            self._processes = [process for process in multiprocessing.active_children() if process not in others]
            self._watcher = watcher_of([process.pid for process in self._processes])
            return engine
        except (RuntimeError, ValueError) as error:
            reason = str(error).strip().splitlines()[0]
            raise UserError(
                f"vLLM could not start with {self._options['model']} ({reason}): its messages above say why; "
                "`sampler: transformers` in the profile's `policy` does without it."
            ) from error

    def _parameters(self, request: SamplingRequest):
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        return SamplingParams(
            max_tokens=request.max_tokens,
            temperature=request.temperature,
            top_p=request.top_p,
            top_k=request.top_k or 0,
            seed=request.seed if self._gpu else None,
            stop_token_ids=self.stop_ids,
            logprobs=0,  # of the sampled token alone
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )

    def _lora(self, request: SamplingRequest):
        from vllm.lora.request import LoRARequest

        adapter = self._adapters.of(request)
        if adapter is None:
            return None
        number, folder = adapter
        return LoRARequest(f"adapter-{number}", number, str(folder))

    def _completion(self, output) -> Completion:
        ids = tuple(output.token_ids)
        logprobs = tuple(step[token].logprob for token, step in zip(ids, output.logprobs, strict=True))
        return Completion(ids, logprobs, "stop" if ids and ids[-1] in self.stop_ids else "length")
