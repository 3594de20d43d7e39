"""GEPA: what its proposer reads, how its replies are taken, and what it finds."""

import dspy
import pytest
from tiny_policy import fields, scripted_lm

from mmgrpo.reflection import gepa
from mmgrpo.settings import GEPASettings
from mmgrpo.tasks import Judgement

EXAMPLES = [dspy.Example(q=f"question {n}").with_inputs("q") for n in range(8)]
SETTINGS = GEPASettings(metric_calls=24, minibatch=2, proposal_tokens=77, temperature=0.9)


def judge(example, prediction, trace=None):
    right = prediction.a == "yes"
    return Judgement(float(right), "Well said." if right else f"{example.q} wants a yes.")


def run(proposal, answer=fields(a="no")):
    """GEPA on a program that says yes once its instruction asks for it; its prompts to the proposer and the others."""
    asked, others = [], []

    def reply(prompt, request):
        (asked if "[[ ## new_instruction ## ]]" in prompt else others).append((prompt, request))
        if "[[ ## new_instruction ## ]]" in prompt:
            return proposal
        return fields(a="yes") if "Say yes." in prompt else answer

    program = dspy.Predict("q -> a")
    found = gepa(
        program, lm=scripted_lm(reply, temperature=0.0), judge=judge, trainset=EXAMPLES[:4], valset=EXAMPLES[4:],
        settings=SETTINGS, seed=0,
    )  # fmt: skip
    assert program.signature.instructions == dspy.Predict("q -> a").signature.instructions and program.lm is None
    return found, asked, others


@pytest.mark.parametrize(
    ("proposal", "formatted"), [(fields(new_instruction="Say yes."), True), (" Say yes.\n", False)]
)
def test_instruction_that_scores_better_comes_back(proposal, formatted):
    found, asked, _ = run(proposal)
    assert found.program.signature.instructions == "Say yes."
    assert [trial["score"] for trial in found.trials] == [0.0, 1.0]
    assert [trial["step"] for trial in found.trials] == [0.0, 1.0]
    assert 4 < found.trials[1]["runs"] <= SETTINGS.metric_calls
    assert found.proposals == {"asked": len(asked), "usable": len(asked) if formatted else 0}
    assert not hasattr(found.program, "detailed_results")


def test_proposer_reads_the_feedback_of_the_judge_and_samples():
    _, asked, others = run(fields(new_instruction="Say yes."))
    prompt, request = asked[0]
    assert any(f"{example.q} wants a yes." in prompt for example in EXAMPLES[:4])
    assert not any(example.q in prompt for example in EXAMPLES[4:])  # nothing of the validation examples
    assert (request.temperature, request.max_tokens) == (0.9, 77)
    assert {request.temperature for _, request in others} == {0.0}


def test_proposer_reads_replies_that_do_not_parse():
    _, asked, _ = run("", answer="just chatting")
    assert "just chatting" in asked[0][0]


def test_empty_proposals_leave_the_program_as_it_is():
    found, asked, _ = run("")
    assert found.program.signature.instructions == dspy.Predict("q -> a").signature.instructions
    assert [trial["score"] for trial in found.trials] == [0.0]
    assert found.proposals == {"asked": len(asked), "usable": 0} and asked
