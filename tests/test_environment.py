"""The files that say what to install agree: pyproject.toml, requirements.in, the two locks and environment.yml.

Every failure is mended by `make lock`. The small locks written out here show that each check can fail.
"""

from __future__ import annotations

import re
import tomllib

import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from mmgrpo.paths import PROJECT

CUDA_ONLY = re.compile(r"nvidia-|cuda-|triton$")


def pins(lock: str) -> dict[str, str]:
    """Requirement line by package, of a lock file's text."""
    lines = re.findall(r"^([a-z0-9][^\\\n]*?) *\\?$", lock, flags=re.MULTILINE)
    return {canonicalize_name(Requirement(line).name): line for line in lines}


def unhashed(lock: str) -> list[str]:
    """Packages of a lock file's text that no sha256 follows."""
    blocks = re.split(r"^(?=[a-z0-9])", lock, flags=re.MULTILINE)[1:]
    return [name for block in blocks for name in pins(block) if not re.search(r"--hash=sha256:[0-9a-f]{64}\b", block)]


def unmet(requirements: list[str], lock: dict[str, str]) -> list[str]:
    """Those of `requirements` whose package the lock lacks or holds at a version they do not allow."""
    return [line for line in requirements if not _meets(Requirement(line), lock)]


def _meets(requirement: Requirement, lock: dict[str, str]) -> bool:
    line = lock.get(canonicalize_name(requirement.name))
    return line is not None and requirement.specifier.contains(_version(line))


def _version(line: str) -> str:
    (specifier,) = Requirement(line).specifier
    assert specifier.operator == "==", f"{line!r} does not pin one version"
    return specifier.version


def read(name: str) -> str:
    return (PROJECT / name).read_text(encoding="utf-8")


def project() -> dict:
    return tomllib.loads(read("pyproject.toml"))["project"]


TOY_LOCK = f"""# Made by hand
apple==1.0 \\
    --hash=sha256:{"a" * 64}
    # via pie
pear==2.0 ; sys_platform == 'linux'
    # via pie
"""


def test_pins_are_read_with_their_markers():
    assert pins(TOY_LOCK) == {"apple": "apple==1.0", "pear": "pear==2.0 ; sys_platform == 'linux'"}


def test_a_pin_without_a_hash_is_found():
    assert unhashed(TOY_LOCK) == ["pear"]


def test_a_missing_and_an_outgrown_dependency_are_found():
    assert unmet(["Apple>=1", "pear>=3", "plum"], pins(TOY_LOCK)) == ["pear>=3", "plum"]


def test_every_package_of_the_lock_has_a_hash():
    assert pins(read("requirements.lock"))
    assert unhashed(read("requirements.lock")) == []


def test_each_package_is_in_one_lock_only():
    assert pins(read("requirements.lock")).keys().isdisjoint(pins(read("torch.lock")))


def test_only_torch_and_its_cuda_libraries_go_without_hashes():
    locked = pins(read("torch.lock"))
    assert "torch" in locked
    assert [name for name in locked if not CUDA_ONLY.match(name)] == ["torch"]
    assert [name for name in pins(read("requirements.lock")) if CUDA_ONLY.match(name)] == []


def test_the_locks_hold_every_direct_dependency():
    locked = pins(read("requirements.lock")) | pins(read("torch.lock"))
    direct = project()["dependencies"] + project()["optional-dependencies"]["test"]
    exact = [line for line in read("requirements.in").splitlines() if line and not line.startswith("#")]
    assert unmet(direct + exact, locked) == []


def test_conda_installs_what_the_locks_hold():
    conda = yaml.safe_load(read("environment.yml"))["dependencies"]
    (from_pip,) = [entry["pip"] for entry in conda if isinstance(entry, dict)]
    options, listed = from_pip[:3], from_pip[3:]
    assert options == ["-c torch.lock", "-e .", "torch"]
    assert listed == list(pins(read("requirements.lock")).values())


def test_conda_takes_a_python_that_the_project_allows():
    conda = yaml.safe_load(read("environment.yml"))["dependencies"]
    (python,) = [entry for entry in conda if isinstance(entry, str) and entry.startswith("python=")]
    allowed = Requirement(f"python{project()['requires-python']}").specifier
    assert allowed.contains(python.removeprefix("python="))
