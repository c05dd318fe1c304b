"""Wildcard matching: "*" stands for any run of characters, "?" for one. Source: PS3.4 C.2.2.2.4."""


def matches(pattern: str, text: str) -> bool:
    """Say whether the whole text has the form of a pattern; time grows with the product of both lengths at most."""
    at, star, kept, place = 0, -1, 0, 0
    while place < len(text):
        if at < len(pattern) and pattern[at] == "*":
            star, kept = at, place
            at += 1
        elif at < len(pattern) and pattern[at] in ("?", text[place]):
            at, place = at + 1, place + 1
        elif star >= 0:
            # The last asterisk takes one character more; earlier ones never have to.
            kept += 1
            at, place = star + 1, kept
        else:
            return False
    return not pattern[at:].strip("*")
