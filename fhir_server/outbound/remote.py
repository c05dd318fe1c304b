"""One address of another server, and requests below it, with bounds on every wait and every size.

Hides urllib3, name resolution and TLS. The host is resolved once, what it resolves to is checked, and that very address
is connected to, so that a name which changes its mind leads nowhere else. Redirects are not followed, proxies of the
environment not used. Messages hold nothing of what the other side says but its status.
"""

import http.client
import ipaddress
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from types import TracebackType
from typing import Any
from urllib.parse import quote, urlsplit

import urllib3
from urllib3.exceptions import HTTPError

from imaging.errors import AppError, Category

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Headers = Mapping[str, str]

ANSWER_WITHIN_S = 600.0  # from the first to the last byte of an answer that is held as a whole
BLOCK_BYTES = 1 << 18
AGENT = "fhir-imaging"
_NOT_PERMITTED = "its address is not public, or would be reached without TLS; outbound.private_networks may allow it"
_PORTS = {"http": 80, "https": 443}
# Global by their form, but they carry another address inside, or lead nowhere public.
_DISGUISES = tuple(
    map(
        ipaddress.ip_network,
        (
            "64:ff9b::/96", "64:ff9b:1::/48",  # NAT64: RFC 6052, RFC 8215
            "2002::/16", "192.88.99.0/24",  # 6to4 and its relays: RFC 3056, RFC 7526
            "2001::/32",  # Teredo: RFC 4380
            "::/96", "::ffff:0:0:0/96",  # IPv4-compatible: RFC 4291 2.5.5.1; IPv4-translated: RFC 2765
            "fec0::/10",  # site local: RFC 3879
        ),
    )
)  # fmt: skip
_STATUS = {
    # status     category                what it means for a request that is not to be changed
    401: Category.FORBIDDEN,
    403: Category.FORBIDDEN,
    404: Category.NOT_FOUND,
    408: Category.BUSY,
    410: Category.GONE,
    413: Category.TOO_LARGE,
    425: Category.BUSY,
    429: Category.BUSY,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Rules:
    """What holds for all requests.

    private_networks   that may be reached although they are not public, and without TLS
    ca_file            PEM file of further certificate authorities; "" for those of the system alone
    connect_s          longest wait for a connection
    silence_s          longest wait for the next bytes, in either direction
    """

    private_networks: tuple[Network, ...] = ()
    ca_file: str = ""
    connect_s: float = 10.0
    silence_s: float = 120.0


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer that was read to its end; names of headers in lower case."""

    status: int
    headers: Headers
    body: bytes


@dataclass(frozen=True, slots=True)
class Target:
    """A parsed address. `path` has no slash at its end."""

    scheme: str
    host: str
    port: int
    path: str

    @property
    def authority(self) -> str:
        """The value of the header Host."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _PORTS[self.scheme] else f"{host}:{self.port}"


def target_of(address: str) -> Target:
    """Return what an http(s) address says. Raises INVALID for anything beside scheme, host, port and path."""
    wanted = "http:// or https://, a host, perhaps a port and a path expected"
    try:
        parts = urlsplit(address)
        port = parts.port
    except ValueError:
        raise AppError(Category.INVALID, wanted, where="address") from None
    if parts.scheme not in _PORTS or not parts.hostname or parts.query or parts.fragment or "@" in parts.netloc:
        raise AppError(Category.INVALID, wanted, where="address")
    path = quote(parts.path.rstrip("/"), safe="/%:@!$&'()*+,;=~-._")
    return Target(parts.scheme, parts.hostname, port or _PORTS[parts.scheme], path)


def is_permitted(address: Address, scheme: str, private_networks: Iterable[Network]) -> bool:
    """Say whether a connection may be made: to a public address by TLS, to a private one where that was allowed."""
    plain = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped else address
    if any(plain in network for network in private_networks if network.version == plain.version):
        return True
    if any(plain in network for network in _DISGUISES if network.version == plain.version):
        return False
    return scheme == "https" and plain.is_global and not plain.is_multicast


def refused_as_written(target: Target, rules: Rules) -> str:
    """Return why an address will never be connected to, "" where that depends on what its name leads to."""
    try:
        address = ipaddress.ip_address(target.host)
    except ValueError:
        return "" if target.scheme == "https" or rules.private_networks else _NOT_PERMITTED
    return "" if is_permitted(address, target.scheme, rules.private_networks) else _NOT_PERMITTED


class Remote:
    """The server behind one address, as a context manager; one request at a time.

    name            by which messages call it
    authorization   value of the header Authorization, "" for none; it never appears in a message
    retry_after_s   what the last answer asked to wait, 0 where it did not
    """

    retry_after_s = 0.0

    def __init__(self, address: str, rules: Rules, *, name: str, authorization: str = "") -> None:
        """Resolve and connect. Raises INVALID, FORBIDDEN for an address that is not allowed, BUSY when it is silent."""
        self._rules = rules
        self.name = name
        self._target = target_of(address)
        self._headers = {"Host": self._target.authority, "User-Agent": AGENT, "Accept-Encoding": "identity"}
        if authorization:
            self._headers["Authorization"] = authorization
        self._connection: Any = None
        self._is_cut = False
        self._pool = self._opened()

    def __enter__(self) -> "Remote":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.close()

    def exchange(
        self,
        method: str,
        path: str,
        *,
        most_bytes: int,
        headers: Headers | None = None,
        body: bytes | Iterable[bytes] | None = None,
        within_s: float = 0.0,
    ) -> Answer:
        """Send a request below the address and return the whole answer, whatever its status.

        An iterable body is sent as it comes, in chunks. Raises BUSY when the other side is silent, breaks off or is not
        done after `within_s` (0: as long as any answer may take), TOO_LARGE when its answer is beyond `most_bytes`.
        """
        within_s = within_s or ANSWER_WITHIN_S
        with self._answered(method, path, headers or {}, body, within_s) as response:
            end = time.monotonic() + within_s  # however long the sending took
            held = bytearray()
            while block := _next(response):
                held += block
                if len(held) > most_bytes:
                    message = f"the answer is beyond the limit of {most_bytes} bytes"
                    raise AppError(Category.TOO_LARGE, message, where=self.name)
                if time.monotonic() > end:
                    raise self._silent("the answer takes too long")
            return Answer(response.status, _lower(response.headers), bytes(held))

    @contextmanager
    def incoming(self, path: str, headers: Headers, *, within_s: float) -> Iterator[tuple[Headers, Iterator[bytes]]]:
        """GET something large: give the headers and the blocks of a good answer.

        Raises what `require_good` raises, and BUSY when the last block has not come after `within_s`.
        """
        end = time.monotonic() + within_s
        with self._answered("GET", path, headers, None, within_s) as response:
            require_good(response.status, self.name)
            yield _lower(response.headers), self._blocks(response, end)

    def _blocks(self, response: urllib3.BaseHTTPResponse, end: float) -> Iterator[bytes]:
        try:
            while block := _next(response):
                yield block
                if time.monotonic() > end:
                    raise self._silent("the answer takes too long")
        except (HTTPError, OSError, http.client.HTTPException) as error:
            raise self._silent(f"it broke off ({type(error).__name__})") from None

    @contextmanager
    def _answered(
        self, method: str, path: str, headers: Headers, body: bytes | Iterable[bytes] | None, within_s: float
    ) -> Iterator[urllib3.BaseHTTPResponse]:
        silence_s = self._rules.silence_s
        # A header may trickle for ever, and no wait for the next bytes is long. What is sent takes as long as it may.
        fuse, self._is_cut = _Fuse(within_s, self._cut), False
        try:
            try:
                response = self._pool.urlopen(
                    method,
                    self._target.path + path,
                    body=body if body is None or isinstance(body, bytes) else fuse.fed(body),
                    headers={**self._headers, **headers},
                    retries=False,
                    redirect=False,
                    assert_same_host=False,
                    preload_content=False,
                    chunked=body is not None and not isinstance(body, bytes),
                    # The first of the two also bounds each wait while sending; the connection itself stands already.
                    timeout=urllib3.Timeout(connect=silence_s, read=silence_s),
                )
            finally:
                fuse.stop()
            self.retry_after_s = _seconds(response.headers.get("Retry-After", ""))
            try:
                if self._is_cut:  # a header that ends anywhere is taken for a whole one
                    raise self._silent("the answer takes too long")
                yield response
            finally:
                # What was not read to its end cannot be used again.
                response.close()
        except (HTTPError, OSError, http.client.HTTPException) as error:
            raise self._silent(f"no answer ({type(error).__name__})") from None

    def _opened(self) -> urllib3.HTTPConnectionPool:
        ip, target = self._reachable(), self._target
        if target.scheme == "http":
            return self._watched(urllib3.HTTPConnectionPool(ip, target.port, maxsize=1))
        context = ssl.create_default_context()
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if self._rules.ca_file:
            try:
                context.load_verify_locations(cafile=self._rules.ca_file)
            except OSError as error:  # ssl.SSLError is one
                message = f"the file of certificate authorities cannot be read ({type(error).__name__})"
                raise AppError(Category.FAULT, message, where="outbound.ca_bundle") from None
        pool = urllib3.HTTPSConnectionPool(
            ip,
            target.port,
            maxsize=1,
            ssl_context=context,
            server_hostname=target.host,
            assert_hostname=target.host,
        )
        return self._watched(pool)

    def _watched(self, pool: urllib3.HTTPConnectionPool) -> urllib3.HTTPConnectionPool:
        """Have the pool tell its connection, so that it can be cut while somebody waits for it."""
        made: Any = pool.ConnectionCls

        def connection(*arguments: Any, **options: Any) -> Any:
            self._connection = made(*arguments, **options)
            return self._connection

        pool.ConnectionCls = connection  # type: ignore[assignment]
        return pool

    def _cut(self) -> None:
        self._is_cut = True
        plain = getattr(self._connection, "sock", None)
        if plain is not None:
            with suppress(OSError):
                # Not the method of an SSL socket, which would take its state from under the one who reads.
                socket.socket.shutdown(plain, socket.SHUT_RDWR)

    def _reachable(self) -> str:
        """Return the first permitted address that takes a connection."""
        target = self._target
        try:
            found = socket.getaddrinfo(target.host, target.port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError):
            raise self._silent("its host has no address") from None
        addresses = [str(each[4][0]).partition("%")[0] for each in found]
        networks = self._rules.private_networks
        permitted = [
            each
            for each in dict.fromkeys(addresses)
            if is_permitted(ipaddress.ip_address(each), target.scheme, networks)
        ]
        if not permitted:
            raise AppError(Category.FORBIDDEN, _NOT_PERMITTED, where=self.name)
        for each in permitted:
            try:
                socket.create_connection((each, target.port), self._rules.connect_s).close()
            except OSError:
                continue
            return each
        raise self._silent("no connection")

    def _silent(self, what: str) -> AppError:
        return AppError(Category.BUSY, f"the other server does not answer: {what}", where=self.name)


class _Fuse:
    """Calls `act` once when nothing has fed it for so long, until it is stopped."""

    def __init__(self, seconds: float, act: Callable[[], None]) -> None:
        self._seconds, self._act = seconds, act
        self._end = time.monotonic() + seconds
        self._stopped = threading.Event()
        threading.Thread(target=self._run, name="outbound-fuse", daemon=True).start()

    def fed(self, pieces: Iterable[bytes]) -> Iterator[bytes]:
        """Yield the pieces; each of them is food."""
        for piece in pieces:
            yield piece
            self._end = time.monotonic() + self._seconds

    def stop(self) -> None:
        self._stopped.set()

    def _run(self) -> None:
        while not self._stopped.wait(max(self._end - time.monotonic(), 0.0)):
            if time.monotonic() >= self._end:
                self._act()
                return


def require_good(status: int, name: str) -> None:
    """Return for a status that says "done". Raises BUSY where a repetition may help, otherwise why it would not."""
    if 200 <= status < 300:
        return
    if 300 <= status < 400:
        message = f"the other server answers with a redirect (HTTP {status}); register the address that it leads to"
        raise AppError(Category.UNSUPPORTED, message, where=name)
    category = Category.BUSY if status >= 500 and status != 501 else _STATUS.get(status, Category.UNSUPPORTED)
    raise AppError(category, f"the other server refuses the request (HTTP {status})", where=name)


def _next(response: urllib3.BaseHTTPResponse) -> bytes:
    """Return what has come, b"" at the end: unlike `stream`, which waits until a block is full, however slowly."""
    return response.read1(BLOCK_BYTES)


def _lower(headers: Mapping[str, str]) -> dict[str, str]:
    return {name.lower(): value for name, value in headers.items()}


def _seconds(retry_after: str) -> float:
    """Return how long a Retry-After asks to wait: seconds, or until a date (RFC 9110 10.2.3); 0 for anything else."""
    if retry_after.isascii() and retry_after.isdigit():
        return float(retry_after[:9])
    try:
        until = parsedate_to_datetime(retry_after)
    except (ValueError, OverflowError):
        return 0.0
    return max((until - datetime.now(UTC)).total_seconds(), 0.0) if until.tzinfo else 0.0
