"""The kinds of printers by name. Each is one file here, or an entry point `imaging.printers` of another package.

`printers.get(kind).build(parameters)` makes a printer. Every file in this folder is imported with the package, so that
a new one needs no list to be changed. Kinds do not import one another.
"""

from importlib import import_module
from pkgutil import iter_modules

from imaging.plugins import Registry
from imaging.printer import Printer

printers: Registry[type[Printer]] = Registry("imaging.printers")

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")
