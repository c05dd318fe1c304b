"""Narratives: XHTML that formats text and does nothing else. Source: FHIR R4 narrative, constraints txt-1 and txt-2.

Read by expat with document types and entities refused, so nothing outside is ever fetched and nothing inside expands.
"""

import re
from typing import NoReturn
from xml.parsers import expat

XHTML = "http://www.w3.org/1999/xhtml"
MAX_DEPTH = 100  # levels of elements

_ELEMENTS = """
    a abbr acronym b big blockquote br caption cite code col colgroup dd dfn div dl dt em h1 h2 h3 h4 h5 h6 hr i img li
    ol p pre q samp small span strong sub sup table tbody td tfoot th thead tr tt ul var
"""
_ATTRIBUTES = """
    abbr accesskey align alt axis bgcolor border cellhalign cellpadding cellspacing cellvalign char charoff charset cite
    class colspan compact coords dir frame headers height href hreflang hspace id lang longdesc name nowrap rel rev
    rowspan rules scope shape span src start style summary tabindex title type valign value vspace width
"""
ELEMENTS, ATTRIBUTES = frozenset(_ELEMENTS.split()), frozenset(_ATTRIBUTES.split())
_XML = "http://www.w3.org/XML/1998/namespace"
_LINKS = frozenset({"cite", "href", "longdesc", "src"})
_PASSIVE = frozenset({"cid", "http", "https", "mailto", "tel", "urn"})  # schemes that run nothing
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.\-]*):")
_PICTURE = re.compile(r"data:image/(?:png|gif|jpeg|bmp|webp)[;,]", re.I)
# What browsers have run, or fetched, from a style.
_ACTIVE_STYLE = re.compile(r"expression|javascript|behaviou?r|-moz-binding|@import|url\s*\(|\\", re.I)
# What browsers leave out before they look at the scheme of a link.
_IGNORED = re.compile(r"[\x00-\x20\x7f-\xa0]")


class _Refused(Exception):
    """The narrative is not one; the text says why."""


def problem(div: str) -> str:
    """Return what is wrong with a `Narrative.div`, "" when nothing is."""
    reader = _Reader()
    try:
        reader.parser.Parse(div.encode("utf-8", "surrogatepass"), True)
    except _Refused as error:
        return str(error)
    except expat.ExpatError as error:
        return f"is not well-formed XHTML, at line {error.lineno} column {error.offset}"
    return "" if reader.has_content else "has no text and no image"


class _Reader:
    """What the parser meets."""

    def __init__(self) -> None:
        self.has_content = False
        self._depth = 0
        self.parser = expat.ParserCreate("utf-8", namespace_separator=" ")
        self.parser.buffer_text = True
        self.parser.StartDoctypeDeclHandler = self._refuse
        self.parser.StartElementHandler = self._start
        self.parser.EndElementHandler = self._end
        self.parser.CharacterDataHandler = self._text

    def _refuse(self, *_: object) -> NoReturn:
        raise _Refused("has a document type")

    def _start(self, name: str, attributes: dict[str, str]) -> None:
        namespace, _, local = name.rpartition(" ")
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise _Refused(f"is nested deeper than {MAX_DEPTH} levels")
        if namespace != XHTML:
            raise _Refused(f'has an element outside of xmlns="{XHTML}"')
        if local not in ELEMENTS or (self._depth == 1 and local != "div"):
            wanted = (
                "begins with another element than div" if self._depth == 1 else "has an element that is not allowed"
            )
            raise _Refused(f"{wanted}: {local[:32]}")
        for attribute, value in attributes.items():
            _check(attribute, value)
        self.has_content |= local == "img" and "src" in attributes

    def _end(self, _: str) -> None:
        self._depth -= 1

    def _text(self, text: str) -> None:
        self.has_content |= not text.isspace()


def _check(attribute: str, value: str) -> None:
    namespace, _, name = attribute.rpartition(" ")
    if namespace == _XML:
        return  # xml:lang, xml:space
    if namespace or name not in ATTRIBUTES:
        raise _Refused(f"has an attribute that is not allowed: {name[:32]}")
    if name in _LINKS:
        bare = _IGNORED.sub("", value)
        scheme = _SCHEME.match(bare)
        if scheme and scheme[1].lower() not in _PASSIVE and not (name == "src" and _PICTURE.match(bare)):
            raise _Refused(f"has a link of a scheme that is not allowed: {scheme[1][:32]}")
    if name == "style" and _ACTIVE_STYLE.search(value):
        raise _Refused("has a style that does more than to format")
