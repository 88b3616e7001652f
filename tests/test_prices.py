import pytest

from raydr import prices, spending
from raydr.errors import DamagedData, UserError
from raydr.prices import Prices
from raydr.spending import Budget, Node, Spend
from raydr.storage import Run

TABLE = """
currency = "EUR"
checked = true
[aws]
"g6.xlarge" = { on_demand = 0.80, spot = 0.36, gpus = 1, gpu = "L4" }
[nodes]
generate = { instance = "g6.xlarge", market = "spot" }
head = { instance = "g6.xlarge" }
desk = 0.25
"""


@pytest.fixture
def table(tmp_path):
    file = tmp_path / "prices.toml"
    file.write_text(TABLE)
    return file


@pytest.mark.parametrize(
    ("labels", "host", "price"),
    [
        ({"raydr.io/instance-type": "g6.xlarge"}, "", 0.80),
        ({"raydr.io/instance-type": "g6.xlarge", "ray.io/market-type": "spot"}, "", 0.36),
        ({"raydr.io/pool": "generate"}, "desk", 0.36),
        ({"ray.io/node-group": "head"}, "", 0.80),
        # generate_8cpu is of the pool generate, and another instance type
        ({"ray.io/node-group": "head", "raydr.io/pool": "generate"}, "", 0.80),
        ({"raydr.io/instance-type": "g7.xlarge", "ray.io/node-group": "head"}, "", 0.80),
        ({}, "desk", 0.25),
        ({}, "elsewhere", None),
    ],
)
def test_which_row_a_node_is(table, labels, host, price):
    assert prices.load(str(table)).hourly(labels, host) == price


def test_where_the_table_comes_from(table, monkeypatch):
    shipped = prices.load()
    assert (shipped.currency, shipped.checked) == ("USD", False)
    assert shipped.hourly({"raydr.io/pool": "generate"}) == 0.36
    monkeypatch.setenv("RAYDR_PRICES", str(table))
    assert prices.load().currency == "EUR"
    monkeypatch.setenv("RAYDR_PRICES", "/nowhere")
    assert prices.load(str(table)).checked
    with pytest.raises(UserError, match="/nowhere cannot be read"):
        prices.load()


@pytest.mark.parametrize(
    "text",
    ["nonsense", "[nodes]\na = -1", '[nodes]\na = "1"', "[nodes]\na = nan", "[nodes]\na = true",
     '[nodes]\na = { instance = "b" }', "[aws]\na = 3", "nodes = 3"],
)  # fmt: skip
def test_anything_else_is_one_sentence(tmp_path, text):
    file = tmp_path / "p.toml"
    file.write_text(text)
    with pytest.raises(UserError, match="is none"):
        prices.load(str(file))


def test_time_is_money():
    """Half an hour of two nodes at 1 and 3 an hour, one with 4 GPUs; then ten minutes of the second alone."""
    spend = Spend()
    nodes = [Node("a", 1.0, 0.0), Node("b", 3.0, 4.0)]
    spend.pass_time(1800, nodes)
    spend.pass_time(600, nodes[1:])
    assert spend.cost == pytest.approx(0.5 + 1.5 + 0.5)
    assert spend.gpu_seconds == 4 * 2400
    assert (spend.seconds, spend.node_seconds) == (2400, 4200)
    assert spend.known == pytest.approx(2.5)
    assert spend.words() == "2.50 USD (example prices)"
    spend.pass_time(60, [Node("c", None, 0.0)])
    assert spend.known is None
    assert spend.words() == "unmeasured"


def test_nodes_of_ray():
    found = [
        {"NodeID": "a", "Alive": True, "Labels": {"raydr.io/pool": "x"}, "Resources": {"GPU": 2.0, "CPU": 8.0}},
        {"NodeID": "b", "Alive": True, "NodeManagerHostname": "desk"},
        {"NodeID": "c", "Alive": False, "NodeManagerHostname": "desk"},
    ]
    assert spending.nodes_of(found, Prices(nodes={"desk": 0.25})) == [Node("a", None, 2.0), Node("b", 0.25, 0.0)]


def test_what_drivers_spent_adds_up(tmp_path):
    run = Run(str(tmp_path))
    assert spending.total(run, "synthesize").known is None
    assert spending.load(run, "synthesize", "q-1") is None
    one = Spend(10, 10, 5, 10, 2.0, "USD", True, 64)
    spending.keep(run, "synthesize", "q-1", one)
    spending.keep(run, "synthesize", "q-1", one)
    spending.keep(run, "synthesize", "q-2", Spend(1, 1, 0, 1, 1.0, "USD", False, 8))
    spending.keep(run, "sweep", "q-3", Spend(1, 1, 0, 1, 100.0))
    assert spending.load(run, "synthesize", "q-1") == one
    assert spending.total(run, "synthesize") == Spend(11, 11, 5, 11, 3.0, "USD", False, 72)
    run.replace("logs/spend/synthesize-q-4.json", b"[]")
    with pytest.raises(DamagedData, match="q-4"):
        spending.total(run, "synthesize")


def test_each_turn_of_a_stage_has_an_account_of_its_own(tmp_path):
    run = Run(str(tmp_path))
    for cost in (1.0, 2.0):
        keep = spending.keeper(run, "sweep")
        keep(Spend(node_seconds=1, priced_seconds=1, cost=cost / 2))
        keep(Spend(node_seconds=1, priced_seconds=1, cost=cost))
    assert spending.total(run, "sweep").known == 3.0


def test_a_budget_counts_earlier_drivers():
    now = Spend(gpu_seconds=3, cost=0.5)
    assert Budget().ended(now) is None
    assert Budget(gpu_seconds=10, before=Spend(gpu_seconds=6.9)).ended(now) is None
    assert "max_gpu_seconds 10" in Budget(gpu_seconds=10, before=Spend(gpu_seconds=7)).ended(now)
    assert Budget(cost=1.0, before=Spend(cost=0.4)).ended(now) is None
    unknown = Spend(cost=0.1, node_seconds=20, priced_seconds=10)
    assert "a node without a price has come" in Budget(cost=1.0).ended(unknown)
    assert Budget(gpu_seconds=1.0).ended(unknown) is None
    assert "max_cost 1 USD (1.00 spent)" in Budget(cost=1.0, before=Spend(cost=0.5)).ended(now)
