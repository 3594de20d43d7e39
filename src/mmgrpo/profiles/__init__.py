"""Profiles: one YAML file each beside this one, read into `Profile`."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import yaml
from pydantic import ValidationError

from mmgrpo import paths, settings
from mmgrpo.errors import UserError, nearest
from mmgrpo.settings import Profile


def names() -> list[str]:
    """The profiles that can be named."""
    return sorted(file.stem for file in paths.PROFILES.glob("*.yaml"))


def load(name: str) -> Profile:
    """Read the profile `name`; raises UserError for an unknown name, key or value."""
    if name not in names():
        raise UserError(f"Unknown profile {name!r}; {nearest(name, names())}.")
    profile = parse(paths.PROFILES / f"{name}.yaml")
    if profile.name != name:
        raise UserError(f"{name}.yaml says `name: {profile.name}`: write `name: {name}` there.")
    return profile


def parse(file: Path) -> Profile:
    """Read one profile file."""
    return _parsed(file.name, file.read_text(encoding="utf-8"))


@cache
def _parsed(name: str, text: str) -> Profile:
    """Thousands of cells ask for the same few profiles; one that was edited meanwhile is another text."""
    try:
        profile = Profile(**yaml.safe_load(text))
        for part, allowed in (
            ("models_grpo", profile.models), ("models_sampling", profile.models), ("strategies_grpo", profile.strategies)
        ):  # fmt: skip
            for key in getattr(profile, part):
                if key not in allowed:
                    raise UserError(
                        f"{name}: {part} changes {key!r}, which the profile doesn't have; {nearest(key, list(allowed))}."
                    )
        for model in profile.models:  # what models and tasks change is checked with what they change
            profile.sampling_for(model)
            for task in profile.tasks:
                for strategy in profile.strategies:
                    inputs, examples = profile.grpo_for(task, model, strategy).inputs, profile.tasks[task].splits.train
                    if inputs > examples:
                        raise UserError(
                            f"{name}: a step of {strategy} takes {inputs} inputs, and {task} has {examples} training "
                            "examples: set `inputs` lower or `splits.train` higher."
                        )
        return profile
    except (ValidationError, TypeError, yaml.YAMLError) as error:
        raise UserError(f"{name}: {_first_problem(error)}") from None


def _first_problem(error: Exception) -> str:
    if not isinstance(error, ValidationError):
        return f"not a mapping of settings ({error})."
    problem = error.errors()[0]
    place = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        model = _model_at(getattr(settings, error.title), problem["loc"][:-1])
        return f"unknown key {place!r}; {nearest(str(problem['loc'][-1]), list(model.model_fields))}."
    return f"{place}: {problem['msg'].removeprefix('Value error, ')} (given: {problem.get('input')!r})."


def _model_at(model: type, location: tuple) -> type:
    """The settings class at `location`, for naming the keys that it takes."""
    for part in location:
        if hasattr(model, "model_fields") and part in model.model_fields:
            annotation = model.model_fields[part].annotation
            arguments = getattr(annotation, "__args__", None)
            model = arguments[-1] if arguments else annotation
    return model
