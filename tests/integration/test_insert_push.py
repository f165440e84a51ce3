"""`quantaudit insert --push`: the Hub's own client against a stand-in of its API; a pull request undoes nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants
from huggingface_hub.utils import close_session

import quantaudit
from quantaudit.card.readme import hub as product
from quantaudit.card.readme.document import BEGIN, END
from quantaudit.card.readme.section import Section, section
from quantaudit.card.schema import dump_card
from quantaudit.errors import FormatError, OutputError
from tests.card_factory import make_card
from tests.command_line import Capture, run
from tests.hub import TOKEN, Answer, Hub, Repository, serving
from tests.integration.test_insert import FILES, a_card
from tests.readmes import READMES

MODEL = "org/model"
README = READMES["front matter with comments"]


@pytest.fixture(scope="module")
def card_text() -> str:
    return dump_card(a_card())


@pytest.fixture(scope="module")
def given() -> Section:
    card = a_card()
    return section(card, dump_card(card).encode(), lambda recipe: True)


@pytest.fixture
def hub(tmp_path: Path, card_text: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """The stand-in, where the client looks for the Hub; a folder with a card."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "card.json").write_text(card_text, encoding="utf-8")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # its chunks go to another server
    with serving() as hub:
        _point_to(hub.address, monkeypatch)
        yield hub
    close_session()


