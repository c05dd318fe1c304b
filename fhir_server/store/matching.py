"""What selects among versions of resources: a search within what somebody may see, ready to be put to many of them.

Versions need not be the current ones. What a search finds by other resources (chains, `_has`) is decided as these are
now; where too many of them decide, so is the resource itself.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime

from fhir_server.model.chains import Criterion
from fhir_server.model.query import Query
from fhir_server.store.conditions import Filter
from fhir_server.store.documents import Resource
from fhir_server.store.filters import Act, Restriction, restricted
from fhir_server.store.joins import Joins


@dataclass(frozen=True, slots=True)
class Selection:
    """What a version has to meet: a condition on its document, and criteria to be verified of what meets that."""

    kind: str
    condition: Filter
    checks: Sequence[Criterion]
    joins: Joins = field(repr=False)

    def verified(self, versions: Sequence[Resource]) -> Sequence[Resource]:
        """Return those of the versions, which meet the condition, that meet the rest."""
        if not self.checks or not versions:
            return versions
        keys = self.joins.verified(self.kind, [each.key for each in versions], self.checks)
        return [each for each in versions if each.key in keys]


def selection(joins: Joins, query: Query, restriction: Restriction, now: datetime) -> Selection:
    """Return what a query of one type selects within a restriction. Raises FORBIDDEN where nothing may be searched."""
    mandatory = restriction.require(query.type, Act.SEARCH)
    plan = joins.plan(query.type, query.clauses)
    return Selection(query.type, restricted(query.type, mandatory, plan.filters, now), tuple(plan.checks), joins)
