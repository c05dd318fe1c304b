"""The algorithms by name. Each is one file here, or an entry point `imaging.algorithms` of another package.

Every file in this folder is imported with the package, so that a new one needs no list to be changed. Algorithms do not
import one another. Importing costs about a second (SimpleITK, scikit-image): doors that only speak of them do it late.
"""

from importlib import import_module
from pkgutil import iter_modules

from imaging.algorithm import Algorithm
from imaging.plugins import Registry

algorithms: Registry[type[Algorithm]] = Registry("imaging.algorithms")

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")
