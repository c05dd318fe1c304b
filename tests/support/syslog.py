"""A syslog collector as RFC 5425 has it, and the schema of DICOM's audit messages (PS3.15 A.5.1.1), restated."""

import re
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from lxml import etree

# RFC 5424 6: PRI VERSION SP TIMESTAMP SP HOSTNAME SP APP-NAME SP PROCID SP MSGID SP STRUCTURED-DATA SP MSG
HEADER = re.compile(
    rb"<(\d{1,3})>1 (\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d{1,6})?(?:Z|[+-]\d\d:\d\d)) ([!-~]{1,255}) ([!-~]{1,48})"
    rb" ([!-~]{1,128}) ([!-~]{1,32}) - \xef\xbb\xbf(.*)",
    re.DOTALL,
)


@dataclass(frozen=True)
class Message:
    """One that came."""

    priority: int
    at: str
    host: str
    app: str
    msgid: str
    body: bytes

    @property
    def xml(self) -> "etree._Element":
        return etree.fromstring(self.body)


def parsed(data: bytes) -> Message:
    found = HEADER.fullmatch(data)
    assert found, data[:200]
    priority, at, host, app, _, msgid, body = found.groups()
    return Message(int(priority), at.decode(), host.decode(), app.decode(), msgid.decode(), body)


@dataclass
class Collector:
    """What came to a port of this machine, in order; `is_deaf`: connections are ended before anything is read."""

    port: int
    came: list[Message] = field(default_factory=list)
    connections: int = 0
    is_deaf: bool = False
    forgets_after: int = -1  # messages of a connection after which it is reset
    tells_end: bool = True


