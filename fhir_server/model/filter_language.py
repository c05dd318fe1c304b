"""The language of `_filter`: `name eq "Peter" and (birthdate gt 1970 or patient.active eq true)` becomes a criterion.

Pure; bounded in length, terms and brackets. `not` binds before `and`, `and` before `or`.
Source: FHIR R4 search_filter.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import NamedTuple

from fhir_server.model.chains import AllOf, AnyOf, Criterion, Not, Reading, chain, leads_elsewhere, refused, simple
from fhir_server.model.criteria import PREFIXES
from fhir_server.model.definitions import Parameter
from imaging.errors import AppError

NAME = "_filter"
MOST_CHARACTERS = 4096
MAX_BRACKETS = 10

_TOKEN = re.compile(
    r"""\s*(?:(?P<sign>[()\[\]])|(?P<text>"(?:[^"\\]|\\.)*")|(?P<word>[^\s()\[\]"]+))""",
)
_OPERATIONS = frozenset({*PREFIXES, "co", "sw", "ew", "pr", "po", "ss", "sb", "in", "ni", "re"})


class _Term(NamedTuple):
    """One comparison, before it is known which type it is about."""

    path: str
    operation: str
    value: str


def parse(resource_type: str, text: str, reading: Reading) -> Criterion:
    """Return the criterion of a filter. Raises INVALID, saying where it cannot be read."""
    if len(text) > MOST_CHARACTERS:
        raise refused(NAME, f"it has at most {MOST_CHARACTERS} characters")
    parser = _Parser(text, reading)
    read = parser.either()
    parser.expect_end()
    return read(resource_type)


Meant = Callable[[str], Criterion]  # resource type -> what the text means for it


class _Parser:
    """Recursive descent; every rule returns what is meant, for a type that is told later."""

    def __init__(self, text: str, reading: Reading) -> None:
        self.tokens = _tokens(text)
        self.position = 0
        self.reading = reading
        self.terms = 0
        self.brackets = 0

    def either(self) -> Meant:
        found = [self.both()]
        while self.accept_word("or"):
            found.append(self.both())
        return found[0] if len(found) == 1 else lambda kind: AnyOf(tuple(each(kind) for each in found))

    def both(self) -> Meant:
        found = [self.negated()]
        while self.accept_word("and"):
            found.append(self.negated())
        return found[0] if len(found) == 1 else lambda kind: AllOf(tuple(each(kind) for each in found))

    def negated(self) -> Meant:
        if not self.accept_word("not"):
            return self.bracketed() if self.peek() == ("sign", "(") else self.term()
        inner = self.bracketed()

        def negate(kind: str) -> Criterion:
            found = inner(kind)
            if leads_elsewhere(found):
                raise refused(NAME, "`not` is for the resource's own elements; put it inside: patient[not (...)].id")
            return Not(found)

        return negate

    def bracketed(self) -> Meant:
        self.expect("(")
        self.brackets += 1
        if self.brackets > MAX_BRACKETS:
            raise refused(NAME, f"it has at most {MAX_BRACKETS} brackets within one another")
        found = self.either()
        self.expect(")")
        self.brackets -= 1
        return found

    def term(self) -> Meant:
        self.terms += 1
        if self.terms > self.reading.limits.terms:
            raise refused(NAME, f"it has at most {self.reading.limits.terms} comparisons")
        return self.path(self.word(), self.reading)

    def path(self, name: str, reading: Reading) -> Meant:
        """Read what follows a parameter's name: a comparison, or, along a reference, the rest of the path."""
        head, dot, rest = name.partition(".")
        inner: Meant | None = None
        if self.accept("["):
            inner = self.either()
            self.expect("]")
            following = self.word()
            dot, rest = following[:1], following[1:]
            if dot != ".":
                raise refused(NAME, "a bracket is followed by a dot and the rest of the path")
        if not dot:
            return self.comparison(head)
        code, _, wanted = head.partition(":")
        further = reading.deeper(NAME)
        last = self.path(rest, further)

        def lead(kind: str) -> Criterion:
            def meant(target: str) -> Criterion:
                return AllOf((inner(target), last(target))) if inner else last(target)

            return chain(kind, code, wanted, further, meant)

        return lead

    def comparison(self, code: str) -> Meant:
        operation = self.word()
        if operation not in _OPERATIONS:
            raise refused(NAME, f"{operation[:20]!r} is not a comparison; there are: {', '.join(sorted(_OPERATIONS))}")
        kind, text = self.take()
        if kind == "sign":
            raise refused(NAME, f"a value has to follow {operation}")
        value = re.sub(r"\\(.)", r"\1", text[1:-1]) if kind == "text" else text
        term = _Term(code, operation, value)
        return lambda resource_type: _compared(resource_type, term, self.reading, is_text=kind == "text")

    def peek(self) -> tuple[str, str]:
        return self.tokens[self.position] if self.position < len(self.tokens) else ("end", "")

    def take(self) -> tuple[str, str]:
        found = self.peek()
        if found[0] == "end":
            raise refused(NAME, "it ends too early")
        self.position += 1
        return found

    def word(self) -> str:
        kind, text = self.take()
        if kind != "word":
            raise refused(NAME, f"a name is wanted at {text[:20]!r}")
        return text

    def accept(self, sign: str) -> bool:
        is_next = self.peek() == ("sign", sign)
        self.position += is_next
        return is_next

    def accept_word(self, word: str) -> bool:
        is_next = self.peek() == ("word", word)
        self.position += is_next
        return is_next

    def expect(self, sign: str) -> None:
        if not self.accept(sign):
            raise refused(NAME, f"{sign} is wanted at {self.peek()[1][:20] or 'the end'!r}")

    def expect_end(self) -> None:
        if self.peek()[0] != "end":
            raise refused(NAME, f"`and` or `or` is wanted at {self.peek()[1][:20]!r}")


