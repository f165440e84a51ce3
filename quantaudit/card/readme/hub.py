"""A model's repository on the Hub: read at one commit, and changed by a pull request, by the Hub's own client alone.

Imported where a pull request was asked for, and nowhere else.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from quantaudit.card.readme.document import decode
from quantaudit.card.readme.hub_errors import explained
from quantaudit.card.readme.insert import CONFIG, MOST_BYTES, Insertion, State, differences, front_of, new_text
from quantaudit.card.readme.section import FILES, FOLDER, Section
from quantaudit.common.outputs.scratch import scratch_folder
from quantaudit.common.reading.regular_files import CONFIG_BYTES, read_bytes
from quantaudit.errors import FormatError, OutputError, UsageError

if TYPE_CHECKING:
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

README = "README.md"
TITLE = "Add the activation card of quantaudit"
_DESCRIPTION = (
    f"Written by `quantaudit insert`: the section between its two comments in {README}, and the files in `{FOLDER}/`. "
    "Nothing else changes{front}."
)
_FRONT = ", but for what was added to the front matter"
TIMEOUT = 60.0
"""Seconds without a sign of the Hub after which it is given up; its client has no such limit of its own."""
_MOST_OPEN = 5
"""Open pull requests of our title that are compared with what would be proposed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Snapshot:
    """A repository at one commit. text: of its README; files: those of ours that are there; config: of config.json."""

    where: str
    commit: str
    text: str
    files: Mapping[str, RepoFile]
    config: bytes


def check_push(repository: str) -> None:
    """Refuse what needs no connection to be known: an id that the Hub has not, being offline, having no token.

    Raises UsageError and OutputError.
    """
    from huggingface_hub import constants, get_token
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    where = f"--push {repository[:100]}"
    try:
        validate_repo_id(repository)
        if "/" not in repository:
            raise HFValidationError
    except HFValidationError as error:
        raise UsageError("not a repository's id on the Hub", where=where, hint="give it as ORG/MODEL") from error
    if constants.is_offline_mode():
        raise OutputError("HF_HUB_OFFLINE is set", where=where, hint="unset it, or leave --push out")
    token = get_token()
    if token is None or not (token.isascii() and token.isprintable()):
        problem = "there is no token for the Hub" if token is None else "the token has characters that no token has"
        hint = "log in with `hf auth login`, or set HF_TOKEN; the token needs the right to open pull requests"
        raise OutputError(problem, where=where, hint=hint)


def push_section(section: Section, repository: str, *, front_matter: bool = False) -> Insertion:
    """Open a pull request that puts the section and its files into a repository; none where nothing would change.

    The README is that of the repository at the commit on which the pull request is based, so that no later change is
    undone. Where an open pull request of the same title has that content already, its address is given. Raises
    FormatError for a README that is missing or unreadable, or whose markers form no section, and OutputError where the
    Hub refuses or cannot be reached.
    """
    from huggingface_hub import HfApi

    with explained(repository), _client():
        api = HfApi()
        snapshot = _read(api, repository, None)
        found, operations = _plan(section, snapshot, front_matter)
        if not operations:
            return Insertion(differences=[], written=[])
        address = _already_open(api, repository, section, front_matter)
        if address is None:
            _check_ignored(api, repository, operations)
            commit = api.create_commit(
                repository,
                operations,
                commit_message=TITLE,
                commit_description=_DESCRIPTION.format(front=_FRONT if front_matter else ""),
                create_pr=True,
                parent_commit=snapshot.commit,
            )
            address = commit.pr_url
    return Insertion(differences=found, written=[], pull_request=address)


def _plan(section: Section, snapshot: _Snapshot, front_matter: bool) -> tuple[list[str], list[Any]]:
    """What is to be done to a repository, in words and as the client's operations; both empty where nothing is."""
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    front = front_of(section, snapshot.config, f"{snapshot.where}/{CONFIG}") if front_matter else None
    state, readme = _state(section, snapshot), f"{snapshot.where}/{README}"
    found = differences(section, snapshot.text, readme, state, front)
    text = new_text(section, snapshot.text, readme, front)
    changed = {name: data for name, data in section.files.items() if state(name) != "same"}
    if text != snapshot.text:
        changed[README] = text.encode("utf-8")
    stale = [name for name in FILES if name in snapshot.files and name not in section.files]
    added = [CommitOperationAdd(path_in_repo=name, path_or_fileobj=data) for name, data in changed.items()]
    return found, [*added, *(CommitOperationDelete(path_in_repo=name) for name in stale)]


