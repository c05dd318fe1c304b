"""Settings: one table, and the configuration made from it.

Hides where a value comes from: a TOML file, then the environment, then the command line; the later wins.
Nothing is read at import. `docs/reference/settings.md` is written from `SETTINGS` and tested against it.
"""

import difflib
import ipaddress
import os
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from zoneinfo import available_timezones

from imaging.errors import AppError, Category

ENVIRONMENT_PREFIX = "FHIR_IMAGING_"
CONFIG_VARIABLE = "FHIR_IMAGING_CONFIG"
FILE_NAME = "fhir-imaging.toml"
HIDDEN = "********"
COMMAND_LINE = "command line"

Values = Mapping[str, Any]
Environment = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Setting:
    """One row of the table: what a setting is called, what it is when nobody sets it, and how its text is read.

    `derive`, where given, computes the default from the other values and the environment; `default` is then the
    words that the documentation shows. A secret is never printed and may also come from a file (`<VARIABLE>_FILE`).
    """

    name: str
    default: str
    parse: Callable[[str], Any]
    unit: str
    help: str
    secret: bool = False
    alias: str = ""  # a further environment variable that is understood
    derive: Callable[[Values, Environment], Any] | None = None

    @property
    def variable(self) -> str:
        """The environment variable of this setting, `FHIR_IMAGING_WEB_PORT` for `web.port`."""
        return ENVIRONMENT_PREFIX + self.name.replace(".", "_").upper()


class Config(Mapping[str, Any]):
    """Every setting with its value and where that came from; cannot be changed."""

    def __init__(self, values: Values, sources: Mapping[str, str], file: Path | None = None) -> None:
        self._values = dict(values)
        self._sources = dict(sources)
        self._file = file

    def __getitem__(self, name: str) -> Any:
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return f"Config({ {name: self.shown(name) for name in self} })"

    def source(self, name: str) -> str:
        """Return where the value came from: `default`, `file PATH`, `environment NAME` or `command line`."""
        return self._sources[name]

    def arguments(self) -> list[str]:
        """Return the options that give the same settings to a command in the same environment, secrets left out."""
        options = ["--config", str(self._file)] if self._file else []
        for name in self._values:
            if self._sources[name] == COMMAND_LINE and not BY_NAME[name].secret:
                options += ["--set", f"{name}={self.shown(name)}"]
        return options

    def secret_variables(self) -> dict[str, str]:
        """Return the secrets as environment variables: what `arguments` leaves out."""
        return {s.variable: str(self._values[s.name]) for s in SETTINGS if s.secret and self._values[s.name]}

    def with_values(self, changes: Values) -> "Config":
        """Return the same settings with some values replaced, as if they came from the command line."""
        values, sources = {**self._values, **changes}, {**self._sources, **dict.fromkeys(changes, COMMAND_LINE)}
        if sources["web.base_url"] == "default":
            values["web.base_url"] = _default_base_url(values, {})
        return Config(values, sources, self._file)

    def with_port(self, port: int) -> "Config":
        """Return the same settings with the port that was really taken, where 0 was asked."""
        return self if self["web.port"] == port else self.with_values({"web.port": port})

    def shown(self, name: str) -> str:
        """Return the value as text for people; a secret that is set is shown as asterisks."""
        value = self._values[name]
        if BY_NAME[name].secret and value:
            return HIDDEN
        if isinstance(value, frozenset | tuple):
            return ",".join(sorted(value))
        return str(value).lower() if isinstance(value, bool) else str(value)


# --- readers of text; each raises ValueError saying what it wants --------------------------------------------------


def _text(text: str) -> str:
    return text.strip()


def _host(text: str) -> str:
    if not text.strip():
        raise ValueError("an address to listen on, such as 127.0.0.1 or ::")
    return text.strip()


def _path(text: str) -> Path:
    if not text.strip():
        raise ValueError("a path")
    return Path(text).expanduser().absolute()


_ROLES = ("patient", "practitioner", "technologist", "operator", "auditor")


def _roles(text: str) -> tuple[str, ...]:
    """Read roles of people."""
    found = tuple(dict.fromkeys(filter(None, map(str.strip, text.split(",")))))
    if not set(found) <= set(_ROLES):
        raise ValueError(f"a list of roles, comma separated, of {', '.join(_ROLES)}")
    return found


