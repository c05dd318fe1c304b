"""Kinds of Tasks that this server does: each is one file here, or an entry point `fhir_server.tasks` of a package.

Every file in this folder is imported with the package, so that a new one needs no list to be changed. The web server
imports them, too, to check orders: what is heavy is imported where it is used.
"""

from importlib import import_module
from pkgutil import iter_modules

from fhir_server.work.handlers import handlers

__all__ = ["handlers"]

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")
