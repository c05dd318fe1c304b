"""Composition root: from a configuration to a server.

The only place that knows how the parts fit; `doors` and `background` run on what it makes. Nothing here is made at
import; a MongoClient is made per process, after any fork, by whoever calls `build`.
"""

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from importlib import metadata
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

from pymongo import MongoClient
from pymongo.database import Database
from pymongo.errors import PyMongoError

from fhir_server import engine, logs
from fhir_server.access.agreements import Agreements
from fhir_server.access.audit import Audit
from fhir_server.access.capability_urls import CapabilityUrls
from fhir_server.access.discovery import security
from fhir_server.access.foreign import ForeignTokens, Issuer
from fhir_server.access.policy import restriction, writes_about
from fhir_server.access.principals import Principal, Principals
from fhir_server.config import Config, networks
from fhir_server.corrections import AttributeCorrections
from fhir_server.deidentified import Deidentified
from fhir_server.deletion import Deletion
from fhir_server.endpoints import Endpoints
from fhir_server.model.capability import TOPIC_SERVER, capability_statement, with_parameters
from fhir_server.model.criteria import Limits as SearchLimits
from fhir_server.model.resources import RESOURCES
from fhir_server.model.task_writing import Actor
from fhir_server.outbound.remote import Rules
from fhir_server.ownership import HOOKS, hooks_of, hooks_of_parameters
from fhir_server.printers import Printers
from fhir_server.reconciliation import Reconciliation
from fhir_server.rest import subscriptions as subscribing
from fhir_server.rest.batch import BundleLimits
from fhir_server.rest.exporting import BULK_DATA, EXPORTS
from fhir_server.rest.held import Held
from fhir_server.rest.operations import OPERATIONS
from fhir_server.rest.subscription_operations import socket_url
from fhir_server.sign_on import SignOn, sign_on, stores
from fhir_server.store import chain
from fhir_server.store.answers import Answers
from fhir_server.store.capability_urls import CapabilityUrls as GivenOut
from fhir_server.store.collected import Collected
from fhir_server.store.credentials import Credentials
from fhir_server.store.documents import Stamp
from fhir_server.store.exports import Exports
from fhir_server.store.filters import UNRESTRICTED
from fhir_server.store.lease import Leases
from fhir_server.store.parameters import SearchParameters
from fhir_server.store.peers import Peers
from fhir_server.store.printers import PrinterStore
from fhir_server.store.pseudonyms import PseudonymRows
from fhir_server.store.reconciliations import Reconciliations
from fhir_server.store.reindex import reindex_resources
from fhir_server.store.repository import Repository
from fhir_server.store.schema import ensure_schema
from fhir_server.store.secrets import secret
from fhir_server.store.subscriptions import Subscriptions
from fhir_server.store.usage import Usage
from fhir_server.store.watchers import Watchers
from fhir_server.studies import Place, Studies
from fhir_server.work import parties
from fhir_server.work.kinds import handlers
from fhir_server.work.overseeing import overseer
from imaging.archive import Archive, with_extra
from imaging.blobs.gridfs import GridFsBlobs
from imaging.dataset import Limits
from imaging.dicomweb import Level
from imaging.errors import AppError, Category
from imaging.masks import masks_from_file

if TYPE_CHECKING:  # a command that serves nobody does without it, and starts sooner
    from fhir_server.store.rates import Rates

SECURITY = {
    "description": "Every request but this one needs a bearer token: Authorization: Bearer <token>. "
    "What a token allows follows from the contracts of its subscriber that are in force.",
}

SHORTEST_AUDIT_KEY = 32  # characters

Progress = Callable[[int, int], None]  # (done, total)


