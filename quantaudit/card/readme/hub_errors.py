"""Whatever the Hub, its client or the network says no by, as one line that says what to do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from quantaudit.errors import OutputError, QuantauditError

_LONGEST = 300
_LOG_IN = "log in again with `hf auth login`, or set HF_TOKEN"
_LATER = "run it again later"
_UNKNOWN = "no such model on the Hub, or the token may not see it"
_STATUS = {
    401: ("the Hub does not accept the token", _LOG_IN),
    403: (
        "the token may not open pull requests there",
        "give it the right to write to the repository, or to its discussions and pull requests",
    ),
    404: (_UNKNOWN, "check the id, or log in with `hf auth login`"),
    409: ("the repository changed meanwhile, and nothing was proposed", "run it again"),
    412: ("the repository changed meanwhile, and nothing was proposed", "run it again"),
    413: ("the card is larger than the Hub takes", "put it into the repository yourself, with `hf upload`"),
    429: ("too many requests for the Hub", _LATER),
}


@contextmanager
def explained(repository: str) -> Iterator[None]:
    """Turn errors of the Hub's client into OutputError; those of ours pass."""
    import httpx

    try:
        yield
    except QuantauditError:
        raise
    except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError, LookupError, TypeError, RuntimeError) as error:
        message, hint = _explain(_cause(error))
        raise OutputError(message, where=f"--push {repository}", hint=hint) from error


def _cause(error: BaseException) -> BaseException:
    """What a file that could not be found, or an upload that did not run, was caused by."""
    from huggingface_hub.errors import LocalEntryNotFoundError

    wraps = isinstance(error, LocalEntryNotFoundError) or type(error) is RuntimeError
    return _cause(error.__cause__) if wraps and error.__cause__ is not None else error


def _explain(error: BaseException) -> tuple[str, str]:
    """What happened, and what to do."""
    import httpx
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, OfflineModeIsEnabled, RepositoryNotFoundError

    reason = _line(error)
    if isinstance(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set", "unset it, or leave --push out"
    if isinstance(error, GatedRepoError):
        return "the repository is gated", "accept its terms on the Hub, with the account of the token"
    if isinstance(error, RepositoryNotFoundError):
        return _STATUS[404]
    if isinstance(error, HfHubHTTPError):
        status = error.response.status_code
        if status >= 500:
            return f"the Hub fails (status {status})", _LATER
        message, hint = _STATUS.get(status, ("the Hub refuses", "mend it, and run it again"))
        said = error.server_message
        return f"{message} (status {status}{f': {_short(said)}' if said else ''})", hint
    if isinstance(error, httpx.TimeoutException):
        return "the Hub does not answer", "run it again; a pull request that was opened nevertheless is found then"
    if isinstance(error, httpx.HTTPError | httpx.InvalidURL):
        message = f"the Hub cannot be reached ({type(error).__name__})"
        return message, "check the connection, and HF_ENDPOINT if it is set"
    if isinstance(error, ConnectionError):  # of its storage, whose client says more in words
        return f"the Hub's storage cannot be reached: {reason}", "check the connection, and the token's rights"
    if isinstance(error, ValueError) and reason.startswith("Invalid metadata"):
        return f"the Hub refuses the README's front matter: {reason}", "mend it in the repository first"
    return f"the Hub's answer cannot be used: {type(error).__name__}: {reason}", "check HF_ENDPOINT if it is set"


def _line(error: BaseException) -> str:
    return _short(str(error))


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _LONGEST else f"{line[: _LONGEST - 1]}…"
