"""Rules of addresses that learn to build an address when the first is built.

Werkzeug compiles two functions for each rule when it is added, which takes most of the time in which an application is
made; of hundreds of rules a handful ever build addresses. Should a later Werkzeug call what is overridden here
otherwise, rules compile as they did before.
"""

from collections.abc import Callable
from typing import Any

from werkzeug.routing import Rule


class LateRule(Rule):
    """A rule that compiles what builds its addresses on first use."""

    def _compile_builder(self, append_unknown: bool = True) -> Callable[..., tuple[str, str]]:
        made: list[Callable[..., tuple[str, str]]] = []
        compiled = super()._compile_builder

        def build(rule: Rule, /, **values: Any) -> tuple[str, str]:
            if not made:
                made.append(compiled(append_unknown))
            return made[0](rule, **values)

        return build