def _state(section: Section, snapshot: _Snapshot) -> Callable[[str], State]:
    """How the files in a repository compare with those that the card gives."""
    from huggingface_hub import CommitOperationAdd
    from huggingface_hub.utils.sha import git_hash

    def state(name: str) -> State:
        there, data = snapshot.files.get(name), section.files.get(name)
        if there is None:
            return "missing"
        if data is None:
            return "other"
        if there.lfs is not None:
            digest = CommitOperationAdd(path_in_repo=name, path_or_fileobj=data).upload_info.sha256.hex()
            return "same" if there.lfs.sha256 == digest else "other"
        return "same" if there.blob_id == git_hash(data) else "other"

    return state


def _check_ignored(api: HfApi, repository: str, operations: Iterable[Any]) -> None:
    """Raises OutputError where the repository's .gitignore would leave out files that the section links."""
    from huggingface_hub import CommitOperationAdd

    added = [operation for operation in operations if isinstance(operation, CommitOperationAdd)]
    api.preupload_lfs_files(repository, added, create_pr=True, free_memory=False)
    # The client leaves them out without a word, and has no public name for what the Hub says of them.
    ignored = [operation.path_in_repo for operation in added if getattr(operation, "_should_ignore", False)]
    if ignored:
        raise OutputError(
            f"the repository's .gitignore leaves out {', '.join(ignored)}",
            where=f"--push {repository}",
            hint=f"let it take the folder {FOLDER}, with a line `!/{FOLDER}/*` at its end",
        )


def _already_open(api: HfApi, repository: str, section: Section, front_matter: bool) -> str | None:
    """The address of an open pull request that would leave nothing to do."""
    compared = 0
    for request in api.get_repo_discussions(repository, discussion_type="pull_request", discussion_status="open"):
        if request.title != TITLE:
            continue
        try:
            snapshot = _read(api, repository, f"refs/pr/{request.num}")
            if not _plan(section, snapshot, front_matter)[1]:
                return str(request.url)
        except FormatError:  # somebody has broken it since
            pass
        compared += 1
        if compared == _MOST_OPEN:
            break
    return None


def _read(api: HfApi, repository: str, revision: str | None) -> _Snapshot:
    """What stands in a repository now. Raises FormatError without a README, or with one that is no text."""
    from huggingface_hub.hf_api import RepoFile

    commit = api.model_info(repository, revision=revision, timeout=TIMEOUT).sha
    if commit is None:
        raise ValueError("it names no commit")
    rows = api.get_paths_info(repository, [README, CONFIG, *FILES], revision=commit)
    files = {row.path: row for row in rows if isinstance(row, RepoFile)}
    where = f"{repository}/{README}"
    if README not in files:
        raise FormatError("the repository has no such file", where=where, hint="write one first; an empty one will do")
    text = decode(_download(api, repository, commit, files[README], MOST_BYTES), where)
    config = _download(api, repository, commit, files[CONFIG], CONFIG_BYTES) if CONFIG in files else b"{}"
    return _Snapshot(where=repository, commit=commit, text=text, files=files, config=config)


def _download(api: HfApi, repository: str, commit: str, file: RepoFile, limit: int) -> bytes:
    """A file of a repository. Raises FormatError above the limit."""
    if file.size > limit:
        problem = f"{file.size:,} bytes, and at most {limit:,} are read"
        raise FormatError(problem, where=f"{repository}/{file.path}", hint="shorten it")
    with scratch_folder() as folder:
        api.hf_hub_download(repository, file.path, revision=commit, local_dir=folder)
        return read_bytes(folder / file.path, limit)


@contextmanager
def _client() -> Iterator[None]:
    """Within the context the client gives up after `TIMEOUT` seconds of silence, and keeps its warnings to itself."""
    from huggingface_hub.utils import get_session, logging

    session, verbosity = get_session(), logging.get_verbosity()
    before, session.timeout = session.timeout, TIMEOUT
    logging.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # such as of metadata that a README does not have
            yield
    finally:
        session.timeout = before
        logging.set_verbosity(verbosity)
