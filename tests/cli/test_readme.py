"""What the README and the docs say to type is typed here."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.speed import slow_unless

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(language: str) -> list[tuple[str, str]]:
    found = [
        (page.name, text) for page in PAGES for text in re.findall(rf"```{language}\n(.*?)```", page.read_text(), re.S)
    ]
    return [(f"{name}-{place}", text) for place, (name, text) in enumerate(found)]


SHELL = blocks("bash")


def run(command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    binaries = str(Path(sys.executable).parent)
    environment = os.environ | {"PATH": f"{binaries}{os.pathsep}{os.environ['PATH']}", "RAY_ADDRESS": ""}
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=550, check=False
    )


@pytest.mark.parametrize(
    ("name", "script"),
    [slow_unless(name == "README.md-0", name, text) for name, text in SHELL],
    ids=[name for name, _ in SHELL],
)
def test_shell_examples_run(name: str, script: str, tmp_path: Path) -> None:
    result = run(["bash", "-euo", "pipefail", "-c", script], tmp_path)
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-2000:]
    assert "report" in result.stdout


PYTHON = blocks("python")


@pytest.mark.parametrize(
    ("name", "script"),
    [slow_unless(name.startswith("README"), name, text) for name, text in PYTHON],
    ids=[name for name, _ in PYTHON],
)
def test_python_examples_run(name: str, script: str, tmp_path: Path) -> None:
    result = run([sys.executable, "-c", script], tmp_path)
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-2000:]
    assert result.stdout.strip()


def test_the_quick_start_names_real_targets() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.M))
    named = set(re.findall(r"^    make ([a-z]+)$", (ROOT / "README.md").read_text(), re.M))
    assert named == {"train", "test"}
    assert named <= targets


def test_links_between_pages_lead_somewhere() -> None:
    links = [(page, link) for page in PAGES for link in re.findall(r"\]\(([^)#:]+)\)", page.read_text())]
    assert links
    for page, link in links:
        assert (page.parent / link).exists(), f"{page.name} links to {link}"
