"""What the Hub's client raises -> one UnlearningError with the repository's name and the mend; told by class."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub import constants
from huggingface_hub.errors import (
    DisabledRepoError,
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
    RevisionResolutionError,
)
from huggingface_hub.utils import httpx

from ..errors import UnlearningError, first_line

CLIENT_ERRORS = (OSError, HFValidationError, RevisionResolutionError, httpx.HTTPError)
TOKEN = "pass hub_token, or log in with `hf auth login`"


@contextmanager
def hub_errors(name: str, doing: str, revision: str | None = None) -> Iterator[None]:
    """Turn whatever the Hub's client raises inside the block into one error.

    Args:
        name: id of the repository. doing: for "cannot {doing} {name}", for example "push to".
        revision: the branch, tag or commit that was asked for.

    Raises:
        UnlearningError: "cannot ... 'user/name': reason and mend". It never holds a token.
    """
    try:
        yield
    except (*CLIENT_ERRORS, RuntimeError) as error:  # a failed upload is a RuntimeError from what failed it
        why = reason(error, name, revision)
        if why is None and isinstance(error, RuntimeError):
            raise
        why = why or f"{first_line(error)} Check disk and network, and try again."
        raise UnlearningError(f"cannot {doing} {name!r}: {why}") from error


def causes(error: BaseException) -> list[BaseException]:
    """An error and what it was raised from, outermost first."""
    chain = [error]
    while (cause := chain[-1].__cause__) is not None and cause not in chain:
        chain.append(cause)
    return chain


def reason(error: BaseException, name: str, revision: str | None = None) -> str | None:
    """Why a call of the Hub's client failed and what mends it, in a sentence or two; None for errors of other kinds.

    The innermost error of the Hub's own kind decides: the client wraps what happened into "not found in the cache".
    """
    for cause in reversed(causes(error)):
        for kind, explain in REASONS:
            if isinstance(cause, kind):
                return explain(cause, name, revision)
    return None


def gated(error: GatedRepoError, name: str, _) -> str:
    refused = "the token's account has no access" if error.response.status_code == 403 else "no token was given"
    return (
        f"the repository is gated, and {refused}. Ask for access on its page on the Hub; then, with the account that"
        f" has it, {TOKEN}."
    )


def unknown_repository(error: RepositoryNotFoundError, name: str, _) -> str:
    given = " that the token may see" if error.response.status_code == 404 else ", or it is private"
    return f"the Hub has no such repository{given}. Check the id; for a private repository {TOKEN}."


def unknown_revision(_, name: str, revision: str | None) -> str:
    return f"it has no revision {revision!r}. Give one of its branches or tags, or a whole commit id."


def bad_status(error: HfHubHTTPError, name: str, _) -> str:
    status = error.response.status_code
    if status == 401:
        return f"the Hub does not accept the token, or none was given: {TOKEN}."
    if status == 403:
        return "the token lacks the permission: give one with write access to push, with read access to load."
    if status in (409, 412):
        return "the repository was changed meanwhile by someone else: try again."
    if status == 429:
        seconds = error.response.headers.get("Retry-After")
        return f"the Hub refuses more requests for now (429): wait {f'{seconds} s' if seconds else 'a while'}."
    if status >= 500:
        return f"the Hub itself failed ({status}): try again later. What has been transferred is not sent twice."
    return f"the Hub answered {status}: {error.server_message or 'no reason given'}."


def offline(_, name: str, revision: str | None) -> str:
    wanted = f"revision {revision!r} of it is" if revision else "it is"
    return (
        f"{wanted} not in the local cache, or not whole, and HF_HUB_OFFLINE=1 keeps the Hub from being asked. Unset it"
        " once, or give a folder."
    )


def unreachable(error: httpx.HTTPError, name: str, _) -> str:
    broken = isinstance(error, (httpx.RemoteProtocolError, httpx.ReadError, httpx.WriteError))
    what = "broke off the connection" if broken else "cannot be reached"
    return (
        f"the Hub at {constants.ENDPOINT} {what} ({type(error).__name__}). Check network, proxy and HF_ENDPOINT, then"
        " try again: what has arrived whole is kept."
    )


def not_an_id(_, name: str, __) -> str:
    return "there is no such folder, and it is no id of a Hub repository, user/name."


def unknown_file(error: EntryNotFoundError, name: str, _) -> str:
    return f"a file is missing there. {first_line(error)}"


def not_cached(_, name: str, __) -> str:
    return "it is not in the local cache, or not whole, and the Hub could not be asked. Check the network."


REASONS = (
    (GatedRepoError, gated),
    (RepositoryNotFoundError, unknown_repository),
    (RevisionNotFoundError, unknown_revision),
    (DisabledRepoError, lambda *_: "the Hub has disabled this repository: give another."),
    (OfflineModeIsEnabled, offline),
    (LocalEntryNotFoundError, not_cached),
    (EntryNotFoundError, unknown_file),
    (LocalTokenNotFoundError, lambda *_: f"no token was found: {TOKEN}."),
    (HfHubHTTPError, bad_status),
    (httpx.TransportError, unreachable),
    (HFValidationError, not_an_id),
)
