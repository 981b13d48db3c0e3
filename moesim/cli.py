"""One function per command."""


def main() -> None:
    """Entry point."""
