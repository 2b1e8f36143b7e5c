"""What was thought through of a model's files, kept while the files are as they were."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Generic, TypeVar

T = TypeVar("T")

#: Of each file: its name, its bytes, and when it was last written, in nanoseconds.
Files = tuple[tuple[str, int, int], ...]

#: More sources with options of their own than anybody loads in turn; one takes a few kilobytes.
_MOST = 256


def files_of(path: Path) -> Files | None:
    """The files of a source as they are now; None where they cannot be looked at.

    A directory's are all that lie in it: its config, its code and its tokenizer count as well.
    """
    try:
        files = sorted(path.iterdir()) if path.is_dir() else [path]
        # A hub's files are links to others, and those are looked at.
        stats = [(file.name, file.stat()) for file in files]
    except OSError:
        return None
    return tuple((name, stat.st_size, stat.st_mtime_ns) for name, stat in stats)


class Remembered(Generic[T]):
    """Answers by key, each with the files that it was found from."""

    def __init__(self) -> None:
        self._answers: dict[Hashable, tuple[Files, T]] = {}

    def get(self, key: Hashable, files: Files | None, find: Callable[[], T]) -> T:
        """The answer for the key, which `find` gives unless it did for the same files.

        `files` must have been looked at before anything of them was read: a change that comes
        between the two is then one more search, never an old answer. Nothing is kept of what
        raises, and nothing without files.
        """
        kept = self._answers.pop(key, None)
        answer = kept[1] if kept is not None and kept[0] == files else find()
        if files is not None:
            self._answers[key] = files, answer
            if len(self._answers) > _MOST:
                del self._answers[next(iter(self._answers))]  # asked for longest ago
        return answer