def _tokens(text: str) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    position, text = 0, text.rstrip()
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None or match.lastgroup is None:
            raise refused(NAME, f"it cannot be read at character {position + 1}")
        found.append((match.lastgroup, match.group(match.lastgroup)))
        position = match.end()
    return found


# operation -> modifier, by type of parameter; those of dates, numbers and quantities are prefixes
_MODIFIERS: Mapping[str, Mapping[str, str]] = {
    "string": {"eq": "equals", "ne": "differs", "co": "contains", "sw": "", "ew": "ends"},
    "token": {"eq": "", "ne": "differs", "co": "text", "ss": "below", "sb": "above", "in": "in", "ni": "not-in"},
    "reference": {"eq": "", "ne": "differs", "re": ""},
    "uri": {"eq": "", "ne": "differs", "sw": "starts", "ss": "below", "sb": "above"},
}
_OWN = frozenset({"equals", "differs", "ends", "starts"})  # modifiers that only this language has


def _compared(resource_type: str, term: _Term, reading: Reading, *, is_text: bool) -> Criterion:
    path, operation, value = term
    parameter = reading.table(resource_type).get(path)
    if parameter is None or operation == "pr":
        if operation == "pr" and value not in {"true", "false"}:
            raise refused(NAME, "the value of `pr` is true or false")
        is_missing = "false" if value == "true" else "true"
        return simple(resource_type, f"{path}:missing" if operation == "pr" else path, is_missing, reading)
    plain = _escaped(value, parameter.type) if is_text or parameter.type == "string" else value
    if parameter.type in {"date", "number", "quantity"}:
        prefix = "ap" if operation == "po" and parameter.type == "date" else operation
        if prefix not in PREFIXES:
            raise _not_for(operation, parameter)
        found = simple(resource_type, path, prefix + plain, reading)
        return replace(found, modifier="overlaps") if operation == "po" else found
    modifier = _MODIFIERS.get(parameter.type, {}).get(operation)
    if modifier is None:
        raise _not_for(operation, parameter)
    if modifier in _OWN:
        return replace(simple(resource_type, path, plain, reading), modifier=modifier)
    return simple(resource_type, f"{path}:{modifier}" if modifier else path, plain, reading)


def _not_for(operation: str, parameter: Parameter) -> AppError:
    return refused(NAME, f"{operation} is not for the {parameter.type} parameter {parameter.code}")


def _escaped(text: str, kind: str) -> str:
    """Return a value as a search parameter writes it; what separates the parts of a token stays what it is."""
    signs = "\\,$" if kind in {"token", "quantity"} else "\\,$|"
    for sign in signs:
        text = text.replace(sign, f"\\{sign}")
    return text
