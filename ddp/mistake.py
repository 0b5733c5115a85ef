"""A mistake of the person who gave the options: what every check raises. Imports nothing."""


class Mistake(ValueError):
    """Something that a person asked for cannot be: one sentence says what was expected, what was got and what to do."""


class MistakeOfAll(Mistake):
    """A mistake that every rank finds alike: one of them is to tell it."""


def require(condition: bool, expected: str, got: object, remedy: str) -> None:
    """Raise Mistake with what was expected, what was got and what to do, unless `condition` holds."""
    if not condition:
        raise Mistake(f"expected {expected}, got {got}; {remedy}")
