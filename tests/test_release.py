"""What is published: distributions that are whole, and files about the project that agree with one another."""

from __future__ import annotations

import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml

import lorakit

ROOT = Path(lorakit.__file__).parents[1]
GITHUB = ROOT / ".github"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
CONDA_NAMES = {"torch": "pytorch"}  # where conda-forge has another name than PyPI


def loaded(path):
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def test_citation_and_changelog_are_of_this_version():
    assert loaded(GITHUB / "CITATION.cff")["version"] == lorakit.__version__
    assert loaded(GITHUB / "CITATION.cff")["license"] == PROJECT["license"]
    assert f"\n## {lorakit.__version__}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_the_conda_recipe_needs_what_the_package_needs():
    recipe = loaded(ROOT / "docs" / "packaging" / "recipe.yaml")
    run = {entry for entry in recipe["requirements"]["run"] if not entry.startswith("python ")}
    needed = {re.match(r"([\w-]+)(.*)", entry).groups() for entry in PROJECT["dependencies"]}
    assert run == {f"{CONDA_NAMES.get(name, name)} {version}" for name, version in needed}
    assert recipe["context"]["version"] == lorakit.__version__
    assert f">={recipe['context']['python_min']}" == PROJECT["requires-python"]
    scripts = recipe["build"]["python"]["entry_points"]
    assert scripts == [f"{name} = {target}" for name, target in PROJECT["scripts"].items()]


def test_the_workflows_test_the_pythons_and_systems_that_the_package_names():
    jobs = loaded(GITHUB / "workflows" / "tests.yml")["jobs"]
    matrix = jobs["systems"]["strategy"]["matrix"]
    named = {found[1] for name in PROJECT["classifiers"] if (found := re.search(r":: (3\.\d+)$", name))}
    assert set(matrix["python"]) == named
    assert len(matrix["os"]) == sum(name.startswith("Operating System") for name in PROJECT["classifiers"])
    assert "bash .ci/run" in [step.get("run") for step in jobs["complete"]["steps"]]


@pytest.mark.parametrize("path", sorted(GITHUB.rglob("*.yml")), ids=lambda path: path.name)
def test_every_form_and_workflow_is_yaml_with_its_fields(path):
    content = loaded(path)
    if path.parent.name == "workflows":
        assert {"name", True, "permissions", "jobs"} <= set(content)  # True is how YAML 1.1 reads `on`
        for job in content["jobs"].values():
            assert {"runs-on", "steps"} <= set(job)
            assert all("uses" in step or "run" in step for step in job["steps"])
    elif path.name != "config.yml":
        assert {"name", "description", "body"} <= set(content)
        ids = [field["id"] for field in content["body"]]
        assert len(ids) == len(set(ids))


@pytest.mark.parametrize("path", sorted(GITHUB.glob("*.md")), ids=lambda path: path.name)
def test_links_between_these_files_lead_somewhere(path):
    for target in re.findall(r"\]\(([^)#]+)\)", path.read_text(encoding="utf-8")):
        assert target.startswith("https://") or (path.parent / target).exists(), target


@pytest.fixture(scope="module")
def distributions(tmp_path_factory):
    """Build the source distribution, and the wheel from it, as PyPI gets them; nothing is fetched."""
    out = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", out, ROOT]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return out


@pytest.mark.slow
def test_the_wheel_holds_the_package_and_nothing_else(distributions):
    (wheel,) = distributions.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    about = f"lorakit-{lorakit.__version__}.dist-info"
    inside = {name for name in names if not name.startswith(f"{about}/")}
    sources = (path for path in (ROOT / "lorakit").rglob("*") if path.is_file() and path.suffix != ".pyc")
    assert inside == {path.relative_to(ROOT).as_posix() for path in sources}
    assert f"{about}/licenses/LICENSE" in names
    assert wheel.stat().st_size < 2e6


@pytest.mark.slow
def test_the_source_distribution_can_be_tested_and_documented(distributions):
    (source,) = distributions.glob("*.tar.gz")
    with tarfile.open(source) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    for folder in ("lorakit", "tests", "docs", "examples"):
        python = (
            path
            for path in (ROOT / folder).rglob("*.py")
            if not {"_build", "auto_examples", "generated"} & set(path.parts)
        )
        assert {path.relative_to(ROOT).as_posix() for path in python} <= names
    assert {"CHANGELOG.md", "LICENSE", "README.md", "pyproject.toml", "setup.cfg", ".ci/run"} <= names
    assert "examples/adapters/icd10/adapter_model.safetensors" in names
    assert source.stat().st_size < 40e6


@pytest.mark.slow
def test_twine_finds_nothing_wrong(distributions):
    command = [sys.executable, "-m", "twine", "check", "--strict", *distributions.iterdir()]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