def _point_to(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What HF_ENDPOINT does where it is set before the client is imported."""
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")


@pytest.fixture
def repository(hub: Hub) -> Repository:
    return hub.repository(MODEL, {"README.md": README, "model.safetensors": b"weights", "config.json": b"{}"})


def push(capsys: Capture, *more: str) -> tuple[int, str, str]:
    return run(capsys, "insert", "card.json", "--push", MODEL, *more)


def test_a_pull_request_is_opened_and_its_address_printed(
    hub: Hub, repository: Repository, tmp_path: Path, capsys: Capture
) -> None:
    before = repository.files()
    code, out, _ = push(capsys)
    assert (code, out) == (0, f"{hub.address}/{MODEL}/discussions/1\n")
    proposed = repository.files("refs/pr/1")
    assert proposed["README.md"].startswith(README)
    assert sorted(proposed.keys() - before.keys()) == [f"quantaudit/{name}" for name in FILES]
    assert {name: proposed[name] for name in before if name != "README.md"} == {
        name: data for name, data in before.items() if name != "README.md"
    }
    assert repository.files() == before
    assert [path.name for path in tmp_path.iterdir()] == ["card.json"]
    # Here it gives the same bytes.
    (tmp_path / "README.md").write_bytes(README)
    quantaudit.insert("card.json", "README.md")
    assert {name: (tmp_path / name).read_bytes() for name in proposed.keys() - before.keys() | {"README.md"}} == {
        name: proposed[name] for name in proposed.keys() - before.keys() | {"README.md"}
    }


def test_nothing_is_proposed_twice(hub: Hub, repository: Repository, capsys: Capture) -> None:
    assert push(capsys)[0] == 0
    code, out, _ = push(capsys)  # it is open
    assert (code, out) == (0, f"{hub.address}/{MODEL}/discussions/1\n")
    repository.commit(repository.files("refs/pr/1"))  # it is merged
    hub.calls.clear()
    code, out, err = push(capsys)
    assert (code, out) == (0, "")
    assert "nothing to change" in err
    assert len(repository.requests) == 1
    assert not any("preupload" in call or "commit" in call for call in hub.calls)
    # Another card is another proposal, and takes with it what it does not give.
    Path("card.json").write_text(dump_card(make_card(4)))
    assert push(capsys)[:2] == (0, f"{hub.address}/{MODEL}/discussions/2\n")
    assert "quantaudit/recipe.yaml" not in repository.files("refs/pr/2")


def test_what_others_change_meanwhile_is_not_undone(hub: Hub, repository: Repository) -> None:
    """The proposal says on which commit it is based, and so is merged with what came after, not over it."""
    read = repository.refs["main"]
    hub.before_commit = lambda: repository.commit({**repository.files(), "README.md": README + b"\nmore\n"})
    result = quantaudit.insert("card.json", push=MODEL)
    assert result.pull_request == f"{hub.address}/{MODEL}/discussions/1"
    assert result.differences[0] == "README.md has no section"
    assert repository.requests[0]["parent"] == read
    assert repository.files("refs/pr/1")["README.md"].startswith(README)
    assert repository.files()["README.md"].endswith(b"more\n")


def test_the_page_goes_with_its_card(repository: Repository, capsys: Capture) -> None:
    seal = json.loads(Path("card.json").read_text())["seal"]
    Path("card.html").write_text(f'<meta name="quantaudit-seal" content="{seal}">')
    assert push(capsys)[0] == 0
    proposed = repository.files("refs/pr/1")
    assert proposed["quantaudit/card.html"] == Path("card.html").read_bytes()
    assert b"[card.html](quantaudit/card.html) is a page of it" in proposed["README.md"]
    Path("card.html").write_text("another")
    code, _, err = push(capsys)
    assert code == 0
    assert "card.html is left out: it is not the page of this card" in err
    assert "quantaudit/card.html" not in repository.files("refs/pr/2")


def test_the_front_matter_is_extended_where_asked(repository: Repository, capsys: Capture) -> None:
    card = quantaudit.load_card("card.json")
    model = card.model.model_copy(update={"spec": "org/base", "revision": "0" * 40})
    Path("card.json").write_text(dump_card(card.model_copy(update={"model": model})))
    quantized = json.dumps({"quantization_config": {"quant_method": "compressed-tensors"}}).encode()
    repository.commit({**repository.files(), "config.json": quantized})
    assert push(capsys, "--front-matter")[0] == 0
    lines = repository.files("refs/pr/1")["README.md"].decode().splitlines()
    added = ["base_model_relation: quantized", "  - quantaudit"]
    assert [line for line in lines[: lines.index("# Title")] if line not in README.decode().splitlines()] == added


def test_both_places_at_once(repository: Repository, tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "README.md").write_bytes(b"# Here\n")
    code, out, err = run(capsys, "insert", "card.json", "README.md", "--push", MODEL)
    assert (code, out.count("\n")) == (0, 1)
    assert "wrote README.md" in err
    assert (tmp_path / "README.md").read_bytes().startswith(b"# Here\n")
    assert repository.files("refs/pr/1")["README.md"].startswith(README)


GATED = Answer(403, {"X-Error-Code": "GatedRepo"})
REFUSALS: dict[str, tuple[str, Answer, str]] = {
    "a token that is not accepted": (
        "GET /api/models",
        Answer(401, {"X-Error-Message": "Invalid credentials in Authorization header"}),
        "does not accept the token",
    ),
    "a private repository": (
        "GET /api/models",
        Answer(401, {"X-Error-Code": "RepoNotFound"}),
        "no such model on the Hub, or the token may not see it",
    ),
    "a token without the right": (
        "/commit/",
        Answer(403, {"X-Error-Message": "no write"}),
        "may not open pull requests",
    ),
    "an upload without the right": ("/preupload/", Answer(403), "may not open pull requests"),
    "no such repository": ("GET /api/models", Answer(404, {"X-Error-Code": "RepoNotFound"}), "no such model"),
    "a gated repository": ("/resolve/", GATED, "is gated"),
    "a gated repository's commit": ("/commit/", GATED, "is gated"),
    "a conflict": ("/commit/", Answer(412, {"X-Error-Message": "A commit has happened since"}), "changed meanwhile"),
    "too many requests": ("/commit/", Answer(429), "too many requests"),
    "a failure": ("/commit/", Answer(500), "the Hub fails (status 500)"),
    "a bad request": ("/commit/", Answer(400, {"X-Error-Message": "too odd"}), "the Hub refuses (status 400: too odd)"),
    "a storage that fails": ("PUT /large/", Answer(403), "may not open pull requests"),
    "no JSON": ("GET /api/models", Answer(200, body=b"<html>"), "answer cannot be used"),
    "JSON of something else": ("/paths-info/", Answer(200, body=b'[{"type": "file"}]'), "answer cannot be used"),
    "no commit": ("GET /api/models/org/model", Answer(200, body=b'{"id": "org/model"}'), "it names no commit"),
    "an answer that does not come": ("/commit/", Answer(200, wait=20.0), "does not answer"),
    "a file that does not come": ("GET /org/model/resolve/", Answer(500), "the Hub fails (status 500)"),
    "front matter that the Hub refuses": (
        "/validate-yaml",
        Answer(400, body=b'{"errors": [{"message": "license is unknown"}]}'),
        "the Hub refuses the README's front matter: Invalid metadata in README.md. - license is unknown",
    ),
}


@pytest.mark.usefixtures("repository")
@pytest.mark.parametrize("name", REFUSALS)
def test_a_refusal_is_an_error_of_two_lines(
    hub: Hub, given: Section, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(product, "TIMEOUT", 0.5)
    pattern, answer, words = REFUSALS[name]
    hub.instead[pattern] = answer
    with pytest.raises(OutputError) as error:
        product.push_section(given, MODEL)
    text = str(error.value)
    assert words in text
    assert text.startswith(f"--push {MODEL}: ")
    assert len(text.splitlines()) == 2
    assert TOKEN not in text


@pytest.mark.usefixtures("repository")
def test_a_refusal_changes_nothing_here(hub: Hub, tmp_path: Path, capsys: Capture) -> None:
    hub.instead["/commit/"] = Answer(400, body=json.dumps({"error": "\x1b[31mno\nway"}).encode())
    (tmp_path / "README.md").write_bytes(b"# Here\n")
    code, out, err = run(capsys, "insert", "card.json", "README.md", "--push", MODEL)
    assert (code, out) == (2, "")
    assert err.startswith(f"error: --push {MODEL}: the Hub refuses (status 400: \\x1b[31mno way)\n")
    assert len(err.splitlines()) == 2
    assert (tmp_path / "README.md").read_bytes() == b"# Here\n"
    assert not (tmp_path / "quantaudit").exists()


def test_a_hub_that_is_not_there(repository: Repository, given: Section, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving() as gone:
        address = gone.address
    for place, kind in {
        address: "ConnectError",
        "localhost:1": "UnsupportedProtocol",
        "http://host:port": "InvalidURL",
    }.items():
        _point_to(place, monkeypatch)
        with pytest.raises(OutputError, match=f"cannot be reached .{kind}."):
            product.push_section(given, MODEL)
    assert repository.requests == []


def test_what_needs_no_connection_is_refused_before_any(
    hub: Hub, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "README.md").write_bytes(b"# Here\n")
    for arguments, words in {
        (): "neither a readme nor --push",
        ("README.md", "--check", "--push", MODEL): "--check changes nothing",
        ("--check", "--push", MODEL): "--check changes nothing",
        ("--push", "model"): "give it as ORG/MODEL",
        ("--push", "a/b/c"): "give it as ORG/MODEL",
        ("--push", "org/" + "x" * 10_000): "give it as ORG/MODEL",
        ("--push", "../../etc"): "give it as ORG/MODEL",
        ("--push", "org/\x1b[31m"): "give it as ORG/MODEL",
    }.items():
        code, out, err = run(capsys, "insert", "card.json", *arguments)
        assert (code, out) == (2, ""), arguments
        assert words in err, (arguments, err)
        assert len(err.splitlines()) == 2
        assert len(err) < 400
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE is set" in push(capsys)[2]
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "hf_ü")
    assert "characters that no token has" in push(capsys)[2]
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    code, _, err = push(capsys)
    assert code == 2
    assert "there is no token for the Hub" in err
    with pytest.raises(OutputError, match="no token"):
        quantaudit.insert("card.json", push=MODEL)
    assert hub.calls == []


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"model.safetensors": b""}, "org/model/README.md: the repository has no such file"),
        ({"README.md": b"# T\n\n<!-- quantaudit:end -->\n"}, "org/model/README.md:3: the section's end marker without"),
        ({"README.md": b"\xff"}, "org/model/README.md:1: not UTF-8"),
        ({"README.md": b"x" * (9 << 20)}, "at most 8,388,608 are read"),
    ],
)
def test_a_readme_of_a_repository_that_takes_no_section(
    hub: Hub, given: Section, files: dict[str, bytes], words: str
) -> None:
    repository = hub.repository(MODEL, files)
    with pytest.raises(FormatError) as error:
        product.push_section(given, MODEL)
    assert words in str(error.value)
    assert repository.requests == []


def test_files_that_a_repository_ignores_are_named(hub: Hub, repository: Repository, given: Section) -> None:
    hub.ignored = {"quantaudit/peaks_by_layer.png"}
    with pytest.raises(OutputError, match="gitignore leaves out quantaudit/peaks_by_layer"):
        product.push_section(given, MODEL)
    assert repository.requests == []


def test_without_push_nothing_is_asked(hub: Hub, tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "README.md").write_bytes(README)
    assert run(capsys, "insert", "card.json", "README.md", "--front-matter")[0] == 0
    assert run(capsys, "insert", "card.json", "README.md", "--front-matter", "--check")[0] == 0
    assert hub.calls == []


PROGRAM = """
import sys
from quantaudit.card.readme.document import BEGIN, END
from quantaudit.card.readme.hub import check_push, push_section
from quantaudit.card.readme.section import Section

check_push(sys.argv[1])
print(push_section(Section(lines=[BEGIN, END], files={}, base=None), sys.argv[1]).pull_request)
"""


def test_in_a_process_of_its_own(hub: Hub, repository: Repository) -> None:
    """By the variables that the client reads, and nothing set from within."""
    environment = {**os.environ, "HF_ENDPOINT": hub.address, "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "1"}
    environment["PYTHONPATH"] = str(Path(__file__).parents[2])
    del environment["HF_HUB_OFFLINE"]
    command = [sys.executable, "-c", PROGRAM, MODEL]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert (done.stdout, done.stderr) == (f"{hub.address}/{MODEL}/discussions/1\n", "")
    assert repository.files("refs/pr/1")["README.md"] == README + f"\n{BEGIN}\n{END}\n".encode()
