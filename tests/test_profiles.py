"""Profiles: every checked-in file can be read, and a mistake in one is named with its remedy."""

import pytest
import yaml

from mmgrpo import paths, profiles, tasks
from mmgrpo.cells import NOTEBOOK_OF
from mmgrpo.errors import UserError
from mmgrpo.policy import EMBEDDED
from mmgrpo.policy import names as models

FILES = sorted(paths.PROFILES.glob("*.yaml"))
QWEN, LLAMA = "Qwen/Qwen3-8B", "meta-llama/Llama-3.1-8B-Instruct"


def changed(tmp_path, **changes):
    """The smoke profile with `changes`, as a file."""
    content = yaml.safe_load((paths.PROFILES / "smoke.yaml").read_text()) | changes
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump(content))
    return file


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_profile_can_be_read_and_run(file):
    profile = profiles.load(file.stem)
    assert profile.name == file.stem
    assert set(profile.models) <= set(models())
    assert set(profile.strategies) <= set(NOTEBOOK_OF)
    for task in profile.tasks:
        tasks.get(task, profile.tasks[task].options)
        profile.policy_for(task)
        for model in profile.models:
            for strategy in profile.strategies:
                profile.grpo_for(task, model, strategy)
            profile.sampling_for(model)
    assert set(profile.models_grpo) | set(profile.models_sampling) <= set(profile.models)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_no_key_stands_twice(file):
    """YAML lets the last of two equal keys win in silence."""

    def keys_of(node):
        if isinstance(node, yaml.MappingNode):
            names = [key.value for key, _ in node.value]
            assert len(names) == len(set(names)), names
            for _, value in node.value:
                keys_of(value)

    keys_of(yaml.compose(file.read_text()))


def test_names_are_the_files():
    assert profiles.names() == [file.stem for file in FILES]
    assert {"gpu", "laptop", "paper", "smoke"} <= set(profiles.names())


def test_only_the_smoke_profile_is_stamped_as_smoke():
    assert [name for name in profiles.names() if profiles.load(name).smoke] == ["smoke"]


def test_small_profiles_need_no_download_but_the_embedded_model():
    for name in ("smoke", "laptop"):
        profile = profiles.load(name)
        assert set(profile.models) <= set(EMBEDDED)
        assert {settings.splits.source for settings in profile.tasks.values()} == {"embedded"}


def test_paper_profile_has_the_papers_settings():
    paper = profiles.load("paper")
    assert paper.models == (QWEN, LLAMA)
    assert len(paper.seeds) == 3
    for model, beta, norm in ((QWEN, 0.01, 0.1), (LLAMA, 0.04, 0.5)):
        grpo = paper.grpo_for("banking77", model, "module_grpo")
        assert (grpo.steps, grpo.inputs, grpo.rollouts, grpo.group_size) == (750, 4, 12, 12)
        assert (grpo.learning_rate, grpo.beta, grpo.max_grad_norm) == (1e-5, beta, norm)
        assert (grpo.padding, grpo.objective, grpo.scale, grpo.adapters) == ("fill", "grpo", "group", "shared")
    qwen, llama = paper.sampling_for(QWEN), paper.sampling_for(LLAMA)
    assert (qwen.temperature, qwen.top_p, qwen.top_k) == (0.6, 0.95, 20)
    assert (llama.temperature, llama.top_p, llama.top_k) == (0.6, 1.0, None)
    policy = paper.policy_for("banking77")
    assert (policy.lora_rank, policy.lora_alpha, policy.context) == (16, 64, 8192)
    assert policy.lora_dropout == 0.0  # the paper's 0.05 is a known departure
    mipro = paper.mipro
    assert (mipro.trials, mipro.fewshot_candidates, mipro.instruction_candidates) == (12, 12, 6)
    splits = paper.tasks["banking77"].splits
    assert (splits.source, splits.train, splits.test) == ("hub", 250, 500)


def test_defaults_of_the_settings_are_the_papers():
    from mmgrpo.settings import GRPOSettings, MIPROSettings, PolicySettings, SamplingSettings

    grpo = GRPOSettings()
    assert (grpo.steps, grpo.inputs, grpo.rollouts, grpo.group_size) == (750, 4, 12, 12)
    assert (grpo.learning_rate, grpo.padding, SamplingSettings().temperature) == (1e-5, "fill", 0.6)
    assert (PolicySettings().lora_rank, PolicySettings().lora_alpha, PolicySettings().context) == (16, 64, 8192)
    assert (MIPROSettings().trials, MIPROSettings().fewshot_candidates) == (12, 12)


