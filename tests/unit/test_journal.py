"""Files that are read while others write them."""

from __future__ import annotations

from pathlib import Path

import pytest

from journal import append, whole_lines


def test_the_beginning_of_a_line_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    assert whole_lines(path) == []
    append(path, "größer\n")
    append(path, '{"what": "ran", "at')
    assert whole_lines(path) == ["größer"]
    append(path, '": 1}\n')
    assert whole_lines(path) == ["größer", '{"what": "ran", "at": 1}']


@pytest.mark.parametrize("cut", range(1, len("größer\n".encode())))
def test_a_character_may_be_cut(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "lines"
    path.write_bytes(b"a\n" + "größer\n".encode()[:cut])
    assert whole_lines(path) == ["a"]
