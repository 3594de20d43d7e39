"""A trained program is saved as JSON and loaded onto the policy in use."""

import json

import dspy
import pytest
from tiny_policy import RawAdapter, tiny_policy
from training_setup import VALID, Pair, compile_, optimizer

from mmgrpo.errors import UserError

pytestmark = pytest.mark.usefixtures("nothing_but_training", "temporary_folders_go")


@pytest.fixture(scope="module", params=["shared", "per_module"])
def saved(request, tmp_path_factory):
    """The file of a trained program, and what that program answers."""
    folder = tmp_path_factory.mktemp("saved")
    with dspy.context(adapter=RawAdapter()):
        program = compile_(tiny_policy(), optimizer(adapters=request.param, learning_rate=0.1, folder=folder / "run"))
        program.save(folder / "program.json")
        return folder / "program.json", [program(q=example.q).t for example in VALID]


def load(file, lm):
    """The program of `file` under a language model."""
    program = Pair()
    with dspy.context(lm=lm):
        program.load(file, allow_unsafe_lm_state=True)
    return program


def answers(program, lm=None):
    with dspy.context(adapter=RawAdapter(), lm=lm):
        return [program(q=example.q).t for example in VALID]


def test_loaded_program_answers_with_its_adapter(saved):
    file, expected = saved
    policy = tiny_policy()
    program = load(file, policy.lm())
    assert answers(program) == expected  # no language model but its own
    assert answers(Pair(), policy.lm()) != expected


def test_program_can_be_trained_on_and_saved_again(saved, tmp_path):
    program = load(saved[0], tiny_policy().lm())
    program.save(tmp_path / "again.json")
    assert json.loads((tmp_path / "again.json").read_text())["a"] == json.loads(saved[0].read_text())["a"]


def test_file_names_policy_and_adapter_and_holds_no_weights(saved):
    state = json.loads(saved[0].read_text())["a"]["lm"]
    assert state["policy"] == "tiny" and len(state["sha256"]) == 64
    assert saved[0].stat().st_size < 5000


def test_loading_takes_the_word_that_dspy_asks_for(saved):
    with pytest.raises(ValueError, match="allow_unsafe_lm_state=True"), dspy.context(lm=tiny_policy().lm()):
        Pair().load(saved[0])


@pytest.mark.parametrize("lm", [None, dspy.LM("openai/gpt-4.1-mini")], ids=["none", "another"])
def test_without_the_policy_a_sentence_says_how_to_get_it(saved, lm):
    with pytest.raises(UserError, match=r"saved with the policy 'tiny', which is not in use: call dspy.configure\(lm="):
        load(saved[0], lm)


def test_another_adapter_in_its_place_is_refused(saved, tmp_path):
    state = json.loads(saved[0].read_text())
    state["a"]["lm"]["sha256"] = "0" * 64
    (tmp_path / "changed.json").write_text(json.dumps(state))
    with pytest.raises(UserError, match="is missing, or another adapter than this program was saved with"):
        load(tmp_path / "changed.json", tiny_policy().lm())


def test_untrained_program_with_the_policy_can_be_saved_too(tmp_path):
    policy, program = tiny_policy(), Pair()
    program.set_lm(policy.lm())
    program.save(tmp_path / "plain.json")
    assert answers(load(tmp_path / "plain.json", policy.lm())) == answers(program)
