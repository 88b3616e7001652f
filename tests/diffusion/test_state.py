import pytest
import torch

from raydr.diffusion.state import MAGIC, State
from raydr.errors import DamagedData

STATE = State(
    7,
    {"a": torch.arange(3.0)},
    {"state": {0: {"step": torch.tensor(7.0)}}, "param_groups": [{"lr": 0.1, "params": [0]}]},
    torch.ones(2, 1, 2, 2),
    [1, 3],
    6,
    [torch.zeros(3)],
    (1024.0, 5),
    [(4, 0.5)],
    [{"event": "step", "step": 7, "loss": 0.25}],
)


def test_all_of_it_comes_back():
    again = State.from_bytes(STATE.to_bytes())
    assert torch.equal(again.weights["a"], STATE.weights["a"])
    assert torch.equal(again.pool, STATE.pool)
    assert torch.equal(again.ema[0], STATE.ema[0])
    assert again.optimizer["param_groups"] == STATE.optimizer["param_groups"]
    assert (again.step, again.pool_grades, again.pool_step) == (7, [1, 3], 6)
    assert (again.scale, again.validation, again.history) == ((1024.0, 5), [(4, 0.5)], STATE.history)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.999])
def test_a_snapshot_cut_short_is_refused_in_one_sentence(share):
    data = STATE.to_bytes()
    with pytest.raises(DamagedData, match="cut short or changed") as caught:
        State.from_bytes(data[: int(share * len(data))])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("where", [3, len(MAGIC) + 5, len(MAGIC) + 40, -1])
def test_one_changed_byte_is_noticed(where):
    data = bytearray(STATE.to_bytes())
    data[where] ^= 1
    with pytest.raises(DamagedData):
        State.from_bytes(bytes(data))


def test_no_pickle_of_others_is_opened():
    """The hash is right, the content is not: weights_only refuses what is no tensor or plain value."""
    import hashlib
    import io

    buffer = io.BytesIO()
    torch.save({"step": print}, buffer)
    data = buffer.getvalue()
    with pytest.raises(DamagedData):
        State.from_bytes(MAGIC + hashlib.sha256(data).digest() + data)
