"""What a person sees."""

from raydr import terminal


def test_a_table_takes_nothing_for_markup() -> None:
    with terminal.console.capture() as shown:
        terminal.table("Arms [phantom data]", ["arm", "[0, 1]"], [["band [0.5, 1]", "[bold]"]])
    for text in ("Arms [phantom data]", "[0, 1]", "band [0.5, 1]", "[bold]"):
        assert text in shown.get()
