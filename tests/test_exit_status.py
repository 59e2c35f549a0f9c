"""How a program ends: its status, and one line on stderr where something is wrong."""

import os
import subprocess
import sys

import pytest

from stormfast.errors import UserError
from stormfast.exit_status import exit_status


def raising(error):
    def call():
        raise error

    return call


@pytest.mark.parametrize("status", [0, 1, 143])
def test_the_status_of_the_call(status, capsys):
    assert exit_status("prog", lambda: status) == status
    assert capsys.readouterr() == ("", "")


def test_a_user_error_is_one_line_and_2(capsys):
    assert exit_status("prog", raising(UserError("steps must be 1,\n\tgot 0"))) == 2
    out, err = capsys.readouterr()
    assert (out, err) == ("", "prog: error: steps must be 1, got 0\n")


def test_a_user_error_is_a_value_error():
    with pytest.raises(ValueError, match="got 0"):
        raise UserError("steps must be 1, got 0")


def test_an_interrupt_is_130(capsys):
    assert exit_status("prog", raising(KeyboardInterrupt())) == 130
    assert capsys.readouterr() == ("", "prog: interrupted\n")


@pytest.mark.parametrize("error", [ValueError("a bug"), RuntimeError("a bug"), FileNotFoundError("a bug")])
def test_a_bug_keeps_its_traceback(error, capsys):
    with pytest.raises(type(error), match="a bug"):
        exit_status("prog", raising(error))


def test_nothing_is_printed_elsewhere_where_stderr_is_closed(monkeypatch, capsys):
    monkeypatch.setattr(sys, "stderr", None)
    assert exit_status("prog", raising(UserError("wrong"))) == 2
    assert capsys.readouterr().out == ""


def test_a_closed_stdout_is_refused_before_the_call(monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdout", None)
    assert exit_status("prog", lambda: pytest.fail("called")) == 2
    assert "standard output is closed" in capsys.readouterr().err


CODE = """
import sys
from stormfast.exit_status import exit_status
sys.exit(exit_status("prog", lambda: print("x" * 100_000) or 0))
"""


def run_with_stdout(stdout):
    return subprocess.run([sys.executable, "-c", CODE], stdout=stdout, stderr=subprocess.PIPE, text=True, timeout=60)


def test_a_reader_that_left_is_141():
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "wb") as pipe:
        done = run_with_stdout(pipe)
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
def test_a_full_disk_behind_stdout_is_one_line():
    with open("/dev/full", "wb") as full:
        done = run_with_stdout(full)
    assert done.returncode == 2
    assert done.stderr.startswith("prog: error: standard output cannot be written: No space left on device")
    assert done.stderr.count("\n") == 1
