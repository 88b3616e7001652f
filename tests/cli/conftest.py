"""The command line, called in this process, and a Ray that must not be started."""

import pytest

from raydr import cli


@pytest.fixture
def raydr(capsys):
    """Call the command line: (exit code, everything printed). A traceback would come through as an exception."""

    def call(*argv):
        try:
            code = cli.main([str(item) for item in argv])
        except SystemExit as stop:  # argparse and tyro leave this way
            code = stop.code or 0
        printed = capsys.readouterr()
        return code, printed.out + printed.err

    return call


@pytest.fixture
def no_ray(monkeypatch):
    from raydr.cluster import session

    def started(*arguments):
        raise AssertionError("Ray was started")

    monkeypatch.setattr(session, "session", started)
