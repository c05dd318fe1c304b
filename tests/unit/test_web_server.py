"""The web server: how gunicorn is set up by our settings."""

import gc

from fhir_server import config
from fhir_server.web.server import WebServer


def test_a_process_does_not_look_for_garbage_in_what_it_is_made_of() -> None:
    server = WebServer(config.load({}, environment={}), lambda _: ["the application"], fd=0)
    assert gc.get_freeze_count() == 0

    try:
        made = server.load()

        assert made == ["the application"]
        assert gc.get_freeze_count() > 1000
    finally:
        gc.unfreeze()