@dataclass(frozen=True, slots=True)
class Server:
    """Everything that a door or a command needs; `own` is the server's own repository: unrestricted and internal."""

    config: Config
    database: Database[dict[str, Any]]
    clock: Callable[[], datetime]
    archive: Archive
    own: Repository
    repository_for: Callable[[Principal], Repository]
    studies: Studies
    reconciliation: Reconciliation
    corrections: AttributeCorrections
    deidentified: Deidentified
    principals: Principals
    capability_urls: CapabilityUrls
    sign_on: SignOn
    printers: Printers
    answers: Answers
    exports: Exports
    audit: Audit
    usage: Usage
    peers: Peers
    collected: Collected
    subscriptions: Subscriptions
    watchers: Watchers
    search_parameters: SearchParameters
    base_statement: dict[str, Any]

    @property
    def fhir_url(self) -> str:
        """Base of the FHIR door as clients reach it."""
        return f"{self.config['web.base_url']}/fhir"

    @property
    def dicomweb_url(self) -> str:
        """Base of the DICOMweb door as clients reach it."""
        return f"{self.config['web.base_url']}/dicom-web"

    def actor_for(self, principal: Principal) -> Actor:
        """Return a principal as writer of Tasks."""
        return parties.actor_of(principal, self.own)

    @property
    def search_limits(self) -> SearchLimits:
        """Bounds on FHIR searches."""
        config = self.config
        return SearchLimits(
            count=config["limits.search_count"],
            default_count=config["limits.search_count_default"],
            table=self.search_parameters.searched,
        )

    @property
    def capability_statement(self) -> dict[str, Any]:
        """What the server says of itself, search parameters that clients defined included."""
        return with_parameters(self.base_statement, self.search_parameters.custom())

    @property
    def outbound(self) -> Rules:
        """What holds for all connections that are made to peers."""
        return _outbound(self.config)

    @property
    def endpoints(self) -> Endpoints:
        """The register of peers for the operator."""
        return Endpoints(self.peers, self.own, self.principals, self.outbound, self.clock)

    @property
    def rates(self) -> "Rates":
        """Who asks too often at the doors of the authorization server."""
        from fhir_server.store.rates import Rates

        return Rates(self.database, per_minute=self.config["smart.requests_per_minute"])

    @property
    def bundle_limits(self) -> BundleLimits:
        """Bounds on batches and transactions."""
        return BundleLimits(self.config["limits.bundle_entries"], self.config["limits.bundle_bytes"])

    def conforms(self, resource: dict[str, Any]) -> None:
        """Return when a resource conforms to the profiles that clients have to keep to. Raises INVALID."""
        if self.config["fhir.profiles"] == "declared":
            Held(self.own).demand(resource)

    @property
    def most_resource_bytes(self) -> int:
        """Largest FHIR resource that is taken."""
        return int(self.config["limits.resource_bytes"])

    def secret(self, name: str) -> bytes:
        """Return the secret of this name, made on first use, that all processes share."""
        return secret(self.database, name)

    def check(self) -> None:
        """Return when the database answers and takes writes. Raises BUSY when it does not."""
        try:
            hello = self.database.client.admin.command("hello")
        except PyMongoError as error:
            raise AppError(Category.BUSY, "the database does not answer", where="mongodb") from error
        if not hello.get("isWritablePrimary"):
            raise AppError(Category.BUSY, "the database has no primary", where="mongodb")

    def close(self) -> None:
        """End threads and connections."""
        self.audit.close()
        self.usage.write()
        self.archive.close()
        self.database.client.close()


def build(config: Config, uri: str) -> Server:
    """Return the server on the database at `uri`, whose collections and indexes are brought up to date first."""
    timeout_ms = int(config["mongodb.timeout_s"] * 1000)
    # The second of the two is also how long the driver waits for a heartbeat: a database that hangs is given up.
    client: MongoClient[dict[str, Any]] = MongoClient(
        uri, tz_aware=True, serverSelectionTimeoutMS=timeout_ms, connectTimeoutMS=timeout_ms, appname="fhir-imaging"
    )
    return assemble(config, client[config["mongodb.database"]])


