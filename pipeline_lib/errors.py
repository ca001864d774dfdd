"""Errors for people: what was wrong, where, what would be right; each class with its documented exit code."""


class MillraceError(Exception):
    """Something a person can mend. Shown without a traceback; `exit_code` is what the command line ends with."""

    exit_code = 1

    def __init__(self, what: str, *, where: str = "", fix: str = "") -> None:
        self.what, self.where, self.fix = what, where, fix
        super().__init__(what)

    def __str__(self) -> str:
        where = f"{self.where}: " if self.where else ""
        return f"{where}{self.what}" + (f"\n  → {self.fix}" if self.fix else "")

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (type(self), self.what, self.where, self.fix))


def _rebuild(kind: type[MillraceError], what: str, where: str, fix: str) -> MillraceError:
    return kind(what, where=where, fix=fix)


class StageFailedError(MillraceError):
    """A stage could not do its work (exit code 1)."""

    exit_code = 1


class StoppedError(StageFailedError):
    """A stage stopped because it was asked to; what it has done is saved (exit code 130)."""

    exit_code = 130


class ConfigError(MillraceError):
    """The configuration is wrong or contradicts itself; refused before any work (exit code 2)."""

    exit_code = 2


class BusyError(MillraceError):
    """Another run owns what is needed and waiting was not wished (exit code 3)."""

    exit_code = 3


class DamagedError(MillraceError):
    """Stored bytes are not what was committed, and could not be made again here (exit code 4)."""

    exit_code = 4


class RefusedError(MillraceError):
    """A stated limit (disk, memory, window, money, quarantine share) does not allow it (exit code 5)."""

    exit_code = 5


class NotFoundError(MillraceError):
    """The run, artifact, document or name that was asked for does not exist (exit code 6)."""

    exit_code = 6


class ServiceError(MillraceError):
    """A server (Prefect, MLflow) is needed and cannot be reached (exit code 7)."""

    exit_code = 7


EXIT_CODES = {
    0: "done (a model that did not pass the gate is a complete run: see the report)",
    1: "a stage failed; `millrace show RUN` says which and why",
    2: "configuration or command line refused",
    3: "busy: another run owns the workspace part that is needed (--no-wait)",
    4: "damaged data that could not be remade",
    5: "refused by a stated limit",
    6: "not found",
    7: "a server cannot be reached",
    130: "interrupted; everything is resumable",
}
