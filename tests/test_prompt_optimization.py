"""MIPROv2 over the policy: replies of the proposer that have no format, or are empty, do not end the search."""

import dspy
import pytest
from dspy.utils.exceptions import AdapterParseError
from tiny_policy import fields, scripted_lm

from mmgrpo.prompt_optimization import PROPOSAL, ProposerAdapter, mipro
from mmgrpo.settings import MIPROSettings

PROPOSING = dspy.Signature(f"basis -> {PROPOSAL}")
PROGRAM = dspy.Predict("q -> a")


def test_unformatted_reply_is_the_proposal_and_is_counted():
    adapter = ProposerAdapter(PROPOSAL, PROGRAM)
    assert adapter.parse(PROPOSING, "  Say yes.\n") == {PROPOSAL: "Say yes."}
    assert adapter.proposals == {"asked": 1, "usable": 0}
    assert adapter.parse(PROPOSING, fields(**{PROPOSAL: "Say no."})) == {PROPOSAL: "Say no."}
    assert adapter.proposals == {"asked": 2, "usable": 1}


def test_other_single_text_fields_are_taken_as_they_are_but_not_counted():
    adapter = ProposerAdapter(PROPOSAL, PROGRAM)
    assert adapter.parse(dspy.Signature("rows -> summary"), "Short rows.") == {"summary": "Short rows."}
    assert adapter.proposals == {"asked": 0, "usable": 0}


@pytest.mark.parametrize("signature", ["q -> a", "q -> b: int", "q -> b, c"])
def test_the_program_and_what_is_no_single_text_are_parsed_strictly(signature):
    with pytest.raises(AdapterParseError):
        ProposerAdapter(PROPOSAL, PROGRAM).parse(dspy.Signature(signature), "nonsense")


def test_empty_reply_is_an_empty_proposal():
    adapter = ProposerAdapter(PROPOSAL, PROGRAM)
    with dspy.context(lm=scripted_lm(lambda prompt, request: ""), adapter=adapter):
        assert dspy.Predict(PROPOSING)(basis="rows")[PROPOSAL] == ""
    assert adapter.proposals == {"asked": 1, "usable": 0}


def search(reply):
    """MIPROv2 on a program that is to say yes, under a language model that says `reply`."""
    examples = [dspy.Example(q=f"question {n}", a="yes").with_inputs("q") for n in range(4)]
    settings = MIPROSettings(
        trials=3, fewshot_candidates=2, instruction_candidates=2, bootstrapped_demos=0, labeled_demos=0
    )
    return mipro(
        PROGRAM, lm=scripted_lm(reply, temperature=0.0),
        metric=lambda example, prediction, trace=None: float(prediction.a == example.a),
        trainset=examples, valset=examples, settings=settings, seed=0,
    )  # fmt: skip


@pytest.mark.parametrize(("proposal", "best"), [("Say yes.", 1.0), ("", 0.0)])
def test_search_goes_on_with_what_the_proposer_says(proposal, best):
    """A program that says yes once its instruction asks for it."""

    def reply(prompt, request):
        if "1. `a` (str)" not in prompt:  # whatever is asked but the program
            return proposal
        return fields(a="yes" if "Say yes." in prompt else "no")

    found = search(reply)
    assert max(trial["score"] for trial in found.trials) == best
    assert ("Say yes." in found.program.signature.instructions) == (best == 1.0)
    assert found.proposals["asked"] > found.proposals["usable"] == 0


def test_program_whose_replies_do_not_parse_scores_nothing():
    def reply(prompt, request):
        return "yes" if "1. `a` (str)" in prompt else "Say yes."

    found = search(reply)
    assert {trial["score"] for trial in found.trials} == {0.0}
