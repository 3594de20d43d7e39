"""PAPILLON on PUPA: answer a private query with the help of an untrusted, stronger language model.

Real data: PUPA (Li et al. 2025, MIT), from the hub or a local folder. Embedded: 480 queries of our own in the same
format (`data/papillon`), an untrusted model that runs here, and a judge that needs no API.
"""

from __future__ import annotations

from statistics import fmean

import dspy
from pydantic import Field

from mmgrpo.privacy import redact
from mmgrpo.settings import Settings
from mmgrpo.tasks import Api, Judgement, Splits, Task
from mmgrpo.tasks.papillon import judges
from mmgrpo.tasks.papillon.program import Papillon
from mmgrpo.tasks.papillon.rows import FOLDER, load
from mmgrpo.tasks.papillon.untrusted import ApiModel, LocalModel, key_of, language_model

GPT = "openai/gpt-4.1-mini-2025-04-14"
JUDGE_TOKENS = 16  # the judge answers with one word
DOLLARS_PER_CALL = 0.0006  # of GPT-4.1 mini, for some 300 tokens each way at 0.40 and 1.60 dollars a million
LEXICAL = "lexical"


class Options(Settings):
    """Who answers and who judges; the defaults are the paper's, with `OPENAI_API_KEY` from the environment."""

    untrusted: str = GPT  # a model of `mmgrpo.policy` runs here, any other is an API as `dspy.LM` names it
    judge: str = GPT  # likewise, or "lexical"; an API is sent query, target and response
    max_tokens: int = Field(2048, gt=0)  # of the untrusted model's answer; our choice
    api_base: str | None = None  # address of another server with the same API, such as vLLM's


def task(options: Options) -> Task:
    """The task; asks for a missing API key when the program is built, and loads a local model when it is needed."""

    models: dict[str, LocalModel | ApiModel] = {}

    def model(role: str) -> LocalModel | ApiModel:
        if role not in models:
            name, tokens = {
                "untrusted": (options.untrusted, options.max_tokens),
                "judge": (options.judge, JUDGE_TOKENS),
            }[role]
            models[role] = language_model(name, max_tokens=tokens, api_base=options.api_base)
        return models[role]

    lexical = options.judge == LEXICAL
    quality = judges.Overlap() if lexical else judges.Comparison(lambda text: model("judge")(text))

    def program(splits: Splits) -> dspy.Module:
        if not lexical:
            model("judge")  # so that a key which it lacks is asked for now
        return Papillon(model("untrusted"))

    def judge(example: dspy.Example, prediction: dspy.Prediction, trace=None) -> Judgement:
        return judges.judge(example, prediction, trace, quality=quality)

    def chance(splits: Splits) -> float:
        """A fixed request and reply. They lose every comparison and leak nothing; the lexical judge is asked."""
        if not lexical:
            return 0.5
        reply = dspy.Prediction(llm_request="Please help me.", response=splits.train[0].target_response)
        return fmean(judge(example, reply).score for example in splits.valid)

    def spending() -> dict[str, dict[str, float]]:
        return {role: dict(asked.spent) for role, asked in models.items() if isinstance(asked, ApiModel)}

    return Task(
        name="papillon",
        title="PAPILLON",
        load=load,
        program=program,
        judge=judge,
        oracle=oracle,
        chance=chance,
        paper_sizes=(111, 221),
        citation="Li et al. 2025, PAPILLON: Privacy Preservation from Internet-based and Local Language Model Ensembles, "
        "NAACL 2025",
        licence="MIT (real rows), Apache-2.0 (embedded rows)",
        folder=FOLDER,
        api=api(options),
        private=lambda example: example.pii_units,
        spending=spending,
    )


def api(options: Options) -> Api | None:
    """What one run asks of paid APIs: the untrusted model once, the judge twice."""
    from mmgrpo import policy

    here = (LEXICAL, *policy.names())
    asked = [name for name in (options.untrusted, options.judge, options.judge) if name not in here]
    keys = tuple(dict.fromkeys(key_of(name) for name in asked))
    return Api(keys, len(asked), DOLLARS_PER_CALL) if asked else None


def oracle(example: dspy.Example) -> dspy.Prediction:
    """The query with every private unit taken out, and the target."""
    return dspy.Prediction(llm_request=redact(example.pii_units, example.user_query), response=example.target_response)
