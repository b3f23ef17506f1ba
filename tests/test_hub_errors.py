"""Errors of the Hub's client: each becomes one sentence with its mend, whatever it was wrapped in."""

import pytest
from huggingface_hub import errors
from huggingface_hub.utils import httpx

from zspag_hf.errors import UnlearningError
from zspag_hf.hub.errors import hub_errors


def answer(status, kind=errors.HfHubHTTPError, **headers):
    """An error from an answer of the Hub, to a request with a token."""
    request = httpx.Request("POST", "http://hub/api", headers={"Authorization": "Bearer hf_secret"})
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    return kind("the client's text", response=httpx.Response(status, request=request, headers=names))


def told(error, cause=None):
    with pytest.raises(UnlearningError) as raised, hub_errors("user/model", "push to", "v1"):
        raise error from cause
    message = str(raised.value)
    assert message.startswith("cannot push to 'user/model': ") and "hf_secret" not in message
    return message


@pytest.mark.parametrize(
    "error, text",
    [
        (answer(401), "does not accept the token"),
        (answer(403), "write access"),
        (answer(409), "changed meanwhile"),
        (answer(412), "changed meanwhile"),
        (answer(418), "answered 418"),
        (answer(429), "wait a while"),
        (answer(429, Retry_After="7"), "wait 7 s"),
        (answer(500), "failed (500)"),
        (answer(401, errors.RepositoryNotFoundError), "or it is private"),
        (answer(404, errors.RepositoryNotFoundError), "that the token may see"),
        (answer(403, errors.GatedRepoError), "has no access"),
        (answer(401, errors.GatedRepoError), "no token was given"),
        (answer(404, errors.RevisionNotFoundError), "no revision 'v1'"),
        (answer(404, errors.RemoteEntryNotFoundError), "a file is missing"),
        (answer(403, errors.DisabledRepoError), "disabled"),
        (errors.LocalTokenNotFoundError("none"), "no token was found"),
        (errors.OfflineModeIsEnabled("offline"), "HF_HUB_OFFLINE=1"),
        (errors.LocalEntryNotFoundError("not cached"), "not in the local cache"),
        (errors.HFValidationError("bad id"), "no id of a Hub repository"),
        (httpx.ConnectError("refused"), "cannot be reached (ConnectError)"),
        (httpx.ReadTimeout("slow"), "cannot be reached (ReadTimeout)"),
        (httpx.RemoteProtocolError("cut"), "broke off the connection"),
        (OSError(28, "No space left on device"), "No space left on device"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_each_kind_has_its_own_text(error, text):
    assert text in told(error)


def test_what_it_was_raised_from_decides():
    """The client says "not found in the cache" where it could not connect, and RuntimeError where an upload failed."""
    assert "cannot be reached" in told(errors.LocalEntryNotFoundError("not cached"), httpx.ConnectError("refused"))
    assert "failed (500)" in told(RuntimeError("Error while uploading"), answer(500))


@pytest.mark.parametrize("error", [RuntimeError("a fault"), KeyError("a fault"), UnlearningError("bad input")])
def test_other_errors_pass_through(error):
    with pytest.raises(type(error)) as raised, hub_errors("user/model", "push to"):
        raise error
    assert raised.value is error
