"""Earth grounding: statements about the world, made from reference tables that come inside packages."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import Protocol

from pipeline_lib.validation.earth import environmental, geographic, scientific, temporal
from pipeline_lib.validation.earth.facts import Relations


class Tables(Protocol):
    """A module of reference tables: the packages they come from, and a function a relation."""

    __name__: str
    PACKAGES: tuple[str, ...]
    RELATIONS: Relations


DOMAINS: tuple[Tables, ...] = (geographic, environmental, temporal, scientific)


def installed(package: str) -> str:
    """The version of a package, "" without it."""
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def domains_here() -> list[Tables]:
    """The domains whose packages are all here."""
    return [domain for domain in DOMAINS if all(map(installed, domain.PACKAGES))]


def missing_packages() -> dict[str, list[str]]:
    """Domain → the packages that its tables would come from and that are not here."""
    missing = {domain.__name__.rpartition(".")[2]: [p for p in domain.PACKAGES if not installed(p)] for domain in DOMAINS}
    return {domain: packages for domain, packages in missing.items() if packages}
