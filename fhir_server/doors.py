"""From a server to its Flask application: all its HTTP doors."""

from flask import Flask

from fhir_server import engine
from fhir_server.app import Server, build
from fhir_server.config import Config
from fhir_server.web import (
    cors,
    dicomweb,
    export,
    fhir,
    health,
    http,
    later,
    operations,
    preview,
    sign_on,
    subscription_socket,
)
from fhir_server.web.event_channel import Channels
from fhir_server.web.rules import LateRule
from fhir_server.web.sockets import Sockets


def create_app_from_config(config: Config) -> Flask:
    """Return the Flask application of a web worker process, on the engine that runs."""
    return create_app(build(config, engine.attach(config)))


def create_app(server: Server) -> Flask:
    """Return the Flask application with all doors of `server`."""
    app = Flask("fhir_server", static_folder=None, template_folder="web/templates")
    app.url_rule_class = LateRule
    http.install(
        app,
        server.principals.authenticate,
        server.audit.refused,
        used=server.usage.add,
        most_bytes=server.config["limits.request_bytes"],
        trusted_proxies=server.config["web.trusted_proxies"],
    )
    app.config["FHIR_URL"] = server.fhir_url
    cors.install(app, server.config["web.cors_origins"], server.sign_on.apps.is_origin)
    sign_on.install(app, server)
    for door in (fhir, operations, export, later, preview):
        app.register_blueprint(door.blueprint(server))
    events = subscription_socket.Events(server)
    sockets = app.extensions["sockets"] = Sockets(server.config["web.sockets"], started=events.start)
    events.serve(sockets)
    app.extensions["channels"] = Channels(server, sockets)
    app.register_blueprint(subscription_socket.blueprint(server, sockets))
    for each in dicomweb.blueprints(server):
        app.register_blueprint(each)
    app.register_blueprint(health.blueprint(server.check))
    return app
