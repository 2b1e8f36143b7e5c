"""What was thought through is kept until a file changes, and no longer."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from wiredactors.engine import remembered
from wiredactors.engine.remembered import Files, Remembered, files_of


class Asked:
    """Counts its answers."""

    def __init__(self) -> None:
        self.times = 0

    def __call__(self) -> int:
        self.times += 1
        return self.times


def folder(path: Path) -> Path:
    (path / "config.json").write_text("{}")
    (path / "model.safetensors").write_bytes(b"weights")
    return path


def rewrite(file: Path) -> None:
    """Other bytes, as many, written a moment later."""
    stat = file.stat()
    file.write_bytes(bytes(reversed(file.read_bytes())))
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))


class TestFiles:
    def test_they_are_the_same_until_one_is_written_grows_comes_or_goes(
        self, tmp_path: Path
    ) -> None:
        path = folder(tmp_path)
        seen: list[Files | None] = [files_of(path)]
        assert files_of(path) == seen[0]
        rewrite(path / "model.safetensors")
        seen.append(files_of(path))
        with (path / "config.json").open("a") as file:
            file.write(" ")
        seen.append(files_of(path))
        (path / "tokenizer.json").touch()
        seen.append(files_of(path))
        (path / "config.json").unlink()
        seen.append(files_of(path))
        assert None not in seen
        assert len(set(seen)) == len(seen)

    def test_of_a_link_the_file_counts_that_it_leads_to(self, tmp_path: Path) -> None:
        blob = tmp_path / "blob"
        blob.write_bytes(b"weights")
        link = tmp_path / "model.gguf"
        link.symlink_to(blob)
        before = files_of(link)
        rewrite(blob)
        assert files_of(link) != before

    def test_of_what_is_not_there_nothing_is_known(self, tmp_path: Path) -> None:
        assert files_of(tmp_path / "missing.gguf") is None


class TestRemembered:
    def test_it_asks_once_for_a_key_and_the_same_files(self, tmp_path: Path) -> None:
        path, kept, find = folder(tmp_path), Remembered[int](), Asked()
        assert [kept.get("key", files_of(path), find) for _ in range(3)] == [1, 1, 1]
        assert kept.get("other", files_of(path), find) == 2
        rewrite(path / "model.safetensors")
        assert [kept.get("key", files_of(path), find) for _ in range(2)] == [3, 3]

    def test_without_files_it_asks_each_time(self) -> None:
        kept, find = Remembered[int](), Asked()
        assert [kept.get("key", None, find) for _ in range(2)] == [1, 2]

    def test_an_error_is_not_kept(self, tmp_path: Path) -> None:
        def broken() -> int:
            raise ValueError("broken")

        kept, files = Remembered[int](), files_of(folder(tmp_path))
        with pytest.raises(ValueError, match="broken"):
            kept.get("key", files, broken)
        assert kept.get("key", files, Asked()) == 1

    def test_of_very_many_it_forgets_the_one_that_was_asked_for_longest_ago(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(remembered, "_MOST", 2)
        kept, files, find = Remembered[int](), files_of(folder(tmp_path)), Asked()
        assert [kept.get(key, files, find) for key in ("a", "b", "a", "c")] == [1, 2, 1, 3]
        assert [kept.get(key, files, find) for key in ("a", "c", "b")] == [1, 3, 4]
