"""The policy as a DSPy language model: an engine that batches concurrent calls and keeps what it sampled."""

from __future__ import annotations

import asyncio
import hashlib
import threading
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import dspy
from dspy.clients.base_lm import LM_CLASS_STATE_KEY
from dspy.lm15 import ContextLengthError, Message, Request, Response, TextPart, Usage

from mmgrpo.errors import UserError
from mmgrpo.hashing import seed_of, sha256_of
from mmgrpo.policy.batcher import Batcher
from mmgrpo.policy.merging import WEIGHTS, adapter_folder, adapter_name
from mmgrpo.policy.recorder import SETTING, Recorder
from mmgrpo.policy.replies import SETTING as KEPT
from mmgrpo.policy.replies import Replies
from mmgrpo.policy.sampler import Completion, Sampler, SamplingRequest
from mmgrpo.settings import PolicySettings
from mmgrpo.trajectory import Call

END_MARKER = "[[ ## completed ## ]]"  # DSPy's ChatAdapter asks for it at the end of a reply; what follows is not read


class PolicyEngine:
    """DSPy's custom-engine interface over a sampler. Thread-safe; copies of a program share it."""

    def __init__(self, sampler: Sampler, tokenizer, settings: PolicySettings, seed: int):
        self.sampler = sampler
        self.tokenizer = tokenizer
        self.settings = settings
        self.seed = seed
        self.batcher: Batcher[tuple[Sampler, SamplingRequest], Completion] = Batcher(_generate)
        self.adapters: dict[str, str] = {}  # module name to adapter, where modules have their own
        self.folders: dict[str, Path] = {}  # adapters that have a language model of their own, by tag
        self.tokens: Counter[str] = Counter()  # prompt and completion tokens so far
        self._repeats: Counter[int] = Counter()  # of a prompt outside any rollout, so that repeats differ
        self._lock = threading.Lock()

    def __deepcopy__(self, memo: dict) -> PolicyEngine:
        return self

    def forget(self) -> None:
        """Start counting anew: what was sampled so far has no part in what comes."""
        with self._lock:
            self.tokens.clear()
            self._repeats.clear()

    def begin_search(self) -> None:
        """Seed calls outside rollouts as if none had been before, so that a search can be repeated."""
        with self._lock:
            self._repeats.clear()

    def complete(self, request: Request) -> Response:
        """Answer one request; raises ContextLengthError where prompt and completion don't fit the context."""
        return self.answer(request, self.announce())

    def announce(self) -> tuple[int, str, int, int] | None:
        """Give a call its place in its run (`Recorder.begin`); None for one that no run records."""
        recorder: Recorder | None = dspy.settings.get(SETTING)
        if recorder is not None:
            return recorder.begin() if recorder.engine is self else None
        if self.batcher.rolling:
            raise UserError(
                "While a program runs for training or evaluation, its policy was called from a thread that knows nothing of the run, "
                "where no call is recorded or trained: let program and metric start threads with dspy.Parallel or "
                "contextvars.copy_context().run, and use the policy for other things when the run is over."
            )
        return None

    def answer(self, request: Request, begun: tuple[int, str, int, int] | None) -> Response:
        """Sample a call that was announced."""
        recorder: Recorder | None = dspy.settings.get(SETTING)
        prompt_ids = self.render(request)
        config = request.config
        limit = config.max_tokens or self.settings.max_tokens
        if len(prompt_ids) + limit > self.settings.context:
            raise ContextLengthError(
                f"The prompt of {begun[1] if begun else 'a call outside any module'} has {len(prompt_ids)} tokens; with "
                f"max_tokens {limit} that is over the context of {self.settings.context}: shorten the input or raise `context`."
            )
        temperature = 0.0 if config.temperature is None else config.temperature
        wanted = SamplingRequest(
            prompt_ids=prompt_ids,
            max_tokens=limit,
            temperature=temperature,
            top_p=1.0 if config.top_p is None else config.top_p,
            top_k=config.top_k,
            seed=begun[3] if begun else self._outside_seed(prompt_ids, temperature, recorder),
            stop=END_MARKER if END_MARKER in (request.system or "") else None,
            **self._weights(request, begun[1] if begun else ""),
        )
        try:
            completion = self._batcher().ask((self._sampler(request.model), wanted))
        except Exception as error:
            fault = _fault(error)
            if recorder is not None:
                recorder.fault = fault
            if fault is error:
                raise
            raise fault from error
        text = self.tokenizer.decode(completion.ids, skip_special_tokens=True)
        with self._lock:
            self.tokens.update(prompt=len(prompt_ids), completion=len(completion.ids), calls=1)
        if begun:
            slot, module, invocation, _ = begun
            status = "truncated" if completion.finish == "length" else "unread"
            call = Call(
                module, invocation, prompt_ids, completion.ids, completion.logprobs, temperature, text, status, 0.0
            )
            recorder.end(slot, call)
        return Response(
            id=None,
            model=request.model,
            message=Message.assistant([TextPart(text)]),
            finish_reason=completion.finish,
            usage=Usage(input_tokens=len(prompt_ids), output_tokens=len(completion.ids)),
        )

    def _sampler(self, model: str) -> Sampler:
        """What samples: in a search that keeps its replies, only what is not among them."""
        replies: Replies | None = dspy.settings.get(KEPT)
        if replies is None:
            return self.sampler
        return replies.before(self.sampler, f"{model.partition('@')[0]} in {self.settings.precision}")

    def _batcher(self) -> Batcher:
        """That of the policy in use: a local model which a program calls besides waits and runs with the policy."""
        current = dspy.settings.lm
        return current.policy.engine.batcher if isinstance(current, PolicyLM) else self.batcher

    def render(self, request: Request) -> tuple[int, ...]:
        """The exact prompt token ids of a request, by the tokenizer's chat template."""
        messages = [{"role": "system", "content": request.system}] if request.system else []
        messages += [{"role": message.role, "content": message.text} for message in request.messages]
        messages = [message | {"content": self._as_text(message["content"])} for message in messages]
        rendered = self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        return tuple(self.tokenizer(rendered, add_special_tokens=False)["input_ids"])

    def _as_text(self, content: str) -> str:
        """Content in which the tokenizer's special tokens are ordinary text, so that no data row can fake a turn."""
        for token in self.tokenizer.all_special_tokens:
            content = content.replace(token, f"{token[:1]} {token[1:]}")
        return content

    def _weights(self, request: Request, module: str) -> dict:
        """Whose weights answer: a saved adapter's, where the language model has one, or the policy's as they are."""
        folder = self.folders.get(request.model.partition("@")[2])
        if folder is not None:
            return {"weights": folder}
        return {"adapter": adapter_name(module) if self.adapters else "default"}

    def _outside_seed(self, prompt_ids: tuple[int, ...], temperature: float, recorder: Recorder | None) -> int:
        asked = seed_of(prompt_ids, temperature)
        if recorder is not None:
            return recorder.outside(asked)
        with self._lock:
            self._repeats[asked] += 1
            return seed_of(self.seed, asked, self._repeats[asked])


