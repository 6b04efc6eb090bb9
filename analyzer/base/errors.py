"""Every error the analyzer raises on purpose. The command line prints one line of it and exits with 1.

AnalyzerError
├── SourceError          a folder, repository or network that cannot be read
│   ├── GoneError        there is no such model, revision or file, or no longer
│   ├── GatedError       the Hub grants no access, or not to this token
│   └── NetworkError     the network, or a server on it, fails: it may be over later
├── CheckpointError      config, index or shards that are missing or contradict each other
│   └── HeaderError      a safetensors or GGUF header that breaks its format
├── ArchitectureError    no down projection can be told from the tensor names
│   └── UnreadableError  a matrix is stored in a way that is not read, by its name
├── ForwardError         the model or its tokenizer cannot be loaded or run
├── CatalogError         a catalog file that cannot be read, written or validated
├── PlotError            a picture, or a page of results, that cannot be written
├── SettingsError        a setting that has no such value
├── ResultError          a saved result that cannot be compared
└── SurveyError          a list, a plan or a survey's folder that cannot be used
"""

from __future__ import annotations

import errno


class AnalyzerError(Exception):
    """Base of all of them; the message is one line that says what is wrong and what to do next."""


class SourceError(AnalyzerError):
    """A folder, repository or network that cannot be read."""


class GoneError(SourceError):
    """There is no such model, revision or file, or no longer as it was."""


class GatedError(SourceError):
    """The Hub grants no access, or not to this token."""


class NetworkError(SourceError):
    """The network, or a server on it, fails: it may be over later."""


class CheckpointError(AnalyzerError):
    """Config, index or shards that are missing or contradict each other."""


class HeaderError(CheckpointError):
    """A safetensors or GGUF header that breaks its format."""


class ArchitectureError(AnalyzerError):
    """No down projection can be told from the tensor names."""


class UnreadableError(ArchitectureError):
    """A matrix is stored in a way that is not read; `encoding` is its name."""

    def __init__(self, message: str, encoding: str) -> None:
        super().__init__(message)
        self.encoding = encoding


class ForwardError(AnalyzerError):
    """The model or its tokenizer cannot be loaded or run."""


class CatalogError(AnalyzerError):
    """A catalog file that cannot be read, written or validated."""


class PlotError(AnalyzerError):
    """A picture, or a page of results, that cannot be written."""


class SettingsError(AnalyzerError):
    """A setting that has no such value."""


class ResultError(AnalyzerError):
    """A saved result that cannot be compared."""


class SurveyError(AnalyzerError):
    """A list, a plan or a survey's folder that cannot be used."""


# What libraries say where the system gave them no memory, or no thread.
OUT_OF_MEMORY = (
    "can't start new thread",
    "can't allocate",
    "ot enough memory",
    "ut of memory",
    "failed to map segment",
)


def reason_of(error: BaseException) -> str:
    """Return what an error of a library says, as one line in words: many hold no more than a key or a name."""
    said = shown(" ".join(str(error).split()))
    if is_out_of_memory(error):
        return "there is not enough memory: close other programs, or take a larger machine"
    if isinstance(error, KeyError) and " " not in said:
        return f"there is no {said}"
    if isinstance(error, ZeroDivisionError):
        return "a size in it is 0"
    if isinstance(error, AttributeError | TypeError | IndexError | AssertionError) or not said:
        return f"a part of it has not the form that is expected ({type(error).__name__}{said and ': '}{said})"
    return said


def is_out_of_memory(error: BaseException | None) -> bool:
    """Tell whether an error, or what it came from, is that the system gave no memory."""
    while error is not None:
        no_memory = isinstance(error, OSError) and error.errno == errno.ENOMEM
        if isinstance(error, MemoryError) or no_memory or any(words in str(error) for words in OUT_OF_MEMORY):
            return True
        error = error.__cause__ or error.__context__
    return False


def shown(text: object, limit: int = 200) -> str:
    """Return `text` as one printable line: control characters escaped, at most `limit` characters.

    Names in messages come from files that nobody vouches for; a terminal must not obey them.
    """
    line = "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in str(text))
    return line if len(line) <= limit else line[: limit - 1] + "…"