def _attributes(text: str) -> tuple[str, ...]:
    """Read attributes by which images are found; return their tags."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        return ()
    # With pydicom, which no other setting needs.
    from imaging.dicomweb.query import attribute
    from imaging.values import BINARY_VRS

    wanted = "a list of attributes of DICOM, by keyword or tag, that are neither binary nor inside of a sequence"
    found = []
    for name in names:
        try:
            tag, vr = attribute(name)
        except AppError:
            raise ValueError(wanted) from None
        if vr in BINARY_VRS or "." in tag:
            raise ValueError(wanted)
        found.append(tag)
    return tuple(dict.fromkeys(found))


def _optional_path(text: str) -> Path | None:
    return _path(text) if text.strip() else None


def _masks(text: str) -> Path | None:
    """Read the path of a file of masks, and the file: a mistake in it is told when the server starts."""
    if not text.strip():
        return None
    from imaging.masks import masks_from_file  # with numpy, which no other setting needs

    path = _path(text)
    try:
        masks_from_file(path)
    except AppError as error:
        raise ValueError(f"a file of masks: {error.where}: {error.message}") from None
    return path


def _integer(low: int, high: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        wanted = f"a whole number from {low} to {high}"
        try:
            value = int(text)
        except ValueError:
            raise ValueError(wanted) from None
        if not low <= value <= high:
            raise ValueError(wanted)
        return value

    return parse


def _number(low: float, high: float) -> Callable[[str], float]:
    def parse(text: str) -> float:
        wanted = f"a number from {low:g} to {high:g}"
        try:
            value = float(text)
        except ValueError:
            raise ValueError(wanted) from None
        if not low <= value <= high:
            raise ValueError(wanted)
        return value

    return parse


def _choice(*options: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        value = text.strip().lower()
        if value not in options:
            raise ValueError("one of " + ", ".join(options))
        return value

    return parse


def _web_address(text: str) -> str:
    value = text.strip().rstrip("/")
    if value and not value.startswith(("http://", "https://")):
        raise ValueError("an address that starts with http:// or https://")
    return value


def _collector(text: str) -> str:
    value = text.strip().rstrip("/")
    wanted = "tls://HOST:PORT or udp://HOST:PORT"
    found = urlsplit(value)
    try:
        is_whole = found.scheme in ("tls", "udp") and bool(found.hostname) and found.port != 0
    except ValueError:
        raise ValueError(wanted) from None
    if value and not (is_whole and value == f"{found.scheme}://{found.netloc}" and "@" not in value):
        raise ValueError(wanted)
    return value


def _proxies(text: str) -> str:
    for each in filter(None, (part.strip() for part in text.split(","))):
        if each != "*":
            try:
                ipaddress.ip_network(each, strict=False)
            except ValueError:
                raise ValueError("a list of addresses or networks, or *") from None
    return text.strip()


def _networks(text: str) -> str:
    for each in filter(None, (part.strip() for part in text.split(","))):
        try:
            ipaddress.ip_network(each)
        except ValueError:
            raise ValueError("a list of networks such as 10.1.0.0/16, fd00::/8") from None
    return text.strip()


def _origins(text: str) -> frozenset[str]:
    found = frozenset(filter(None, (part.strip() for part in text.split(","))))
    if any(each != "*" and not re.fullmatch(r"https?://[^/\s*?#@]+", each) for each in found):
        raise ValueError("a list of origins such as https://viewer.example.org, or *")
    return found


_SIZE_UNITS = {"": 1, "b": 1, "kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30, "tib": 1 << 40}


def _time_zone(text: str) -> str:
    if text and text not in available_timezones():
        raise ValueError("an IANA time zone such as Europe/Berlin is wanted")
    return text


def _size(low: int, high: int) -> Callable[[str], int]:
    """Read `512 MiB`, `2GiB` or a plain number of bytes."""

    def parse(text: str) -> int:
        wanted = f"a size from {low} to {high} bytes, such as 512 MiB or 2 GiB"
        compact = text.replace(" ", "").replace("_", "").lower()
        digits = compact.rstrip("bikmgt")
        try:
            value = int(digits) * _SIZE_UNITS[compact[len(digits) :]]
        except (ValueError, KeyError):
            raise ValueError(wanted) from None
        if not low <= value <= high:
            raise ValueError(wanted)
        return value

    return parse


# --- defaults that depend on the machine or on other settings ------------------------------------------------------


def _default_data_dir(_: Values, environment: Environment) -> Path:
    home = environment.get("XDG_DATA_HOME", "")
    # The XDG specification: a relative path in the variable is to be ignored.
    base = Path(home) if Path(home).is_absolute() else Path("~/.local/share").expanduser()
    return base / "fhir-imaging"


def _processors() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _default_web_workers(_values: Values, _environment: Environment) -> int:
    return max(2, min(4, _processors()))


def _default_task_workers(_values: Values, _environment: Environment) -> int:
    return max(1, _processors() // 2)


def _default_encode_threads(_values: Values, _environment: Environment) -> int:
    return min(64, _processors())


_EVERY_ADDRESS = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}  # noqa: S104 -- compared, not bound


def _default_base_url(values: Values, _: Environment) -> str:
    host = str(values["web.host"])
    shown = _EVERY_ADDRESS.get(host, f"[{host}]" if ":" in host else host)
    scheme = "https" if values["web.tls_certificate"] else "http"
    return f"{scheme}://{shown}:{values['web.port']}"


KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30

SETTINGS: tuple[Setting, ...] = (
    # --- where things are kept
    Setting(
        "data.dir", "$XDG_DATA_HOME/fhir-imaging, else ~/.local/share/fhir-imaging", _path, "",
        "Directory of one server: settings file, embedded engine, connection file. Made with mode 0700.",
        derive=_default_data_dir,
    ),
    Setting(
        "mongodb.uri", "", _text, "",
        "MongoDB to use: a replica set, 6.0 or later. Empty: this program starts its own.",
        secret=True, alias="MONGODB_URI",
    ),
    Setting("mongodb.database", "fhir_imaging", _text, "", "Name of the database that holds everything."),
    Setting(
        "mongodb.timeout_s", "10", _number(0.1, 600), "s",
        "How long to look for MongoDB before giving up.",
    ),
    Setting("engine.cache_gb", "0.5", _number(0.25, 10_000), "GiB", "Memory the embedded engine may use as its cache."),
    Setting(
        "engine.oplog_mb", "990", _integer(990, 1_000_000), "MiB",
        "Size of the embedded engine's operation log on disk.",
    ),
    Setting(
        "engine.start_timeout_s", "120", _number(1, 86_400), "s",
        "How long the embedded engine may take to start; recovery after a power cut takes time.",
    ),
    # --- web
    Setting("web.host", "127.0.0.1", _host, "", "Address to listen on. Without TLS, keep it on the loopback."),
    Setting("web.port", "8080", _integer(0, 65_535), "", "Port to listen on; `serve` chooses a free one for 0."),
    Setting(
        "web.base_url", "http://HOST:PORT, https with a certificate", _web_address, "",
        "Address by which clients reach this server; it is written into resources. Set it to a name that clients know.",
        derive=_default_base_url,
    ),
    Setting(
        "web.tls_certificate", "", _optional_path, "",
        "PEM file of the certificate that the web server shows, with those between it and its authority; with it, the "
        "web server speaks HTTPS alone. A new one in its place is taken within seconds. Empty: HTTP, for a proxy.",
    ),
    Setting(
        "web.tls_key", "", _optional_path, "",
        "PEM file of the key to that certificate, without a password; empty: it is in the same file.",
    ),
    Setting("web.tls_minimum", "1.2", _choice("1.2", "1.3"), "", "Oldest version of TLS that is spoken."),
    Setting(
        "web.tls_clients", "", _optional_path, "",
        "PEM file of the authorities whose certificates clients have to show; empty: they are asked for none.",
    ),
    Setting(
        "web.tls_client_certificate", "required", _choice("required", "optional"), "",
        "With web.tls_clients, whether a client without a certificate is refused, or let in; one that is shown has to "
        "be good. It opens nothing by itself: a token is needed as well.",
    ),
    Setting(
        "web.workers", "one per processor, 2 to 4", _integer(1, 256), "processes",
        "Processes that answer requests.", derive=_default_web_workers,
    ),
    Setting("web.threads", "8", _integer(1, 256), "threads", "Requests that one process answers at a time."),
    Setting(
        "web.sockets", "200", _integer(0, 10_000), "connections",
        "WebSocket connections that one process keeps open; they take none of its threads.",
    ),
    Setting(
        "web.timeout_s", "120", _integer(5, 86_400), "s",
        "A web process that shows no sign of life for so long is replaced.",
    ),
    Setting(
        "web.client_timeout_s", "60", _number(1, 3_600), "s",
        "A client that sends or takes nothing for so long, or less than 1 KiB for each of these seconds, is given up.",
    ),
    Setting(
        "web.stop_s", "30", _integer(1, 3_600), "s",
        "On stop, how long requests that are being answered may take to end.",
    ),
    Setting(
        "web.recycle_requests", "50000", _integer(0, 1_000_000_000), "requests",
        "A web process is replaced after about so many requests, to bound the growth of memory; 0: never.",
    ),
    Setting(
        "web.trusted_proxies", "127.0.0.1", _proxies, "",
        "Addresses or networks of proxies, comma separated, whose X-Forwarded-* headers are believed; *: all.",
    ),
    Setting(
        "web.cors_origins", "", _origins, "",
        "Origins, comma separated, whose web pages may call from a browser (CORS); *: all; empty: none.",
    ),
    # --- FHIR
    Setting(
        "fhir.ids", "server", _choice("server", "clients"), "",
        "Who chooses the id of a new resource: the server, or clients too, by updating what is not there.",
    ),
    Setting(
        "fhir.profiles", "declared", _choice("off", "declared"), "",
        "Whether what clients write has to conform to profiles: to those that its meta.profile names and that are "
        "held here, or to none.",
    ),
    # --- archive
    Setting(
        "archive.masks", "", _masks, "",
        "TOML file that says which parts of the images of which devices are burned out where images are given without "
        "names; empty: none.",
    ),
    Setting(
        "archive.codec", "htj2k", _choice("htj2k", "j2k"), "",
        "Lossless form of stored pixels: HTJ2K (JPEG 2000 Part 15) or JPEG 2000 Part 1.",
    ),
    Setting(
        "archive.encode_threads", "one per processor", _integer(1, 64), "threads",
        "Frames that one process encodes at a time.", derive=_default_encode_threads,
    ),
    Setting(
        "archive.time_zone", "", _time_zone, "",
        "Time zone (IANA name, such as Europe/Berlin) of times in images that do not tell theirs; "
        "without it FHIR shows their date only.",
    ),
    Setting(
        "archive.keep_days", "0", _number(0, 100_000), "days",
        "How long images are kept at least from when they were stored; until then nobody can delete them. A contract "
        "may ask for more.",
    ),
    Setting(
        "archive.undelete_h", "168", _number(0, 100_000), "h",
        "How long deleted images can be taken back; they use space until then. 0: not at all.",
    ),
    Setting(
        "archive.patient_system", "", _text, "",
        "Identifier system (URI) of Patient IDs that come without issuer; without it each subscriber has its own.",
    ),
    # --- limits
    Setting(
        "limits.request_bytes", "16 GiB", _size(MIB, 1 << 44), "bytes",
        "Largest request body, for example one STOW-RS request with a whole study.",
    ),
    Setting("limits.instance_bytes", "2 GiB", _size(KIB, 1 << 40), "bytes", "Largest single DICOM instance."),
    Setting("limits.parts", "20000", _integer(1, 1_000_000), "parts", "Most parts of one multipart request."),
    Setting("limits.resource_bytes", "8 MiB", _size(KIB, 15 * MIB), "bytes", "Largest FHIR resource in a request."),
    Setting(
        "limits.bundle_entries", "1000", _integer(1, 100_000), "entries",
        "Most entries of a batch or transaction Bundle.",
    ),
    Setting(
        "limits.bundle_bytes", "32 MiB", _size(KIB, GIB), "bytes",
        "Largest batch or transaction Bundle, and largest answer to one.",
    ),
    Setting("limits.search_count", "1000", _integer(1, 100_000), "matches", "Most matches on one page of a search."),
    Setting(
        "limits.search_count_default", "50", _integer(1, 100_000), "matches",
        "Matches on one page when the client does not say (FHIR `_count`, QIDO-RS `limit`).",
    ),
    # --- search for images
    *(
        Setting(
            f"search.{level}_attributes", "", _attributes, "",
            f"Further attributes, comma separated, by which QIDO-RS finds {level} and which it returns: keywords such "
            f"as {example}, or tags. After a change, `fhir-imaging reindex` finds by them what is stored already.",
        )
        for level, example in (
            ("studies", "MedicalAlerts"), ("series", "SoftwareVersions"), ("instances", "AcquisitionDateTime"),
        )
    ),
    # --- access
    Setting(
        "access.cache_s", "1", _number(0, 3_600), "s",
        "How long a checked token is believed without asking again: a withdrawn one works at most so long.",
    ),
    Setting("access.token_days", "365", _number(0.0001, 36_500), "days", "Life of a token from `fhir-imaging token`."),
    Setting(
        "access.capability_s", "600", _number(1, 86_400), "s",
        "Life of an address that opens a study without a token (right `receive-by-url`); it never outlives the token.",
    ),
    Setting(
        "access.emergency_s", "900", _number(60, 3_600), "s",
        "Life of the token of an emergency access; there is no refresh token.",
    ),
    Setting(
        "access.emergencies_per_day", "5", _integer(1, 1_000), "",
        "How often one person may ask for emergency access in a day (UTC), whether a patient is found or not.",
    ),
    Setting(
        "audit.key", "", _text, "",
        "Key that seals the audit record, 32 characters or more; empty: one that lies in the database.",
        secret=True,
    ),
    Setting(
        "audit.repository", "", _collector, "",
        "Audit Record Repository that the record is forwarded to as syslog (IHE ATNA): tls://HOST:PORT, or "
        "udp://HOST:PORT, which is neither encrypted nor certain; empty: none.",
    ),
    Setting(
        "audit.ca_bundle", "", _optional_path, "",
        "PEM file of the authorities that signed the repository's certificate; empty: those of the system.",
    ),
    Setting(
        "audit.tls_certificate", "", _optional_path, "",
        "PEM file of the certificate that the repository is shown; empty: none.",
    ),
    Setting(
        "audit.tls_key", "", _optional_path, "",
        "PEM file of the key to that certificate, without a password; empty: it is in the same file.",
    ),
    Setting("audit.timeout_s", "10", _number(0.1, 600), "s", "Longest wait for the repository to connect or answer."),
    Setting(
        "audit.source", "", _text, "",
        "What this server calls itself as a source of audit messages (AuditSourceID); empty: the name of the machine.",
    ),
    Setting("audit.site", "", _text, "", "Site within the enterprise, in audit messages (AuditEnterpriseSiteID)."),
    # --- apps and people that sign in
    Setting(
        "smart.token_s", "3600", _number(1, 86_400), "s",
        "Life of an access token that an app obtains for a person.",
    ),
    Setting("smart.backend_token_s", "300", _number(1, 3_600), "s", "Life of an access token of a program by itself."),
    Setting(
        "smart.refresh_days", "90", _number(0.001, 3_650), "days",
        "How long an app may go without asking for its next token (offline_access).",
    ),
    Setting(
        "smart.session_hours", "12", _number(0.01, 720), "h",
        "How long a person stays signed in in a browser.",
    ),
    Setting(
        "smart.second_factor_roles", "", _roles, "",
        "Roles, comma separated, whose people need a second factor, such as operator, auditor. Who has none sets one "
        "up at the next sign-in; sessions without one end.",
    ),
    Setting(
        "smart.user_verification", "preferred", _choice("required", "preferred", "discouraged"), "",
        "Whether a security key has to know its owner, by PIN or finger, beside being there (WebAuthn).",
    ),
    Setting("smart.key_days", "90", _number(1, 3_650), "days", "Age at which the key of id tokens is replaced."),
    Setting(
        "smart.requests_per_minute", "300", _integer(1, 1_000_000), "requests",
        "How often one network address may try to sign in or ask for tokens in a minute.",
    ),
    Setting(
        "smart.registration", "off", _choice("off", "subscribers"), "",
        "Whether apps can be registered over the network, with a token of their subscriber (RFC 7591).",
    ),
    # --- tokens of another authorization server
    Setting(
        "issuer.url", "", _text, "",
        "Issuer whose tokens are taken as well, such as an EHR; exactly as its tokens say (iss).",
    ),
    Setting("issuer.jwks_url", "", _text, "", "Address of the issuer's keys, where its tokens are signed (JWT)."),
    Setting(
        "issuer.introspection_url", "", _text, "",
        "Where the issuer is asked about tokens that are not signed (RFC 7662).",
    ),
    Setting("issuer.client_id", "", _text, "", "Client id of this server with the issuer, to ask about tokens."),
    Setting("issuer.client_secret", "", _text, "", "Secret of that client.", secret=True),
    Setting(
        "issuer.audience", "", _text, "",
        "Who tokens of the issuer have to be for (aud); empty: the FHIR base of this server.",
    ),
    Setting(
        "issuer.subscriber", "", _text, "", "Subscriber whose contracts bound what tokens of the issuer open."
    ),
    Setting(
        "issuer.patient_system", "", _text, "",
        "Identifier system under which Patients here have the ids of the issuer's Patients.",
    ),
    # --- background work
    Setting(
        "work.sweep_interval_s", "60", _number(0.1, 86_400), "s",
        "Time between two rounds of the maintenance worker.",
    ),
    Setting(
        "work.projection_quiet_s", "1", _number(0, 3_600), "s",
        "How long a study must be quiet before its ImagingStudy is written, so that a burst is one write.",
    ),
    Setting(
        "work.rules_quiet_s", "10", _number(0, 86_400), "s",
        "How long a study must be quiet before processing rules look at it, so that they see all that was sent.",
    ),
    Setting(
        "work.task_workers", "one for two processors", _integer(0, 64), "orders",
        "Orders that one worker process does at a time, each in a process of its own; 0: none.",
        derive=_default_task_workers,
    ),
    Setting(
        "work.transfer_workers", "2", _integer(0, 64), "orders",
        "Orders that wait for other machines (collections, deliveries), done at a time besides the others; 0: none.",
    ),
    Setting(
        "work.notifications", "4", _integer(0, 64), "Subscriptions",
        "Subscriptions that one worker process notifies at a time; 0: none.",
    ),
    Setting("work.order_cpu_s", "3600", _integer(1, 1_000_000), "s", "Processor time that one order may use."),
    Setting("work.order_wall_s", "7200", _number(1, 1_000_000), "s", "Time after which an order is given up."),
    Setting(
        "work.order_memory_mb", "16384", _integer(512, 10_000_000), "MB",
        "Address space of the process that does an order, libraries included.",
    ),
    Setting(
        "work.order_attempts", "5", _integer(1, 100), "",
        "How often an order is tried that fails by a fault, or whose claim lapses.",
    ),
    Setting(
        "work.claim_s", "900", _number(1, 1_000_000), "s",
        "How long the claim of a processor elsewhere holds after its last update of the Task.",
    ),
    # --- bulk data
    Setting(
        "bulk.exports", "2", _integer(1, 1_000), "exports",
        "Exports that one subscriber may have under way at a time; another is refused until one ends.",
    ),
    Setting(
        "bulk.file_bytes", "256 MiB", _size(KIB, 1 << 40), "bytes",
        "Largest file of an export before compression; a single resource may be larger.",
    ),
    Setting("bulk.files", "10000", _integer(1, 1_000_000), "files", "Most files of one export."),
    Setting(
        "bulk.settle_s", "2", _number(0, 3_600), "s",
        "How far the clocks of this server's machines may differ: an export waits so long before it begins to read, so "
        "that it misses nothing.",
    ),
    # --- connections to others
    Setting(
        "outbound.private_networks", "", _networks, "",
        "Networks, comma separated, that registered endpoints may lie in although they are not public, and without "
        "TLS. What is public is reached by TLS alone.",
    ),
    Setting(
        "outbound.ca_bundle", "", _text, "",
        "PEM file of certificate authorities that are believed besides those of the system.",
    ),
    Setting("outbound.connect_s", "10", _number(0.1, 600), "s", "Longest wait for a connection to an endpoint."),
    Setting(
        "outbound.silence_s", "120", _number(0.1, 3_600), "s",
        "Longest wait for an endpoint to send or take the next bytes.",
    ),
    Setting(
        "outbound.window_hours", "72", _number(0.0001, 100_000), "h",
        "How long a delivery is tried, from the first try on; the period of its order may end it earlier.",
    ),
    Setting(
        "outbound.pause_s", "5", _number(0.01, 3_600), "s",
        "Pause after an endpoint did not answer; it doubles with each failure in a row.",
    ),
    Setting("outbound.longest_pause_s", "600", _number(0.01, 86_400), "s", "Longest pause between two tries."),
    # --- subscriptions
    Setting(
        "subscriptions.most", "50", _integer(0, 100_000), "",
        "Most Subscriptions of one subscriber, and as many AE titles that are subscribed to work items; 0: nobody may "
        "have any.",
    ),
    Setting(
        "subscriptions.private_networks", "", _networks, "",
        "Networks, comma separated, that endpoints of Subscriptions may lie in although they are not public, and "
        "without TLS. Subscribers choose these addresses by themselves; empty: public ones only, by TLS.",
    ),
    Setting(
        "subscriptions.timeout_s", "30", _number(0.1, 120), "s",
        "Longest wait for an endpoint to take a notification, where the Subscription does not say.",
    ),
    Setting(
        "subscriptions.attempts", "20", _integer(1, 1_000), "",
        "Failures in a row, with the pauses of outbound.pause_s, after which a Subscription has the status error.",
    ),
    Setting(
        "subscriptions.kept_hours", "168", _number(0.01, 100_000), "h",
        "How long events are kept, to be told or asked for.",
    ),
    # --- hard copy
    Setting(
        "hardcopy.logo", "", _optional_path, "",
        "Image file with the institution's sign for the top of every page, such as a PNG; empty: none.",
    ),
    Setting(
        "hardcopy.poll_s", "30", _number(1, 86_400), "s",
        "How often printers are asked how they are; the worker does it where any is registered.",
    ),
    # --- collection
    Setting(
        "collect.round_instances", "20000", _integer(1, 10_000_000), "instances",
        "Most instances that one round fetches from a source; the next round goes on at once.",
    ),
    Setting(
        "collect.round_bytes", "16 GiB", _size(MIB, 1 << 50), "bytes",
        "About how much one round fetches from a source; an instance that was begun is fetched to its end.",
    ),
    Setting(
        "collect.round_s", "900", _number(1, 86_400), "s",
        "About how long one round takes, so that sources take turns and work shows.",
    ),
    Setting(
        "collect.day_instances", "0", _integer(0, 1_000_000_000), "instances",
        "Most instances that are fetched from one source in a day (UTC); 0: any number.",
    ),
    Setting(
        "collect.day_bytes", "0", _size(0, 1 << 60), "bytes",
        "About how much is fetched from one source in a day (UTC); 0: any amount.",
    ),
    # --- DICOM without the web
    Setting("dimse.host", "127.0.0.1", _host, "", "Address that `dimse` listens on."),
    Setting("dimse.port", "11112", _integer(0, 65_535), "", "Port that `dimse` listens on, 0 for a free one."),
    Setting("dimse.title", "FHIRPRINT", _text, "", "Application entity title of the printer that modalities see."),
    Setting("dimse.associations", "10", _integer(1, 1_000), "", "Modalities that may print at a time."),
    Setting("dimse.idle_s", "60", _number(1, 3_600), "s", "Longest silence of a modality before it is cut off."),
    Setting(
        "dimse.tls_certificate", "", _optional_path, "",
        "PEM file of the certificate that `dimse` shows, with those between it and its authority; with it, `dimse` "
        "listens over TLS alone. Empty: DICOM is not encrypted.",
    ),
    Setting(
        "dimse.tls_key", "", _optional_path, "",
        "PEM file of the key to that certificate, without a password; empty: it is in the same file.",
    ),
    Setting(
        "dimse.tls_clients", "", _optional_path, "",
        "PEM file of the authorities whose certificates modalities have to show; empty: they are asked for none.",
    ),
    # --- logs
    Setting(
        "log.level", "info", _choice("debug", "info", "warning", "error"), "",
        "Least important entries that are written.",
    ),
    Setting(
        "log.form", "auto", _choice("auto", "json", "text"), "",
        "Form of the log: one JSON object a line, or text for people; auto: text on a terminal, JSON elsewhere.",
    ),
)  # fmt: skip

BY_NAME: dict[str, Setting] = {setting.name: setting for setting in SETTINGS}


def load(
    command_line: Mapping[str, str] | None = None,
    *,
    environment: Environment | None = None,
    file: Path | None = None,
) -> Config:
    """Return the configuration. Raises INVALID naming the setting, its source and what is wanted.

    `command_line` maps setting names to text. `file` must exist when it is given here or by `FHIR_IMAGING_CONFIG`;
    otherwise `fhir-imaging.toml` in the data directory is read if it is there.
    """
    environment = os.environ if environment is None else environment
    given = _given_on_command_line(command_line or {})
    from_environment = _given_in_environment(environment)
    first = {**from_environment, **given}
    path = _find_file(file, environment, first)
    texts = {**(_given_in_file(path) if path else {}), **first}
    return _resolve(texts, environment, path)


def networks(text: str) -> tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...]:
    """Return the networks of a setting that lists them."""
    return tuple(ipaddress.ip_network(each.strip()) for each in text.split(",") if each.strip())


def unknown_variables(environment: Environment) -> list[str]:
    """Return the `FHIR_IMAGING_*` variables that no setting reads: misspelt, or set by something else.

    They are no error: a container platform adds such names by itself (`FHIR_IMAGING_SERVICE_HOST`).
    """
    known = {CONFIG_VARIABLE} | {s.variable for s in SETTINGS} | {f"{s.variable}_FILE" for s in SETTINGS if s.secret}
    return sorted(name for name in environment if name.startswith(ENVIRONMENT_PREFIX) and name not in known)


def _given_on_command_line(command_line: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    for name in command_line:
        _require_known(name, COMMAND_LINE)
    return {name: (text, COMMAND_LINE) for name, text in command_line.items()}


def _given_in_environment(environment: Environment) -> dict[str, tuple[str, str]]:
    given: dict[str, tuple[str, str]] = {}
    for setting in SETTINGS:
        for variable in filter(None, (setting.variable, setting.alias)):
            if variable in environment:
                given[setting.name] = (environment[variable], f"environment {variable}")
                break
            if setting.secret and f"{variable}_FILE" in environment:
                path = Path(environment[f"{variable}_FILE"])
                given[setting.name] = (_read(path, f"environment {variable}_FILE").strip(), f"file {path}")
                break
    return given


def _find_file(file: Path | None, environment: Environment, first: Mapping[str, tuple[str, str]]) -> Path | None:
    if file is not None:
        return file
    if environment.get(CONFIG_VARIABLE):
        return Path(environment[CONFIG_VARIABLE])
    data_dir = _resolve({k: v for k, v in first.items() if k == "data.dir"}, environment)["data.dir"]
    candidate: Path = data_dir / FILE_NAME
    return candidate if candidate.is_file() else None


def _given_in_file(path: Path) -> dict[str, tuple[str, str]]:
    source = f"file {path}"
    try:
        document = tomllib.loads(_read(path, source))
    except tomllib.TOMLDecodeError as error:
        raise AppError(Category.INVALID, f"not a TOML file: {error}", where=source) from None
    given = {}
    for name, value in _flatten(document, ""):
        _require_known(name, source)
        if isinstance(value, list | dict) or value is None:
            raise AppError(Category.INVALID, f"{name} must be a single value", where=source)
        given[name] = (str(value).lower() if isinstance(value, bool) else str(value), source)
    return given


def _flatten(table: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in table.items():
        if isinstance(value, dict):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _read(path: Path, where: str) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise AppError(Category.INVALID, f"cannot read {path}: {error.strerror}", where=where) from None
    except UnicodeDecodeError:
        raise AppError(Category.INVALID, f"{path} is not UTF-8 text", where=where) from None


def _require_known(name: str, source: str) -> None:
    if name not in BY_NAME:
        near = difflib.get_close_matches(name, BY_NAME, n=1)
        hint = f"did you mean {near[0]}?" if near else "`fhir-imaging config` lists all settings"
        raise AppError(Category.INVALID, f"there is no setting {name!r}; {hint}", where=source)


def _resolve(texts: Mapping[str, tuple[str, str]], environment: Environment, file: Path | None = None) -> Config:
    """Parse what is given and fill in the defaults, derived ones last and in the order of the table."""
    values: dict[str, Any] = {}
    sources: dict[str, str] = {}
    for setting in SETTINGS:
        text, source = texts.get(setting.name, (setting.default, "default"))
        sources[setting.name] = source
        if source == "default" and setting.derive is not None:
            continue
        try:
            values[setting.name] = setting.parse(text)
        except ValueError as error:
            shown = "the value" if setting.secret else repr(text[:80])
            raise AppError(Category.INVALID, f"{setting.name}: {shown} is not {error}", where=source) from None
    for setting in SETTINGS:
        if setting.name not in values and setting.derive is not None:
            values[setting.name] = setting.derive(values, environment)
    ordered = {setting.name: values[setting.name] for setting in SETTINGS}
    _check_together(ordered)
    return Config(ordered, sources, file)


def _check_together(values: Values) -> None:
    if values["limits.search_count_default"] > values["limits.search_count"]:
        raise AppError(
            Category.INVALID, "limits.search_count_default is larger than limits.search_count", where="settings"
        )
    if not values["mongodb.database"] or set(values["mongodb.database"]) & set('/\\. "$*<>:|?'):
        raise AppError(Category.INVALID, "mongodb.database is not a database name", where="settings")
    for door in ("web", "dimse"):
        if not values[f"{door}.tls_certificate"] and (values[f"{door}.tls_key"] or values[f"{door}.tls_clients"]):
            message = "a key and clients' authorities are for TLS, which needs a certificate"
            raise AppError(Category.INVALID, message, where=f"{door}.tls_certificate")
    if values["web.tls_certificate"] and values["web.base_url"].startswith("http:"):
        message = "the web server speaks HTTPS by web.tls_certificate: its address begins with https://"
        raise AppError(Category.INVALID, message, where="web.base_url")
