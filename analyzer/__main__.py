"""The process of `superweight` and of `python -m analyzer`: every failure is one line on stderr and an exit status.

What a run needs is imported inside, so that a Ctrl-C meanwhile ends it as quietly as later.
"""

from __future__ import annotations

import io
import os
import sys
import threading
import warnings
from contextlib import suppress
from typing import NoReturn

EXIT_ERROR = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130
MAX_MESSAGE = 1000


def main(name: str = "superweight") -> NoReturn:
    """Run the command line, called by `name` in its help, and end the process with the status of the contract."""
    try:
        status = run(name)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        status = EXIT_INTERRUPTED
    # The interpreter would wait for the threads of what was given up.
    if status and any(thread.name.startswith("ThreadPoolExecutor") for thread in threading.enumerate()):
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


def run(name: str = "superweight") -> int:
    """Run the command line and return the status of the contract; Ctrl-C is raised."""
    _open_standard_streams()
    import click

    from analyzer.base.errors import AnalyzerError, is_out_of_memory, reason_of, shown
    from analyzer.cli.main import call_it, cli

    try:
        os.getcwd()  # noqa: PTH109 - Path.cwd() may not ask
    except OSError:  # which libraries take for granted
        print("error: the current folder is gone: change into another", file=sys.stderr)
        return EXIT_ERROR
    stdout, debug = sys.stdout, os.environ.get("SUPERWEIGHT_DEBUG") == "1"
    if not (debug or sys.warnoptions):
        warnings.simplefilter("ignore")  # libraries' own, which name lines of code
    call_it(name)
    try:
        status = cli.main(prog_name=name, standalone_mode=False)
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
    except SystemExit:
        if sys.stdout is stdout:
            raise
        _discard_output()  # click has met such a pipe, and put something else in place of stdout
        return 0
    except Exception as error:
        if debug:
            raise
        if isinstance(error, AnalyzerError):
            message = str(error)
        elif is_out_of_memory(error):
            message = reason_of(error)
        elif isinstance(error, OSError):
            message = _of_system(error)
        else:
            message = (
                f"this is a bug in superweight ({type(error).__name__}: {shown(error)}): "
                "run it again with SUPERWEIGHT_DEBUG=1 and report what it says"
            )
        print(f"error: {shown(message, MAX_MESSAGE)}", file=sys.stderr)
        try:
            sys.stdout.flush()
        except OSError:
            _discard_output()
        return EXIT_ERROR


def _of_system(error: OSError) -> str:
    """Return what an error of the system is about: sources and catalogs have errors of their own."""
    if error.filename is not None:
        return f"cannot use {error.filename}: {error.strerror}"
    return f"cannot write the output: {error.strerror}"


class _Forgiving(io.TextIOWrapper):
    """A stderr that may be full, or closed by who read it: what it cannot take is lost, and the run goes on."""

    def write(self, text: str) -> int:
        try:
            return super().write(text)
        except OSError:
            return len(text)

    def flush(self) -> None:
        with suppress(OSError):
            super().flush()


def _open_standard_streams() -> None:
    """Give a place to standard streams that are closed, so that no file that is opened later is taken for one.

    What goes to such a stderr is lost; writing to such a stdout fails.
    """
    for number, flags in enumerate((os.O_RDONLY, os.O_RDONLY, os.O_WRONLY)):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, flags)  # takes the lowest number that is free
    out = sys.stdout
    if out is sys.__stdout__ and isinstance(out, io.TextIOWrapper) and isinstance(out.buffer, io.RawIOBase):
        # Unbuffered (PYTHONUNBUFFERED): of a write that is cut short, nobody would write the rest.
        encoding = out.encoding
        sys.stdout = io.TextIOWrapper(io.BufferedWriter(out.detach()), encoding)
    if sys.stdout is None:
        sys.stdout = open(1, "w", encoding="utf-8")  # noqa: SIM115
    if sys.stderr is None:
        sys.stderr = open(2, "w", encoding="utf-8")  # noqa: SIM115
    elif sys.stderr is sys.__stderr__ and isinstance(sys.stderr, io.TextIOWrapper):
        sys.stderr = _Forgiving(sys.stderr.detach(), sys.stderr.encoding, line_buffering=True)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # names may hold what the terminal cannot show


def _discard_output() -> None:
    """Let what is still buffered go nowhere, or the flush at exit fails once more."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    main()