def assemble(
    config: Config, database: Database[dict[str, Any]], *, clock: Callable[[], datetime] = lambda: datetime.now(UTC)
) -> Server:
    """Return the server on a database."""
    archive = _archive(config, database, clock)
    masks = masks_from_file(config["archive.masks"])
    given_out = GivenOut(database)
    credentials, peers, printer_store = Credentials(database), Peers(database), PrinterStore(database, clock)
    collected, exports = Collected(database), Exports(database, clock)
    subscriptions = Subscriptions(database, clock, kept_s=config["subscriptions.kept_hours"] * 3_600)
    usage, watchers = Usage(database, clock), Watchers(database)
    reconciliations = Reconciliations(database)
    parts = (
        archive,
        reconciliations,
        credentials,
        given_out,
        peers,
        collected,
        printer_store,
        exports,
        subscriptions,
        watchers,
        usage,
        *stores(database),
    )
    ensure_schema(database, others=[partial(_ensure_indexes, each) for each in parts], clock=clock)
    base_url = f"{config['web.base_url']}/fhir"
    search_parameters = SearchParameters(database, base_url=base_url)
    own = Repository(
        database,
        UNRESTRICTED,
        clock=clock,
        hooks=HOOKS,
        base_url=base_url,
        internal=True,
        client_ids=_takes_ids(config),
        table=search_parameters.indexed,
    )

    def repository_for(principal: Principal) -> Repository:
        actor = parties.actor_of(principal, own)
        hooks = {
            **hooks_of(actor, kinds, overseer(server, principal, actor), clock),
            "SearchParameter": hooks_of_parameters(search_parameters.check),
            "Subscription": subscribing.hooks_of(server, principal),
        }
        stamp = Stamp(principal.subscriber, principal.granted(), writes_about(principal))
        return own.opened_for(restriction(principal), hooks=hooks, stamp=stamp)

    seal = chain.Chain(database, _audit_key(config, database))
    seal.ensure_indexes()
    audit = Audit(own, clock, seal, usage)
    keep_for, undelete_for = timedelta(days=config["archive.keep_days"]), timedelta(hours=config["archive.undelete_h"])
    rules = Agreements(own, clock, cache_s=config["access.cache_s"]), Deletion(keep_for, undelete_for, clock)
    leases = Leases(database, clock)
    studies = Studies(archive, own, repository_for, leases, audit, _place(config, database), *rules, reconciliations)
    principals = Principals(
        credentials,
        own,
        cache_s=config["access.cache_s"],
        token_days=config["access.token_days"],
        clock=clock,
        foreign=_foreign(config),
    )
    capability_urls = CapabilityUrls(
        given_out, principals.authenticate, life_s=config["access.capability_s"], clock=clock
    )
    kinds = {code: handlers.get(code).kind for code in handlers}
    reconciliation = Reconciliation(archive, own, studies, reconciliations, leases, clock)
    server = Server(
        config=config,
        database=database,
        clock=clock,
        archive=archive,
        own=own,
        repository_for=repository_for,
        studies=studies,
        reconciliation=reconciliation,
        corrections=AttributeCorrections(archive, own, studies, reconciliation, clock),
        deidentified=Deidentified(archive, studies, PseudonymRows(database), partial(secret, database), masks),
        principals=principals,
        capability_urls=capability_urls,
        sign_on=sign_on(config, database, principals, own, audit, rules=lambda: server.outbound, clock=clock),
        printers=Printers(printer_store, own, principals, clock),
        audit=audit,
        usage=usage,
        answers=Answers(database, clock),
        exports=exports,
        peers=peers,
        collected=collected,
        subscriptions=subscriptions,
        watchers=watchers,
        search_parameters=search_parameters,
        base_statement=_statement(config, base_url, clock()),
    )
    return server


def _archive(config: Config, database: Database[Any], clock: Callable[[], datetime]) -> Archive:
    return Archive(
        database,
        GridFsBlobs(database),
        clock=clock,
        codec=config["archive.codec"],
        encode_threads=config["archive.encode_threads"],
        limits=Limits(max_file_bytes=config["limits.instance_bytes"]),
        tables=with_extra({level: config[f"search.{level}_attributes"] for level in Level}),
    )


def _place(config: Config, database: Database[Any]) -> Place:
    zone = config["archive.time_zone"]
    return Place(
        dicomweb_url=f"{config['web.base_url']}/dicom-web",
        zone=ZoneInfo(zone) if zone else None,
        patient_system=config["archive.patient_system"],
        patient_key=secret(database, "patient-ids"),
    )


