"""`optimum-cli quantaudit`, from an installed wheel and from an editable install, as its users start it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from quantaudit.card.schema import dump_card
from tests.card_factory import make_card

ROOT = Path(__file__).resolve().parents[2]
# A folder of packages as site-packages is one (.pth files are read), in an interpreter that does not see this checkout.
PROGRAM = """
import os, site, sys
root, target, *arguments = sys.argv[1:]
sys.path[:] = [path for path in sys.path if os.path.realpath(path or ".") != root]
site.addsitedir(target)
sys.argv = ["optimum-cli", *arguments]
from optimum.commands.optimum_cli import main
main()
"""
BUILD = "import sys, hatchling.build as backend; print(getattr(backend, sys.argv[1])(sys.argv[2]))"

OptimumCli = Callable[..., subprocess.CompletedProcess[str]]


def install(kind: str, folder: Path) -> Path:
    """Build a wheel without network, and install it into a folder of its own."""
    wheels, target = folder / "wheels", folder / "site"
    wheels.mkdir()
    built = subprocess.run(
        [sys.executable, "-c", BUILD, kind, str(wheels)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert built.returncode == 0, built.stderr
    (wheel,) = wheels.glob("*.whl")
    pip = ["-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(target), str(wheel)]
    done = subprocess.run([sys.executable, *pip], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return target


@pytest.fixture(scope="module", params=["build_wheel", "build_editable"])
def site(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return install(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture
def optimum_cli(site: Path, tmp_path: Path) -> OptimumCli:
    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", PROGRAM, str(ROOT), str(site), *map(str, arguments)]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)

    return run


@pytest.mark.parametrize("site", ["build_editable"], indirect=True)
def test_the_verbs_are_those_of_quantaudit(optimum_cli: OptimumCli) -> None:
    from quantaudit.cli import app

    done = optimum_cli("quantaudit", "--help")
    assert done.returncode == 0, done.stderr
    assert "Usage: optimum-cli quantaudit" in done.stdout
    verbs = [command.name for command in app.registered_commands]
    assert "conform" in verbs
    for verb in verbs:
        assert f"│ {verb} " in done.stdout


def test_a_card_is_rendered_with_the_shipped_templates(optimum_cli: OptimumCli, tmp_path: Path) -> None:
    card = tmp_path / "card.json"
    card.write_text(dump_card(make_card()))
    done = optimum_cli("quantaudit", "render", card, "--out", tmp_path / "page")
    assert done.returncode == 0, done.stderr
    assert "</html>" in (tmp_path / "page" / "card.html").read_text()


@pytest.mark.parametrize("site", ["build_wheel"], indirect=True)
def test_errors_and_exit_codes_are_handed_on(optimum_cli: OptimumCli, tmp_path: Path) -> None:
    done = optimum_cli("quantaudit", "render", tmp_path / "none.json", "--out", tmp_path / "page")
    assert done.returncode == 2
    assert "error: " in done.stderr
    assert "Traceback" not in done.stderr


def test_nothing_else_of_optimum_is_shipped(site: Path) -> None:
    """Optimum's namespace must stay one: no `__init__.py` anywhere in it."""
    for folder in (site, ROOT):
        files = list((folder / "optimum").rglob("*.py"))
        assert [path.name for path in files] == ["register_quantaudit.py"] or (folder == site and not files)
