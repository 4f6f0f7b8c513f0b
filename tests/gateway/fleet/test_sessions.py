"""A client's home among several backends."""

from collections import Counter

from gateway.fleet.member import Member
from gateway.fleet.sessions import home

CLIENTS = [f"10.0.{number // 250}.{number % 250}" for number in range(1000)]


def members(weights: tuple[float, ...]) -> list[Member]:
    made = [Member(1, index=index, first=index, weight=weight) for index, weight in enumerate(weights)]
    for member in made:
        member.backend_up()
    return made


def test_clients_are_shared_out_by_weight():
    """Twice the weight, about twice the clients."""
    found = Counter(home(client, members((1.0, 1.0, 2.0))).index for client in CLIENTS)
    assert sum(found.values()) == 1000
    assert 180 < found[0] < 320
    assert 180 < found[1] < 320
    assert 430 < found[2] < 570


def test_only_the_clients_of_one_that_goes_move():
    """And they come back with it."""
    all_there = members((1.0, 1.0, 1.0))
    before = {client: home(client, all_there).index for client in CLIENTS}
    all_there[1].backend_down("it died", 1)
    after = {client: home(client, all_there).index for client in CLIENTS}
    assert all(after[client] != 1 for client in CLIENTS)
    assert all(after[client] == before[client] for client in CLIENTS if before[client] != 1)
    all_there[1].backend_up()
    assert {client: home(client, all_there).index for client in CLIENTS} == before


def test_one_that_is_out_or_draining_is_nobodys_home_unless_it_is_the_last():
    """With nothing better, a bad one is better than none."""
    both = members((1.0, 1.0))
    both[0].drain = True
    assert {home(client, both).index for client in CLIENTS} == {1}
    both[1].backend_down("it died", 1)
    assert {home(client, both).index for client in CLIENTS} == {0}
    both[0].backend_down("it died", 1)
    assert len({home(client, both).index for client in CLIENTS}) == 2