@contextmanager
def collecting(folder: Path, *, clients: Path | None = None) -> Iterator[Collector]:
    """Listen over TLS with the certificate in `folder`; `clients` signed the certificates that have to be shown."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "certificate.pem", folder / "key.pem")
    if clients is not None:
        context.load_verify_locations(clients)
        context.verify_mode = ssl.CERT_REQUIRED
    with socket.create_server(("127.0.0.1", 0)) as listener:
        found = Collector(listener.getsockname()[1])
        thread = threading.Thread(target=_serve, args=(listener, context, found), daemon=True)
        thread.start()
        try:
            yield found
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join(10)


def _serve(listener: socket.socket, context: ssl.SSLContext, found: Collector) -> None:
    while True:
        try:
            plain, _ = listener.accept()
        except OSError:
            return
        found.connections += 1
        with plain, suppress(OSError):
            plain.settimeout(10)
            if found.is_deaf:
                continue
            with context.wrap_socket(plain, server_side=True) as connection:
                _read(connection, found)


def _read(connection: ssl.SSLSocket, found: Collector) -> None:
    """Read octet-counted messages until the end is told. Source: RFC 5425 4.3."""
    waiting, taken = b"", 0
    while data := connection.recv(1 << 16):
        waiting += data
        while (head := re.match(rb"([1-9]\d*) ", waiting)) and len(waiting) >= head.end() + int(head[1]):
            if taken == found.forgets_after:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                return
            end = head.end() + int(head[1])
            found.came.append(parsed(waiting[head.end() : end]))
            waiting, taken = waiting[end:], taken + 1
    assert waiting == b""
    if found.tells_end:
        connection.unwrap()


_TOKENS = {
    "EventActionCode": "C R U D E",
    "EventOutcomeIndicator": "0 4 8 12",
    "NetworkAccessPointTypeCode": "1 2 3 4 5",
    "ParticipantObjectTypeCode": "1 2 3 4",
    "ParticipantObjectTypeCodeRole": " ".join(map(str, range(1, 27))),
    "ParticipantObjectDataLifeCycle": " ".join(map(str, range(1, 16))),
}


def _attribute(name: str, kind: str = "token") -> str:
    content = "".join(f"<value>{each}</value>" for each in _TOKENS.get(name, "").split())
    return f'<attribute name="{name}">{f"<choice>{content}</choice>" if content else _data(kind)}</attribute>'


def _data(kind: str) -> str:
    return "<text/>" if kind == "text" else f'<data type="{kind}"/>'


def _element(name: str, *content: str) -> str:
    return f'<element name="{name}">{"".join(content) or "<empty/>"}</element>'


def _optional(*content: str) -> str:
    return f"<optional>{''.join(content)}</optional>"


def _any(*content: str) -> str:
    return f"<zeroOrMore>{''.join(content)}</zeroOrMore>"


_OTHER = _attribute("codeSystemName") + _optional(_attribute("displayName")) + _attribute("originalText")
_CODED = _attribute("csd-code") + _OTHER
_EVENT = _element(
    "EventIdentification",
    _element("EventID", _CODED), _any(_element("EventTypeCode", _CODED)),
    _optional(_attribute("EventActionCode")), _attribute("EventDateTime", "dateTime"),
    _attribute("EventOutcomeIndicator"), _optional(_element("EventOutcomeDescription", "<text/>")),
)  # fmt: skip
_PARTICIPANT = _element(
    "ActiveParticipant",
    _any(_element("RoleIDCode", _CODED)), _optional(_element("MediaIdentifier", _element("MediaType", _CODED))),
    _attribute("UserID", "text"), _optional(_attribute("AlternativeUserID", "text")),
    _optional(_attribute("UserName", "text")), _attribute("UserIsRequestor", "boolean"),
    _optional(_attribute("NetworkAccessPointID")), _optional(_attribute("NetworkAccessPointTypeCode")),
)  # fmt: skip
_SOURCE = _element(
    "AuditSourceIdentification",
    _optional(_attribute("AuditEnterpriseSiteID")), _attribute("AuditSourceID"),
    _any(_element("AuditSourceTypeCode", _attribute("csd-code"), _optional(_OTHER))),
)  # fmt: skip
_SOP_CLASS = _element(
    "SOPClass",
    _any(_element("Instance", _attribute("UID"))), _optional(_attribute("UID")),
    _attribute("NumberOfInstances", "integer"),
)  # fmt: skip
_DESCRIPTION = _element(
    "ParticipantObjectDescription",
    _any(_element("MPPS", _attribute("UID"))), _any(_element("Accession", _attribute("Number"))), _any(_SOP_CLASS),
    _optional(_element("ParticipantObjectContainsStudy", _any(_element("StudyIDs", _attribute("UID"))))),
    _optional(_element("Encrypted", _data("boolean"))), _optional(_element("Anonymized", _data("boolean"))),
)  # fmt: skip
_OBJECT = _element(
    "ParticipantObjectIdentification",
    _element("ParticipantObjectIDTypeCode", _CODED),
    "<choice>", _element("ParticipantObjectName", _data("token")),
    _element("ParticipantObjectQuery", _data("base64Binary")), "</choice>",
    _any(_element("ParticipantObjectDetail", _attribute("type"), _attribute("value", "base64Binary"))),
    _any(_DESCRIPTION), _attribute("ParticipantObjectID"), _optional(_attribute("ParticipantObjectTypeCode")),
    _optional(_attribute("ParticipantObjectTypeCodeRole")), _optional(_attribute("ParticipantObjectDataLifeCycle")),
    _optional(_attribute("ParticipantObjectSensitivity")),
)  # fmt: skip
_GRAMMAR = (
    '<grammar xmlns="http://relaxng.org/ns/structure/1.0"'
    ' datatypeLibrary="http://www.w3.org/2001/XMLSchema-datatypes"><start>'
    + _element("AuditMessage", _EVENT, f"<oneOrMore>{_PARTICIPANT}</oneOrMore>", _SOURCE, _any(_OBJECT))
    + "</start></grammar>"
)
SCHEMA = etree.RelaxNG(etree.fromstring(_GRAMMAR))