def _fault(error: Exception) -> UserError:
    """How a failure of the sampler is told: no fault of the program's, it must not count as a run that crashed."""
    if isinstance(error, UserError):
        return error
    return UserError(
        f"Sampling failed ({type(error).__name__}: {error}): run the same command again; it goes on from the last "
        "checkpoint, or the last reply of a search."
    )


class AsyncEngine:
    """The same engine for programs that await their calls."""

    def __init__(self, engine: PolicyEngine):
        self.engine = engine

    async def complete(self, request: Request) -> Response:
        begun = self.engine.announce()  # here, as the order of the threads is chance
        return await asyncio.to_thread(self.engine.answer, request, begun)


def _generate(questions: Sequence[tuple[Sampler, SamplingRequest]]) -> list[Completion]:
    """Answers in order, the questions of one sampler together."""
    answers: dict[int, Completion] = {}
    for sampler in dict.fromkeys(sampler for sampler, _ in questions):
        mine = [place for place, (asked, _) in enumerate(questions) if asked is sampler]
        answers.update(zip(mine, sampler.generate([questions[place][1] for place in mine]), strict=True))
    return [answers[place] for place in range(len(questions))]


class PolicyLM(dspy.LM):
    """A `dspy.LM` whose tokens are kept for training.

    Without `weights` it answers with the policy's weights as they are at the time; with a PEFT folder it goes on
    answering with that adapter (or the one of its subfolder `adapter`), whatever is trained later.
    """

    def __init__(self, policy, weights: Path | None = None, adapter: str = "default", **sampling):
        folder = None if weights is None else adapter_folder(weights, adapter)
        tag = "" if folder is None else f"@{hashlib.sha256(str(folder).encode()).hexdigest()[:8]}"
        # A cache would not know which weights answered, and a retry would sample a reply that nothing recorded.
        engines = {"engine": policy.engine, "async_engine": AsyncEngine(policy.engine)}
        super().__init__(model=f"local/{policy.name}{tag}", cache=False, num_retries=0, **engines, **sampling)
        self.policy = policy
        self.weights = weights
        self.adapter = adapter
        if folder is not None:
            policy.engine.folders[tag[1:]] = folder

    def with_weights(self, weights: Path | str, adapter: str = "default") -> PolicyLM:
        """The same language model with the adapter of a PEFT folder."""
        return PolicyLM(self.policy, Path(weights), adapter, **self.kwargs)

    def dump_state(self) -> dict[str, Any]:
        """What `program.save` writes: names, not weights. The adapter's folder must stay where it is."""
        state = {LM_CLASS_STATE_KEY: f"{__name__}.PolicyLM", "policy": self.policy.name, "sampling": dict(self.kwargs)}
        if self.weights is None:
            return state
        file = adapter_folder(self.weights, self.adapter) / WEIGHTS
        return state | {"weights": str(self.weights.resolve()), "adapter": self.adapter, "sha256": sha256_of(file)}

    @classmethod
    def load_state(cls, state: dict[str, Any], *, allow_custom_lm_class: bool = False) -> PolicyLM:
        """The language model of a saved program, on the policy in use (`dspy.configure`).

        DSPy calls this from `program.load(file, allow_unsafe_lm_state=True)` only. Raises UserError where the policy
        or the adapter is not the one that the program was saved with.
        """
        name, current = state["policy"], dspy.settings.lm
        if not isinstance(current, PolicyLM) or current.policy.name != name:
            raise UserError(
                f"This program was saved with the policy {name!r}, which is not in use: call "
                f"dspy.configure(lm=mmgrpo.policy.load({name!r}, ...).lm()) and load it again."
            )
        if "weights" not in state:
            return cls(current.policy, **state["sampling"])
        weights = Path(state["weights"])
        file = adapter_folder(weights, state["adapter"]) / WEIGHTS
        if not file.exists() or sha256_of(file) != state["sha256"]:
            raise UserError(
                f"{file} is missing, or another adapter than this program was saved with: put that one back, or train again."
            )
        return cls(current.policy, weights, state["adapter"], **state["sampling"])
