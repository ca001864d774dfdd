"""Which failures pass by themselves. Only those are retried; everything else is told at once."""

from __future__ import annotations

import errno
from typing import Any

from pipeline_lib.errors import MillraceError, ServiceError

PASSING = {
    errno.EAGAIN,
    errno.ECONNABORTED,
    errno.ECONNREFUSED,
    errno.ECONNRESET,
    errno.EHOSTUNREACH,
    errno.EIO,
    errno.ENETUNREACH,
    errno.EPIPE,
    errno.ESTALE,  # a network file system lost its handle
    errno.ETIMEDOUT,
}


def is_transient(error: BaseException) -> bool:
    """True for a server or a remote store that did not answer; false for anything that trying again cannot mend."""
    if isinstance(error, MillraceError):
        return isinstance(error, ServiceError)
    return isinstance(error, ConnectionError) or (isinstance(error, OSError) and error.errno in PASSING)


def should_retry(task: Any, task_run: Any, state: Any) -> bool:
    """Prefect's `retry_condition_fn`."""
    return isinstance(state.data, BaseException) and is_transient(state.data)