def test_what_a_model_or_task_changes_wins_over_the_profile():
    paper = profiles.load("paper")
    task = paper.tasks["banking77"].model_copy(update={"grpo": {"beta": 0.5}, "max_tokens": 99})
    mine = paper.model_copy(update={"tasks": {"banking77": task}})
    assert mine.grpo_for("banking77", LLAMA, "module_grpo").beta == 0.5
    assert mine.grpo_for("banking77", LLAMA, "module_grpo").max_grad_norm == 0.5
    assert (mine.policy_for("banking77").max_tokens, mine.policy_for("banking77").context) == (99, 8192)


def test_unknown_profile_names_the_likeliest():
    with pytest.raises(UserError, match="Unknown profile 'labtop'; allowed: .*; did you mean 'laptop'"):
        profiles.load("labtop")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"sedes": [0]}, "unknown key 'sedes'; allowed: .*did you mean 'seeds'"),
        (
            {"grpo": {"learning_rat": 1.0e-4}},
            "unknown key 'grpo.learning_rat'; allowed: .*did you mean 'learning_rate'",
        ),
        (
            {"tasks": {"banking77": {"splits": {"source": "embedded", "train": 8, "vaild": 8, "valid": 8, "test": 8}}}},
            "unknown key 'tasks.banking77.splits.vaild'; allowed: .*did you mean 'valid'",
        ),
        ({"tasks": {"banking77": {"split": {}}}}, "tasks.banking77"),
        ({"grpo": {"steps": 0}}, r"grpo.steps: .*greater than 0 \(given: 0\)"),
        ({"grpo": {"rollouts": 1, "group_size": 1}}, "grpo.rollouts: .*greater than or equal to 2"),
        ({"grpo": {"rollouts": 2, "group_size": 3}}, "grpo: group_size 3 is larger than rollouts 2"),
        ({"grpo": {"learning_rate": "fast"}}, "grpo.learning_rate: .*number.*'fast'"),
        ({"policy": {"precision": "int8"}}, "policy.precision: .*'auto', 'fp32' or 'bf16'"),
        ({"sampling": {"temperature": 0}}, "sampling.temperature: .*greater than 0"),
        ({"seeds": []}, "seeds: .*at least 1"),
        ({"models": "smollm2-135m"}, "models: .*tuple"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_mistake_in_a_profile_is_named(tmp_path, changes, sentence):
    with pytest.raises(UserError, match=f"^mine.yaml: {sentence}"):
        profiles.parse(changed(tmp_path, **changes))


@pytest.mark.parametrize(
    ("part", "key", "meant"),
    [
        ("models_grpo", "smollm2-135", "smollm2-135m"), ("models_sampling", "smollm2-135", "smollm2-135m"),
        ("strategies_grpo", "trajectory_grop", "trajectory_grpo"),
    ],
)  # fmt: skip
def test_changes_of_what_the_profile_does_not_have_are_refused(tmp_path, part, key, meant):
    sentence = f"^mine.yaml: {part} changes '{key}', which the profile doesn't have; allowed: .*did you mean '{meant}'"
    with pytest.raises(UserError, match=sentence):
        profiles.parse(changed(tmp_path, **{part: {key: {}}}))


@pytest.mark.parametrize("part", ["models_grpo", "models_sampling"])
def test_mistake_in_what_a_model_changes_is_found_when_the_profile_is_read(tmp_path, part):
    with pytest.raises(UserError, match="^mine.yaml: .*tempratur"):
        profiles.parse(changed(tmp_path, **{part: {"smollm2-135m": {"tempratur": 1.0}}}))


def test_mistake_in_what_a_task_changes_is_found_when_the_profile_is_read(tmp_path):
    splits = {"source": "embedded", "train": 8, "valid": 8, "test": 8}
    with pytest.raises(UserError, match="^mine.yaml: .*stepz"):
        profiles.parse(changed(tmp_path, tasks={"banking77": {"splits": splits, "grpo": {"stepz": 3}}}))


def test_step_that_takes_more_inputs_than_a_task_has_is_refused(tmp_path):
    splits = {"source": "embedded", "train": 8, "valid": 8, "test": 8}
    sentence = "^mine.yaml: a step of .* takes 9 inputs, and banking77 has 8 training examples: set `inputs` lower"
    with pytest.raises(UserError, match=sentence):
        profiles.parse(changed(tmp_path, tasks={"banking77": {"splits": splits, "grpo": {"inputs": 9}}}))


@pytest.mark.parametrize("text", ["", "- a\n- b\n", "name: [", "just words"])
def test_file_that_is_no_mapping_is_refused(tmp_path, text):
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    with pytest.raises(UserError, match="^mine.yaml: "):
        profiles.parse(file)
