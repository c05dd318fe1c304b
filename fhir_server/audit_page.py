"""The table of `docs/reference/audit-messages.md`: how each kind of access is told as an audit message."""

from fhir_server.access.audit import SUCCESS, Access
from fhir_server.access.audit_message import RECORDS, ROLES, SEARCHES, event_id

_ACTIONS = {"C": "create", "R": "read", "U": "update", "D": "delete", "E": "execute"}
HEADER = "| EventID | EventTypeCode | action | who asked is | this server is |\n|---|---|---|---|---|\n"


def table() -> str:
    """Return one row for each kind of access."""
    rows = [_row(access) for access in Access]
    return HEADER + "".join(dict.fromkeys(rows))


def _row(access: Access) -> str:
    kind = access.value
    event = {"outcome": SUCCESS, "agent": [{"altId": "x"}], "type": kind.type, "subtype": [kind.subtype], "entity": []}
    found = event_id(event)
    code = kind.subtype["code"]
    by_resource = kind.type["code"] == "rest" and code not in SEARCHES
    name = "by resource" if by_resource else f"{found.text} ({found.code})"
    asking, ours = ROLES.get((found.code, kind.action), (None, None))
    type_code = "" if code == found.code else f"`{code}`"
    first = asking.text.removesuffix(" Role ID").lower() if asking else ""
    second = ours.text.removesuffix(" Role ID").lower() if ours else "application"
    return f"| {name} | {type_code} | {_ACTIONS[kind.action]} | {first} | {second} |\n"


def records() -> str:
    """Return one row for each type of resource that has an event of its own."""
    rows = [f"| {kind} | {code.text} ({code.code}) |\n" for kind, code in RECORDS.items()]
    return "| resource | EventID |\n|---|---|\n" + "".join(rows)
