"""The filter of a whole query, as a search makes it."""

from datetime import datetime

from fhir_server.model.criteria import Clause
from fhir_server.model.query import Query
from fhir_server.store.filters import Demand, Filter, compile_clause, restricted


def compile_query(query: Query, mandatory: tuple[Demand, ...], now: datetime) -> Filter:
    """Return the filter of a query of one type, none of whose criteria leads to other resources."""
    wanted = [compile_clause(query.type, clause, now) for clause in query.clauses if isinstance(clause, Clause)]
    return restricted(query.type, mandatory, wanted, now)
