"""What a user is told when the input is wrong: one line, and exit code 2."""


class MoesimError(Exception):
    """Bad input. The message says what is wrong, which value it was, and what to do about it."""


def choice(what: str, value: str, known: list[str] | tuple[str, ...]) -> MoesimError:
    """The error for a name that is not in a list, with the nearest known names."""
    from difflib import get_close_matches

    near = get_close_matches(value, known, n=3)
    hint = f"did you mean {' or '.join(near)}?" if near else f"choose from {', '.join(known)}"
    return MoesimError(f"unknown {what} {value!r}: {hint}")
