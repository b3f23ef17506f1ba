"""What the Hub's client raises -> one UnlearningError with the repository's name and the mend; told by class."""

from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub import constants, errors
from huggingface_hub.utils import httpx

from ..errors import UnlearningError, first_line

CLIENT_ERRORS = (OSError, errors.HFValidationError, errors.RevisionResolutionError, httpx.HTTPError)
TOKEN = "pass hub_token, or log in with `hf auth login`"


@contextmanager
def hub_errors(name: str, doing: str, revision: str | None = None) -> Iterator[None]:
    """Turn whatever the Hub's client raises inside the block into one error, which never holds a token.

    Args:
        name: id of the repository. doing: for "cannot {doing} {name}", for example "push to".
        revision: the branch, tag or commit that was asked for.

    Raises:
        UnlearningError: "cannot ... 'user/name': reason and mend".
    """
    try:
        yield
    except (*CLIENT_ERRORS, RuntimeError) as error:  # a failed upload is a RuntimeError from what failed it
        why = reason(error, revision)
        if why is None and isinstance(error, RuntimeError):
            raise
        why = why or f"{first_line(error)} Check disk and network, and try again."
        raise UnlearningError(f"cannot {doing} {name!r}: {why}") from error


def reason(error: BaseException, revision: str | None = None) -> str | None:
    """Why a call of the Hub's client failed and what mends it, in a sentence or two; None for errors of other kinds.

    The innermost error of the Hub's own kind decides: the client wraps what happened into "not found in the cache".
    """
    inner = reason(error.__cause__, revision) if error.__cause__ is not None else None
    return inner or _explained(error, revision)


def _explained(error: BaseException, revision: str | None) -> str | None:
    match error:  # subclasses before their bases
        case errors.GatedRepoError():
            told = "the token's account has no access" if error.response.status_code == 403 else "no token was given"
            return (
                f"the repository is gated, and {told}. Ask for access on its page on the Hub; then, with the account"
                f" that has it, {TOKEN}."
            )
        case errors.RepositoryNotFoundError():
            given = " that the token may see" if error.response.status_code == 404 else ", or it is private"
            return f"the Hub has no such repository{given}. Check the id; for a private repository {TOKEN}."
        case errors.RevisionNotFoundError():
            return f"it has no revision {revision!r}. Give one of its branches or tags, or a whole commit id."
        case errors.DisabledRepoError():
            return "the Hub has disabled this repository: give another."
        case errors.OfflineModeIsEnabled():
            wanted = f"revision {revision!r} of it is" if revision else "it is"
            return (
                f"{wanted} not in the local cache, or not whole, and HF_HUB_OFFLINE=1 keeps the Hub from being asked."
                " Unset it once, or give a folder."
            )
        case errors.LocalEntryNotFoundError():
            return "it is not in the local cache, or not whole, and the Hub could not be asked. Check the network."
        case errors.EntryNotFoundError():
            return f"a file is missing there. {first_line(error)}"
        case errors.LocalTokenNotFoundError():
            return f"no token was found: {TOKEN}."
        case errors.HfHubHTTPError():
            return _bad_status(error)
        case httpx.TransportError():
            broken = isinstance(error, (httpx.RemoteProtocolError, httpx.ReadError, httpx.WriteError))
            what = f"{'broke off the connection' if broken else 'cannot be reached'} ({type(error).__name__})"
            mend = "Check network, proxy and HF_ENDPOINT, then try again: what has arrived whole is kept."
            return f"the Hub at {constants.ENDPOINT} {what}. {mend}"
        case errors.HFValidationError():
            return "there is no such folder, and it is no id of a Hub repository, user/name."
    return None


def _bad_status(error: errors.HfHubHTTPError) -> str:
    match error.response.status_code:
        case 401:
            return f"the Hub does not accept the token, or none was given: {TOKEN}."
        case 403:
            return "the token lacks the permission: give one with write access to push, with read access to load."
        case 409 | 412:
            return "the repository was changed meanwhile by someone else: try again."
        case 429:
            seconds = error.response.headers.get("Retry-After")
            return f"the Hub refuses more requests for now (429): wait {f'{seconds} s' if seconds else 'a while'}."
        case status if status >= 500:
            return f"the Hub itself failed ({status}): try again later. What has been transferred is not sent twice."
        case status:
            return f"the Hub answered {status}: {error.server_message or 'no reason given'}."
