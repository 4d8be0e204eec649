"""What an installation puts into site-packages, and what a folder of the repository is."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import walcast

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PACKAGES = [ROOT / package for package in PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]]


def test_every_package_of_the_wheel_is_named_after_walcast() -> None:
    assert [package.name for package in PACKAGES if not package.name.startswith("walcast")] == []
    assert all((package / "__init__.py").is_file() for package in PACKAGES)


def test_every_package_of_the_wheel_is_held_to_the_import_rules_and_type_checked() -> None:
    names = {package.name for package in PACKAGES}
    assert set(PROJECT["tool"]["importlinter"]["root_packages"]) == names
    assert names <= set(PROJECT["tool"]["mypy"]["packages"])


def test_every_folder_of_a_package_can_be_imported() -> None:
    """A folder without `__init__.py` would be left out by the import rules."""
    folders = {module.parent for package in PACKAGES for module in package.rglob("*.py")}
    assert sorted(str(folder) for folder in folders if not (folder / "__init__.py").is_file()) == []


def test_every_module_that_the_architecture_names_by_its_path_exists() -> None:
    """Whole, or by the end of its path."""
    texts = [(ROOT / "docs" / name).read_text() for name in ("architecture.md", "security.md")]
    named = {path for text in texts for path in re.findall(r"`([\w/]+\.py)`", text)}
    tops = ("walcast", "primary", "follower", "node", "tests", "bench", "examples", "proto")
    every = {f"/{path.relative_to(ROOT)}" for top in tops for path in (ROOT / top).rglob("*.py")}
    assert named
    assert sorted(path for path in named if not any(one.endswith(f"/{path}") for one in every)) == []


def test_every_place_that_the_glossary_names_exists() -> None:
    """A file or a folder by the end of its path; a module or a name in one by its dotted name."""
    rows = re.findall(r"^\|.*\| `([^`|]+)` \|$", (ROOT / "docs" / "glossary.md").read_text(), re.M)
    every = {f"/{path.relative_to(ROOT)}" for package in PACKAGES for path in (package, *package.rglob("*"))}
    assert rows
    assert [row for row in rows if not _exists(row, every)] == []


def _exists(place: str, every: set[str]) -> bool:
    if "/" in place or place.endswith(".py"):
        return any(path.endswith(f"/{place.rstrip('/')}") for path in every)
    if place in walcast.__all__ or place.removeprefix("walcast.") in walcast.__all__:
        return True
    inside = place.replace(".", "/")
    return any(path.endswith((f"/{inside}", f"/{inside}.py")) for path in every)
