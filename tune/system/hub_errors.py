"""Errors of the Hugging Face hub in one sentence: the cause, and how to fix it.

The hub's client raises its own errors, its HTTP library's and the system's, often one from another:
a refused file comes as "an error happened while trying to locate the file". `explain` looks through
the whole chain for the cause, for models and for data sets.
"""

import contextlib
import difflib
import errno
import re

ENDPOINT = "https://huggingface.co"
LOGIN = "`hf auth login` (or set HF_TOKEN)"
N_NEAR = 3  # names shown beside one that isn't there
NOT_CONNECTED = {"ConnectError", "ConnectTimeout", "ConnectionError", "NetworkError", "ProxyError"}
BROKEN_OFF = {"TimeoutException", "RemoteProtocolError", "ReadError", "Timeout", "ProtocolError"}
DISK = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EROFS: "the file system is read-only",
    errno.EACCES: "the folder may not be written to",
}


def explain(
    error: BaseException,
    name: str,
    kind: str = "model",
    revision: str | None = None,
    *,
    disk: str = "set HF_HOME to",
    flag: str = "--revision",
) -> str:
    """Say why something could not be fetched from the hub, and how to fix it.

    Parameters
    ----------
    error : as the hub's client raised it
    name : the repository, "owner/name"
    kind : "model" or "dataset"
    revision : branch, tag or commit that was asked for, None for the main branch
    disk : how another disk is chosen, up to the disk
    flag : how another revision is

    Returns
    -------
    A sentence that begins with a small letter and ends without a full stop; the first line of the
    cause stands in brackets.

    Examples
    --------
    >>> full = OSError(28, "No space left on device")
    >>> explain(full, "m-a-p/GTZAN", "dataset").partition(": free")[0]
    'the data set m-a-p/GTZAN could not be downloaded: the disk is full (No space left on device)'
    """
    from huggingface_hub import constants, errors

    what = "data set" if kind == "dataset" else kind
    page = f"{ENDPOINT}/{'datasets/' if kind == 'dataset' else ''}{name}"
    failed = f"the {what} {name} could not be downloaded"
    chain = list(_chain(error))

    def first(*types):
        return next((e for e in chain if isinstance(e, types)), None)

    if (full := next((e for e in chain if getattr(e, "errno", None) in DISK), None)) is not None:
        fix = f"free some space, or {disk} a larger disk, and run again"
        if full.errno in (errno.EROFS, errno.EACCES):
            fix = f"{disk} a folder of yours"
        return f"{failed}: {DISK[full.errno]} ({full.strerror}): {fix}"
    if (cause := first(errors.GatedRepoError)) is not None:
        return (
            f"the {what} {name} is gated ({_line(cause)}): accept its terms at {page} while "
            f"logged in, then {LOGIN} and run again"
        )
    if (cause := first(errors.RevisionNotFoundError)) is not None:
        return (
            f"the {what} {name} has no revision {revision or 'main'} ({_line(cause)}): see "
            f"{page}/commits/main for those that it has"
        )
    status = next((_status(e) for e in chain if _status(e)), None)
    cause = next((e for e in chain if _status(e)), chain[-1])
    if status == 401 and "credentials" in _message(cause):
        return (
            f"the hub refused your token ({_line(cause)}): get a valid one at "
            f"{ENDPOINT}/settings/tokens and {LOGIN}, or unset it (`hf auth logout`)"
        )
    if (missing := first(errors.RepositoryNotFoundError)) is not None or status == 401:
        near = near_names(name, kind)
        hint = f"nearest are {', '.join(near)}" if near else "check the spelling"
        return (
            f"there is no {what} {name} on the hub, or it is private ({_line(missing or cause)}): "
            f"{hint}, or {LOGIN} with an account that may see it"
        )
    if isinstance(cause, errors.RemoteEntryNotFoundError):
        return (
            f"the {what} {name} lacks a file that it lists ({_line(cause)}): its authors may be "
            f"changing it; run again, or name another {flag}"
        )
    if status is not None:
        fix = {
            403: f"your account or token may not read it: see {page}",
            429: "too many requests from your address: wait some minutes and run again; a token "
            "raises the limit",
        }.get(status)
        if status >= 500:
            fix = (
                "the hub has a problem of its own (https://status.huggingface.co): run again later"
            )
        fix = fix or f"see whether {page} opens in a browser, and run again"
        return f"{failed}, the hub answered {status} ({_line(cause)}): {fix}"
    if constants.HF_HUB_OFFLINE or first(errors.OfflineModeIsEnabled):
        return (
            f"the {what} {name} is not in the local cache, and the hub's client is told to stay "
            f"offline: unset HF_HUB_OFFLINE and run again with a network"
        )
    for names, said, fix in (
        (NOT_CONNECTED, "the hub can't be reached", "with a network, run again"),
        (BROKEN_OFF, "the connection broke off", "run again"),
    ):
        found = [e for e in chain if names & {c.__name__ for c in type(e).__mro__}]
        if found:
            return f"{failed}: {said} ({_line(found[-1])}): {fix}"
    # The client's threads share a session: where one closes it after a failed connection, another
    # may be given none.
    if any(isinstance(e, AttributeError) and "'NoneType'" in str(e) for e in chain):
        return f"{failed}: the hub can't be reached ({_line(error)}): with a network, run again"
    if "Consistency check failed" in str(error):
        return (
            f"the {what} {name} did not arrive whole ({_line(error)}): run again, and look for a "
            f"proxy or full disk in between if it comes back"
        )
    return f"{failed} ({_line(chain[0])}): run again with a network"


def is_about_fetching(error: BaseException) -> bool:
    """Say whether an error, or one that it came from, is the hub's, the network's or the disk's."""
    from huggingface_hub import errors

    return any(
        getattr(each, "errno", None) in DISK
        or isinstance(each, errors.OfflineModeIsEnabled)
        or (_status(each) and not isinstance(each, errors.EntryNotFoundError))
        or (NOT_CONNECTED | BROKEN_OFF) & {c.__name__ for c in type(each).__mro__}
        for each in _chain(error)
    )


def near_names(name: str, kind: str = "model") -> list[str]:
    """Names on the hub that are spelled nearly like one that isn't there; [] without a network."""
    from huggingface_hub import HfApi

    owner, _, short = name.rpartition("/")
    with contextlib.suppress(Exception):  # a hint alone: the error is told anyway
        ask = HfApi().list_datasets if kind == "dataset" else HfApi().list_models
        found = [item.id for item in ask(author=owner or None, limit=200)]
        if not found:
            found = [item.id for item in ask(search=short, limit=50)]
        return difflib.get_close_matches(name, found, N_NEAR, cutoff=0.6)
    return []


def _chain(error: BaseException):
    """An error, what it was raised from, and so on."""
    seen = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _status(error) -> int | None:
    """The HTTP status that an error is about."""
    return getattr(getattr(error, "response", None), "status_code", None)


def _message(error) -> str:
    """All that the hub said with an error."""
    headers = getattr(getattr(error, "response", None), "headers", {})
    return f"{error} {headers.get('X-Error-Message', '')}"


def _line(error: BaseException) -> str:
    """The first line of an error's message without numbers and addresses, or the error's name."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[0].partition(" (Request ID:")[0] if lines else ""
    text = re.sub(r" for url:? \S+|\[Errno -?\d+\] |: None\b", "", text).rstrip(".:")
    return text[:200] or type(error).__name__
