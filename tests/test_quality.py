"""Style, spelling, types, and the two commands of the README: part of the test run, so that CI needs one command."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TOOLS = {
    "ruff check": ["ruff", "check", "--output-format", "concise", "."],
    "ruff format": ["ruff", "format", "--check", "."],
    "mypy": ["mypy"],
    "codespell": ["codespell_lib", "lorakit", "tests", "docs", "examples", "README.md", "CHANGELOG.md"],
}


@pytest.mark.slow
@pytest.mark.parametrize("command", TOOLS.values(), ids=TOOLS)
def test_tool_has_no_complaints(command):
    done = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def readme_commands() -> list[str]:
    return re.findall(r"^python3 -m venv .*$", (ROOT / "README.md").read_text(), flags=re.M)


def test_readme_has_two_commands_and_ci_runs_the_second():
    main_job, tests = readme_commands()
    assert "lorakit merge examples/adapters/" in main_job
    assert tests in (ROOT / ".ci" / "run").read_text().splitlines()


def test_the_inputs_of_the_main_job_are_there():
    for path in re.findall(r"examples/adapters/\S+", readme_commands()[0]):
        assert (ROOT / path / "adapter_model.safetensors").is_file()


@pytest.mark.slow
def test_the_main_job_runs(tmp_path):
    """As the README has it, but for the environment."""
    words = readme_commands()[0].partition(".venv/bin/lorakit ")[2].split()
    words = [str(ROOT / word) if word.startswith("examples/") else word for word in words]
    done = subprocess.run(
        [sys.executable, "-m", "lorakit", *words], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "merged" / "adapter_model.safetensors").is_file()


def test_files_stay_small():
    long = {
        str(path.relative_to(ROOT)): n
        for path in (ROOT / "lorakit").rglob("*.py")
        if (n := len(path.read_text().splitlines())) > 400
    }
    assert not long
