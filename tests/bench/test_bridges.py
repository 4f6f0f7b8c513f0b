"""The bench of idle bridges runs, and what a bridge costs stays in its order of magnitude."""

from bench.bridges import gateway


def test_an_idle_bridge_costs_a_few_kilobytes():
    """Two hundred of them: more than nothing, and less than nginx's twenty-odd kilobytes each."""
    figure = gateway(200)
    print(f"{figure.each / 1024:.2f} KiB per bridge")
    assert 1024 < figure.each < 20 * 1024
