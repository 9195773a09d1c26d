"""One process at a time: the second waits, says so, and finds the work done."""

import logging
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from data import DataError
from locks import alone_with

HOLD = """
import sys
from pathlib import Path
from locks import alone_with
with alone_with(Path(sys.argv[1]), "work"):
    print("held", flush=True)
    sys.stdin.readline()
    Path(sys.argv[1]).mkdir()
"""


def test_the_second_waits_until_the_first_is_done(tmp_path, caplog):
    folder = tmp_path / "cache" / "key"
    command = [sys.executable, "-c", HOLD, str(folder)]
    root = Path(__file__).parent.parent
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=root) as first:
        assert first.stdout.readline() == "held\n"
        threading.Timer(0.3, first.stdin.close).start()  # the end of its input lets it go on
        with caplog.at_level(logging.INFO), alone_with(folder, "work"):
            assert folder.is_dir()
    assert "work: another process is at it" in caplog.text
    assert stat.S_IMODE(folder.parent.stat().st_mode) == 0o700


def test_a_folder_that_is_there_keeps_its_mode(tmp_path):
    """It may be /tmp, or a group's."""
    tmp_path.chmod(0o775)
    with alone_with(tmp_path / "key", "work"):
        assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o775


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "file").touch()
    with (
        pytest.raises(DataError, match="--cache_dir .*file: .*; choose another folder"),
        alone_with(tmp_path / "file" / "key", "work"),
    ):
        pass


def test_the_lock_is_released_after_an_error(tmp_path):
    with pytest.raises(ValueError), alone_with(tmp_path / "key", "work"):
        raise ValueError
    with alone_with(tmp_path / "key", "work"):
        pass
