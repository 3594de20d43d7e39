"""What the README tells a reader to type and to open exists."""

from __future__ import annotations

import ast
import importlib.util
import inspect
import operator
import pkgutil
import re
import shutil
import subprocess

import pytest
import typer
import yaml

from mmgrpo import cells, profiles
from mmgrpo.__main__ import app
from mmgrpo.paths import PROJECT
from mmgrpo.report import figures

README = (PROJECT / "README.md").read_text(encoding="utf-8")
PROSE = re.sub(r"^```.*?^```", "", README, flags=re.DOTALL | re.MULTILINE)
KNOWN_COMMANDS = ("make", "python -m mmgrpo")


def blocks(text: str, language: str) -> list[str]:
    """The fenced blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)


def commands(text: str) -> list[str]:
    """Lines of shell blocks and commands in running text, without their comments."""
    lines = [line for block in blocks(text, "bash") for line in block.splitlines()]
    inline = re.findall(
        r"`((?:make|python -m)(?: [^`]*)?)`", re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    )
    return [command for line in [*lines, *inline] if (command := line.partition(" #")[0].strip())]


def links(text: str) -> list[str]:
    """Files and folders that are linked, and those of this repository that are named in code spans; NAME is any."""
    linked = [target for target in re.findall(r"\]\(([^)]+)\)", text) if "://" not in target]
    named = re.findall(r"`((?:src|notebooks|tests|data|figures)/[\w./*-]*)`", text)
    return [*linked, *(target.replace("NAME", "*") for target in named)]


def names_in(module: ast.Module) -> list[tuple[str, str]]:
    """(module, name) of every `from module import name`, and of every `name.attribute` of an imported module."""
    wanted, imported = [], {}
    for node in ast.walk(module):
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                wanted.append((node.module, alias.name))
                imported[alias.asname or alias.name] = f"{node.module}.{alias.name}"
        elif isinstance(node, ast.Import):
            imported |= {alias.asname or alias.name: alias.name for alias in node.names}
    for node in ast.walk(module):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in imported:
            wanted.append((imported[node.value.id], node.attr))
    return wanted


def exists(module: str, name: str) -> bool:
    found = importlib.import_module(module)
    return hasattr(found, name) or importlib.util.find_spec(f"{module}.{name}") is not None


def test_the_readme_is_read_as_it_is_written():
    text = "```bash\nmake a  # b\nls x\n```\n`make c D=e` [f](g/h.md) [i](https://j) `src/k.py` `src/NAME.py`\n"
    assert commands(text) == ["make a", "ls x", "make c D=e"]
    assert links(text) == ["g/h.md", "src/k.py", "src/*.py"]
    found = names_in(ast.parse("import a.b as c\nfrom d import e\nc.f(e.g)"))
    assert found == [("d", "e"), ("a.b", "f"), ("d.e", "g")]


def test_every_command_is_of_a_kind_that_is_checked_here():
    assert len(commands(README)) > 5
    assert [command for command in commands(README) if not command.startswith(KNOWN_COMMANDS)] == []


@pytest.mark.skipif(shutil.which("make") is None, reason="no make here")
@pytest.mark.parametrize("command", [c for c in dict.fromkeys(commands(README)) if c.startswith("make")])
def test_make_has_every_target(command):
    words = [word for word in command.split()[1:] if not word.startswith("PYTHON=")]  # a path of the reader's
    done = subprocess.run(["make", "-n", *words], cwd=PROJECT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    if "PROFILE=" in command:
        assert re.search(r"PROFILE=(\w+)", command)[1] in profiles.names()


def program_calls(text: str) -> list[tuple[str, tuple[str, ...]]]:
    """(command, options) of every `-m mmgrpo ...`."""
    found = re.findall(r"-m mmgrpo (\w+)(.*)", text)
    return [(command, tuple(re.findall(r"--[\w-]+", rest))) for command, rest in found]


def test_calls_of_the_command_line_are_found_with_their_options():
    assert program_calls("$(PY) -m mmgrpo grid --a $(B) $(if $(C),--d)\n") == [("grid", ("--a", "--d"))]


@pytest.mark.parametrize("call", sorted(set(program_calls(README + (PROJECT / "Makefile").read_text()))))
def test_the_command_line_knows_every_command_and_option(call):
    command, options = call
    known = typer.main.get_command(app).commands
    assert command in known
    assert set(options) <= {option for parameter in known[command].params for option in parameter.opts}


@pytest.mark.parametrize("block", blocks(README, "python"))
def test_python_compiles_and_imports_what_there_is(block):
    missing = [f"{module}.{name}" for module, name in names_in(ast.parse(block)) if not exists(module, name)]
    assert missing == []


def test_settings_named_in_python_are_settings():
    from mmgrpo import settings

    calls = [
        node for block in blocks(README, "python") for node in ast.walk(ast.parse(block)) if isinstance(node, ast.Call)
    ]
    named = [(node.func.id, key.arg) for node in calls if isinstance(node.func, ast.Name) for key in node.keywords]
    of_settings = [(cls, key) for cls, key in named if cls.endswith("Settings")]
    assert of_settings
    assert [each for each in of_settings if each[1] not in getattr(settings, each[0]).model_fields] == []


def test_functions_are_called_with_arguments_that_they_take():
    checked = 0
    for block in blocks(README, "python"):
        tree = ast.parse(block)
        imported = {name: f"{module}.{name}" for module, name in names_in(tree) if module.startswith("mmgrpo")}
        for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
            owner, _, attribute = ast.unparse(call.func).partition(".")
            if owner in imported and call.keywords and "Settings" not in owner:
                function = operator.attrgetter(attribute)(pkgutil.resolve_name(imported[owner])) if attribute else None
                function = function or pkgutil.resolve_name(imported[owner])
                assert {key.arg for key in call.keywords} <= set(inspect.signature(function).parameters), owner
                checked += 1
    assert checked


@pytest.mark.parametrize("target", dict.fromkeys(links(README)))
def test_every_linked_or_named_file_exists(target):
    assert list(PROJECT.glob(target)) if "*" in target else (PROJECT / target).exists()


def test_strategies_profiles_and_figures_of_the_tables_are_those_that_there_are():
    rows = {row[0] for row in re.findall(r"^\| `(\w+)` \| (.*) \|$", PROSE, flags=re.MULTILINE)}
    assert set(cells.NOTEBOOK_OF) <= rows
    assert set(profiles.names()) <= rows
    assert {name for name in figures.FIGURES if f"`{name}`" not in README} == set()


def test_notebooks_named_by_number_exist():
    named = set(re.findall(r"`(\d\d_\w+)`", README))
    assert named and [name for name in named if not (PROJECT / "notebooks" / f"{name}.ipynb").exists()] == []


def test_hardware_hours_are_the_published_ones():
    published = yaml.safe_load((PROJECT / "src/mmgrpo/published.yaml").read_text(encoding="utf-8"))["cost"]
    assert f"{published['module_grpo']['hours']} hours on 2 × H100" in README
    assert f"{published['prompt_optimization']['hours']} hours on 1 × H100" in README
