"""The process of `superweight` and of `python -m analyzer`: every failure is one line on stderr and an exit status.

What a run needs is imported inside, so that a Ctrl-C meanwhile ends it as quietly as later.
"""

from __future__ import annotations

import os
import sys
from typing import NoReturn

EXIT_ERROR = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130
MAX_MESSAGE = 1000


def main() -> NoReturn:
    """Run the command line and exit with the status of the contract."""
    try:
        sys.exit(_run())
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(EXIT_INTERRUPTED)


def _run() -> int:
    import click

    from analyzer.base.errors import AnalyzerError, shown
    from analyzer.cli.main import cli

    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # names may hold what the terminal cannot show
    try:
        status = cli.main(prog_name="superweight", standalone_mode=False)
        if sys.stdout is not None:
            sys.stdout.flush()
        return status if isinstance(status, int) else 0
    except click.Abort as error:
        raise KeyboardInterrupt from error
    except click.ClickException as error:
        error.show()
        return EXIT_USAGE if isinstance(error, click.UsageError) else EXIT_ERROR
    except BrokenPipeError:  # the reader of a pipe had enough
        _discard_output()
        return 0
    except Exception as error:
        if os.environ.get("SUPERWEIGHT_DEBUG") == "1":
            raise
        if isinstance(error, AnalyzerError):
            message = str(error)
        elif isinstance(error, OSError):  # sources and catalogs have errors of their own: this is the output
            _discard_output()
            message = f"cannot write the output: {error.strerror}"
        else:
            message = (
                f"this is a bug in superweight ({type(error).__name__}: {shown(error)}): "
                "run it again with SUPERWEIGHT_DEBUG=1 and report what it says"
            )
        print(f"error: {shown(message, MAX_MESSAGE)}", file=sys.stderr)
        return EXIT_ERROR


def _discard_output() -> None:
    """Let what is still buffered go nowhere, or the flush at exit fails once more."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    main()
