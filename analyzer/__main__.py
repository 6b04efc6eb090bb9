"""The entry point of `superweight` and of `python -m analyzer`; a Ctrl-C while the rest is imported ends it quietly."""

import sys


def main() -> None:
    """Run the command line."""
    try:
        from analyzer import cli
    except KeyboardInterrupt:
        sys.exit(130)
    cli.main()


if __name__ == "__main__":
    main()
