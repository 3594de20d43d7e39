"""Language models beside the policy: the untrusted one and, in the paper's setting, the judge.

Each is a function from the text of one user message to the text of the answer. There is no system prompt, no
demonstration and no history: what isn't in that text can't leave the machine.
"""

from __future__ import annotations

import os
import threading
from collections import Counter
from typing import Any

import dspy
from dspy.utils.exceptions import (
    LMAuthError,
    LMBillingError,
    LMConfigurationError,
    LMRateLimitError,
    LMServerError,
    LMTimeoutError,
    LMTransportError,
    LMUnsupportedModelError,
)

from mmgrpo.errors import UserError

RETRIES = 6  # with 1, 2, 4, ... seconds between, or what the server asks for; a minute in all
CONCURRENT = 16  # calls under way at a time
HOPELESS = (  # the next call would fail as well
    LMAuthError, LMBillingError, LMConfigurationError, LMUnsupportedModelError, LMRateLimitError, LMServerError,
    LMTimeoutError, LMTransportError,
)  # fmt: skip


def language_model(name: str, *, max_tokens: int, api_base: str | None = None) -> LocalModel | ApiModel:
    """The model `name`: one of `mmgrpo.policy.names()` runs here, any other is an API as `dspy.LM` names it."""
    from mmgrpo import policy

    return LocalModel(name, max_tokens) if name in policy.names() else ApiModel(name, max_tokens, api_base)


def key_of(name: str) -> str:
    """The environment variable with the key of an API model, as its provider names it."""
    return f"{name.partition('/')[0].upper()}_API_KEY"


class LocalModel:
    """A model on this machine, greedy, loaded when first asked. During a rollout it is batched with the policy."""

    def __init__(self, name: str, max_tokens: int):
        self.name = name
        self._max_tokens = max_tokens
        self._lm: dspy.LM | None = None
        self._loading = threading.Lock()

    def __deepcopy__(self, memo: dict) -> LocalModel:
        return self

    def __call__(self, text: str) -> str:
        return self._loaded()(text)[0] or ""

    def _loaded(self) -> dspy.LM:
        from mmgrpo import policy
        from mmgrpo.settings import PolicySettings

        with self._loading:
            if self._lm is None:
                self._lm = policy.load(self.name, PolicySettings(max_tokens=self._max_tokens), seed=0).lm()
            return self._lm


class ApiModel:
    """A model behind an API. Answers are cached on disk by DSPy, failures retried with back-off, tokens counted.

    Raises UserError without the provider's key in the environment and for a failure that retrying doesn't mend, and
    ValueError for an answer without text, which ends one run and not the study.
    """

    def __init__(self, name: str, max_tokens: int, api_base: str | None = None):
        self.name = name
        self._variable = key_of(name)
        if not os.environ.get(self._variable):
            raise UserError(
                f"{self._variable} is not set, and the task asks {name}: set it to your key (to any word for a "
                f"server of your own that needs none), or name a model that runs here in the task's options."
            )
        place = {} if api_base is None else {"api_base": api_base}
        self._lm = _CountingLM(name, temperature=0.0, max_tokens=max_tokens, num_retries=RETRIES, **place)
        self._slots = threading.Semaphore(CONCURRENT)

    def __deepcopy__(self, memo: dict) -> ApiModel:
        return self

    @property
    def spent(self) -> Counter[str]:
        """Calls, prompt and completion tokens, US dollars, and calls that DSPy knows no price of (`unpriced`).

        Answers from the cache are free and don't count.
        """
        return self._lm.spent

    def __call__(self, text: str) -> str:
        try:
            with self._slots, dspy.context(disable_history=False):  # the hook that counts belongs to the history
                answer = self._lm(text)[0]
        except HOPELESS as error:
            reason = (str(error).strip() or "no reason given").splitlines()[0]
            raise UserError(
                f"{self.name} can't be asked ({type(error).__name__}: {reason}): check {self._variable}, the network "
                "and the account's limits, and run again; answers so far are kept."
            ) from None
        if not answer:
            raise ValueError(f"{self.name} answered nothing")
        return answer


class _CountingLM(dspy.LM):
    """Adds up what calls cost, and keeps none of their texts."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.spent: Counter[str] = Counter(calls=0, prompt=0, completion=0, dollars=0.0, unpriced=0)
        self._counting = threading.Lock()

    def update_history(self, entry: dict[str, Any]) -> None:
        usage = entry["usage"] or {}
        if usage:
            with self._counting:
                self.spent.update(
                    calls=1,
                    prompt=usage.get("prompt_tokens") or 0,
                    completion=usage.get("completion_tokens") or 0,
                    dollars=entry["cost"] or 0.0,
                    unpriced=int(entry["cost"] is None),
                )
