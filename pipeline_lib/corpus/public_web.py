"""Remote files through fsspec, copied here before they are read. Over HTTP only public addresses are asked, within limits.

An address is judged where the connection is made, so a name that resolves to a private address, a redirect to one, and a name
that changes its mind between two questions are all refused. Of FTP, SFTP and WebHDFS the named machine is judged before it is
asked, which sees neither redirects nor a name that changes its mind. Whoever runs this machine may allow networks of their own in
$MILLRACE_ALLOWED_NETWORKS (`10.1.0.0/16,192.168.7.9`). Proxies from the environment are not used.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import socket
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import fsspec
from blake3 import blake3

from pipeline_lib.corpus.files import SourceFile
from pipeline_lib.corpus.streams import BLOCK, is_remote
from pipeline_lib.errors import ConfigError, MillraceError, RefusedError, StageFailedError
from pipeline_lib.secrets import hide_passwords, told

ALLOWED = "MILLRACE_ALLOWED_NETWORKS"
MOST_REDIRECTS = 5
UNGUARDED = frozenset({"ftp", "sftp", "ssh", "webhdfs"})  # protocols whose libraries open connections themselves
_NAT64, _COMPATIBLE = ipaddress.ip_network("64:ff9b::/96"), ipaddress.ip_network("::/96")


def remote_system(url: str) -> tuple[Any, str]:
    """The file system of a URL and the place in it.

    Raises:
        ConfigError: its protocol needs a package that is not installed.
        RefusedError: it names a machine in a private network.
    """
    _need_public_hosts(url)
    protocols = {link.partition("://")[0].lower() for link in url.split("::") if is_remote(link)}
    guarded = {name: {"get_client": _client, "max_redirects": MOST_REDIRECTS} for name in ("http", "https") if name in protocols}
    try:
        return fsspec.core.url_to_fs(url, **guarded)  # type: ignore[no-any-return]
    except (ImportError, ValueError) as error:
        fix = "install what it needs: `pip install 'millrace[s3]'` for s3://"
        raise ConfigError(told(error), where=hide_passwords(url), fix=fix) from None


def _need_public_hosts(url: str) -> None:
    """Judge the machines that a URL names where no connection can be judged.

    Raises:
        RefusedError: one lies in a private network.
    """
    for link in url.split("::"):
        parts = urlsplit(link)
        if parts.scheme.lower() in UNGUARDED and parts.hostname:
            try:
                found = {str(place[0]) for *_, place in socket.getaddrinfo(parts.hostname, None)}
            except OSError:
                continue  # nobody is asked; the library says so
            for address in sorted(found):
                if not may_be_asked(address):
                    raise _private(address)


def _private(address: str) -> RefusedError:
    return RefusedError(f"{address} is no public address", fix=f"whoever runs this machine can allow its network in ${ALLOWED}")


async def _client(**options: Any) -> Any:
    import aiohttp

    options.pop("loop", None)
    return aiohttp.ClientSession(connector=aiohttp.TCPConnector(socket_factory=_socket), trust_env=False, **options)


def _socket(address: Any) -> socket.socket:
    """A socket for an address that may be asked.

    Raises:
        RefusedError: it lies in a private network.
    """
    family, kind, protocol, _, place = address
    if not may_be_asked(place[0]):
        raise _private(place[0])
    made = socket.socket(family, kind, protocol)
    made.setblocking(False)
    return made


def may_be_asked(address: str) -> bool:
    """Whether an IP address is public, or in a network that is allowed."""
    one = _meant(ipaddress.ip_address(address.partition("%")[0]))
    networks = [
        ipaddress.ip_network(part.strip(), strict=False) for part in os.environ.get(ALLOWED, "").split(",") if part.strip()
    ]
    return any(one.version == network.version and one in network for network in networks) or (
        one.is_global and not one.is_multicast and not (isinstance(one, ipaddress.IPv6Address) and one.is_site_local)
    )


def _meant(one: ipaddress.IPv4Address | ipaddress.IPv6Address) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """The IPv4 address that a gateway makes of an IPv6 one: mapped, 6to4 (RFC 3056), NAT64 (RFC 6052), compatible (RFC 4291)."""
    if not isinstance(one, ipaddress.IPv6Address):
        return one
    low = int(one) & 0xFFFFFFFF
    if one in _NAT64 or (one in _COMPATIBLE and low > 1):  # `::` and `::1` are themselves
        return ipaddress.IPv4Address(low)
    return one.ipv4_mapped or one.sixtofour or one


def remote_digest(system: Any, place: str, most: int) -> str:
    """Digest of a remote file's bytes, read once from end to end.

    Raises:
        StageFailedError: it is larger than `most` bytes.
    """
    hasher = blake3()
    for block in _read(system, place, most):
        hasher.update(block)
    return str(hasher.hexdigest())


def _read(system: Any, place: str, most: int) -> Iterator[bytes]:
    left = most
    with system.open(place, "rb", cache_type="readahead") as stream:
        while block := stream.read(BLOCK):
            left -= len(block)
            if left < 0:
                raise StageFailedError(
                    f"the file is larger than ingest.max_file_gb ({most / 1e9:g} GB)",
                    where=hide_passwords(str(place)),
                    fix="raise ingest.max_file_gb, or name another file",
                )
            yield block


@contextlib.contextmanager
def fetched(file: SourceFile, most: int, folder: Path) -> Iterator[SourceFile]:
    """A file as a local one: itself, or a copy that lives in `folder` while it is read.

    Raises:
        StageFailedError: it is larger than `most` bytes, cannot be read, or is not what was listed.
    """
    if not is_remote(file.path):
        yield file
        return
    system, place = remote_system(file.path)
    hasher = blake3()
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".fetched-") as copy:
        try:
            for block in _read(system, place, most):
                copy.write(block)
                hasher.update(block)
        except MillraceError:
            raise
        except Exception as error:  # each file system has errors of its own
            raise StageFailedError(told(error), where=hide_passwords(file.path), fix="run again when it can be reached") from None
        copy.flush()
        if len(file.digest) == len(found := hasher.hexdigest()) and file.digest != found:
            raise StageFailedError("the file changed while it was read", where=hide_passwords(file.path), fix="run again")
        yield replace(file, path=copy.name)