def _takes_ids(config: Config) -> bool:
    return bool(config["fhir.ids"] == "clients")


def _statement(config: Config, base_url: str, now: datetime) -> dict[str, Any]:
    return capability_statement(
        RESOURCES.values(),
        base_url=base_url,
        version=metadata.version("fhir-imaging-server"),
        date=now,
        security={**SECURITY, **security(config["web.base_url"]), "cors": True},
        client_ids=_takes_ids(config),
        operations=[(each.name, each.definition, each.types) for each in OPERATIONS],
        socket_url=socket_url(base_url),
        exports=EXPORTS,
        instantiates=[BULK_DATA, TOPIC_SERVER],
    )


def _audit_key(config: Config, database: Database[Any]) -> bytes:
    key = str(config["audit.key"]).encode()
    if 0 < len(key) < SHORTEST_AUDIT_KEY:
        message = f"a key has at least {SHORTEST_AUDIT_KEY} characters; make one with: openssl rand -hex 32"
        raise AppError(Category.INVALID, message, where="audit.key")
    return key or secret(database, "audit-chain")


def _outbound(config: Config) -> Rules:
    return Rules(
        private_networks=networks(config["outbound.private_networks"]),
        ca_file=config["outbound.ca_bundle"],
        connect_s=config["outbound.connect_s"],
        silence_s=config["outbound.silence_s"],
    )


def _foreign(config: Config) -> Callable[[Principals], ForeignTokens] | None:
    """Return what makes the check of another issuer's tokens, None where no issuer is set. Raises INVALID."""
    if not config["issuer.url"]:
        return None
    if bool(config["issuer.jwks_url"]) is bool(config["issuer.introspection_url"]) or not config["issuer.subscriber"]:
        message = "an issuer needs issuer.subscriber, and one of issuer.jwks_url and issuer.introspection_url"
        raise AppError(Category.INVALID, message, where="issuer.url")
    issuer = Issuer(
        url=config["issuer.url"],
        audience=config["issuer.audience"] or f"{config['web.base_url']}/fhir",
        subscriber=config["issuer.subscriber"],
        jwks_url=config["issuer.jwks_url"],
        introspection_url=config["issuer.introspection_url"],
        client_id=config["issuer.client_id"],
        client_secret=config["issuer.client_secret"],
        patient_system=config["issuer.patient_system"],
    )
    return lambda principals: ForeignTokens(issuer, principals.identified, rules=lambda: _outbound(config))


def _ensure_indexes(part: Any, _: Database[Any]) -> None:
    part.ensure_indexes()


@contextmanager
def open_server_for_work(config: Config) -> Iterator[Server]:
    """Give the server to a command that does orders: its child processes find the engine that was opened."""
    with engine.open_engine(config) as uri:
        found = config.with_values({"mongodb.uri": uri})
        with closing(build(found, uri)) as server:
            yield server


@contextmanager
def open_server(config: Config) -> Iterator[Server]:
    """Give the server to a command: on the engine that runs, or on one started for the while."""
    with engine.open_engine(config) as uri, closing(build(config, uri)) as server:
        yield server


def open_in_child(config: Config) -> Server:
    """Return the server to a process that does orders, on the engine that runs."""
    logs.configure(process="order", level=config["log.level"], form=config["log.form"])
    return build(config, engine.attach(config))


def reindex(server: Server, progress: Progress) -> None:
    """Build everything derivable again: search rows of resources, summaries and ImagingStudies of studies."""
    table = server.search_parameters.indexed
    reindex_resources(server.database, progress, base_url=f"{server.config['web.base_url']}/fhir", table=table)
    server.archive.index_all(progress)
    total = server.archive.mark_all()
    done = 0
    while step := server.studies.catch_up():
        done += step
        progress(min(done, total), total)


def verify_record(server: Server, progress: Progress) -> Iterator[str]:
    """Yield what is wrong with the audit record: what was changed, taken out or slipped in since it was written."""
    yield from chain.verify(server.database, _audit_key(server.config, server.database), progress)
