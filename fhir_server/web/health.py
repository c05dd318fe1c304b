"""Health: /health/live says that this process answers, /health/ready that it can work. Open to all, tells no more."""

from collections.abc import Callable
from http import HTTPStatus

from flask import Blueprint, Response, jsonify

from imaging.errors import AppError


def blueprint(check: Callable[[], None]) -> Blueprint:
    """Return the two addresses; `check` raises AppError when the database cannot be used."""
    routes = Blueprint("health", __name__, url_prefix="/health")

    def live() -> Response:
        return jsonify(status="live")

    def ready() -> Response:
        try:
            check()
        except AppError:
            response = jsonify(status="not ready")
            response.status_code = HTTPStatus.SERVICE_UNAVAILABLE
            return response
        return jsonify(status="ready")

    routes.add_url_rule("/live", view_func=live, provide_automatic_options=False)
    routes.add_url_rule("/ready", view_func=ready, provide_automatic_options=False)
    return routes
