"""Random numbers per lane: plain values, never another lane's."""

import random
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from backend.context import in_lane
from backend.lanes import Lane
from backend.overlay.patches import draws, host_randomness, randomness
from tests.backend.overlay.doubles import cpu_lanes, installed, job

X = torch.full((3, 4), 0.5)

DRAWS: dict[str, Callable[[], Any]] = {
    "rand": lambda: torch.rand(3, 2),
    "randn": lambda: torch.randn([4, 5], dtype=torch.float16),
    "randn on the CPU": lambda: torch.randn(3, device="cpu"),
    "randint": lambda: torch.randint(0, 99, (7,)),
    "randperm": lambda: torch.randperm(9),
    "normal of numbers": lambda: torch.normal(0.0, 1.0, (3,)),
    "normal of tensors": lambda: torch.normal(X, X),
    "rand_like": lambda: torch.rand_like(X),
    "randn_like": lambda: torch.randn_like(X.t()),
    "randn_like, other type": lambda: torch.randn_like(X, dtype=torch.float64),
    "randint_like, high": lambda: torch.randint_like(X, 50),
    "randint_like, low and high": lambda: torch.randint_like(X, 7, 50),
    "out": lambda: torch.randn(3, out=torch.empty(3)),
    "bernoulli": lambda: torch.bernoulli(X),
    "multinomial": lambda: torch.multinomial(X, 2),
    "poisson": lambda: torch.poisson(X * 9),
    "Tensor.normal_": lambda: torch.empty(5).normal_(),
    "Tensor.uniform_": lambda: torch.empty(5).uniform_(1, 2),
    "Tensor.random_": lambda: torch.empty(5).random_(9),
    "Tensor.exponential_": lambda: torch.empty(5).exponential_(),
    "Tensor.bernoulli_": lambda: torch.empty(5).bernoulli_(0.4),
    "Tensor.bernoulli": lambda: X.bernoulli().clone(),
    "Tensor.multinomial": lambda: X.multinomial(1),
    "Tensor.log_normal_": lambda: torch.empty(5).log_normal_(),
    "a layer's own start": lambda: torch.nn.Linear(3, 3).weight.data,
    "get_rng_state": lambda: torch.get_rng_state(),  # noqa: PLW0108 (as below)
    "numpy rand": lambda: np.random.rand(3),
    "numpy randint": lambda: np.random.randint(0, 99, 5),
    "numpy choice": lambda: np.random.choice(9, 3),
    "numpy ranf": lambda: np.random.ranf(2),
    "numpy state": lambda: np.random.get_state()[1],
    "random": lambda: random.random(),  # noqa: PLW0108 (a dictionary keeps what it was given)
    "random sample": lambda: random.sample(range(99), 5),
    "random gauss": lambda: random.gauss(0, 1),
    "random state": lambda: random.getstate(),  # noqa: PLW0108 (as above)
}


@pytest.fixture
def patched() -> Iterator[None]:
    """The random names of four lanes on the CPU."""
    with installed(randomness.patches(cpu_lanes())):
        yield


def seed_all(seed: int) -> torch.Generator:
    np.random.seed(seed % 2**32)
    random.seed(seed)
    return torch.manual_seed(seed)


def equal(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other) and one.stride() == other.stride() and one.dtype == other.dtype
    return bool(np.array_equal(one, other)) if isinstance(one, np.ndarray) else bool(one == other)


@pytest.mark.parametrize("name", DRAWS)
def test_a_lane_draws_what_the_process_would(name: str):
    """After the same seed every way of drawing gives, inside a lane, the bits it gives without the overlay."""
    seed_all(1234)
    plain = [DRAWS[name](), DRAWS[name]()]
    with installed(randomness.patches(cpu_lanes())), job(2):
        seed_all(1234)
        assert equal(DRAWS[name](), plain[0])
        assert equal(DRAWS[name](), plain[1])


@pytest.mark.parametrize("name", DRAWS)
def test_another_lane_between_seed_and_draw_changes_nothing(patched: None, name: str):
    """Whatever the other lanes and the server draw in between, a lane's numbers follow its own seed."""
    with job(0):
        seed_all(5)
        alone = DRAWS[name]()
        seed_all(5)
    for lane in (1, 2, 3):
        with job(lane):
            seed_all(77)
            DRAWS[name]()
    with in_lane(0):
        DRAWS[name]()
    DRAWS[name]()
    with job(0):
        assert equal(DRAWS[name](), alone)


@given(seed=st.integers(0, 2**64 - 1) | st.integers(-(2**63), -1) | st.sampled_from([0, 2**63, 2**64 - 1]))
@settings(deadline=None, max_examples=200)
def test_every_seed_gives_the_bits_of_plain_torch(seed: int):
    """Seeds from 0 to 2**64 - 1, and negative ones, seed a lane's generator as they seed torch's."""
    own = draws.Draws("cpu", shared=False)
    plain = torch.Generator().manual_seed(seed)
    returned = own.seed(seed)
    assert returned is own.cpu
    assert torch.equal(returned.get_state(), plain.get_state())
    assert torch.equal(torch.randn(4, generator=returned), torch.randn(4, generator=plain))


def test_manual_seed_returns_the_lanes_generator(patched: None):
    """A generator that a node keeps from ``torch.manual_seed`` is its lane's, and stays it."""
    with job(1):
        mine = torch.manual_seed(9)
        first = torch.randn(3, generator=mine)
    with job(2):
        theirs = torch.manual_seed(9)
    assert mine is not theirs
    assert mine is not torch.default_generator
    with job(1):
        assert torch.equal(torch.randn(3, generator=torch.random.manual_seed(9)), first)


def test_a_generator_of_the_callers_is_used_as_it_is(patched: None):
    """Code that brings its own generator is not touched."""
    expected = torch.randn(3, generator=torch.Generator().manual_seed(3))
    with job(0):
        torch.manual_seed(8)
        state = torch.get_rng_state()
        assert torch.equal(torch.randn(3, generator=torch.Generator().manual_seed(3)), expected)
        assert torch.equal(torch.randn_like(X[0, :3], generator=torch.Generator().manual_seed(3)), expected)
        assert torch.equal(torch.get_rng_state(), state)


def test_outside_lanes_nothing_changes(patched: None):
    """The server's own code seeds and reads the process-wide generators, and what lanes draw leaves those alone."""
    torch.manual_seed(4)
    np.random.seed(4)
    random.seed(4)
    before = torch.default_generator.get_state(), np.random.random(), random.random()
    torch.manual_seed(4)
    np.random.seed(4)
    random.seed(4)
    with job(3):
        for draw in DRAWS.values():
            draw()
    assert torch.equal(torch.default_generator.get_state(), before[0])
    assert (np.random.random(), random.random()) == before[1:]


# In a tuple, where no patch finds them: modules' own names are replaced.
HELD = (np.random.mtrand._rand, random._inst)  # type: ignore[attr-defined]

# What draws past every name that can be replaced.
BEYOND: dict[str, Callable[[], Any]] = {
    "dropout": lambda: torch.nn.functional.dropout(torch.ones(64), 0.5, training=True),
    "rrelu": lambda: torch.nn.functional.rrelu(-torch.ones(16), training=True),
    "gamma": lambda: torch.distributions.Gamma(1.0, 1.0).sample((4,)),
    "beta": lambda: torch.distributions.Beta(torch.tensor(1.0), torch.tensor(1.0)).sample((4,)),
    "dirichlet": lambda: torch.distributions.Dirichlet(torch.ones(3)).sample(),
    "the operator itself": lambda: torch.ops.aten.randn([4]),
    "numpy's instance, held": lambda: HELD[0].standard_normal(4),
    "random's instance, held": lambda: [HELD[1].random(), HELD[1].gauss(0, 1)],
}


@pytest.mark.parametrize("name", BEYOND)
def test_one_job_at_a_time_repeats_what_no_patch_reaches(patched: None, name: str):
    """After a lane's seed, operators without a generator draw what they draw in a process without lanes."""
    seed_all(21)
    plain = BEYOND[name]()
    with job(1):
        for _ in range(2):
            seed_all(21)
            assert equal(BEYOND[name](), plain)
            state = torch.get_rng_state(), np.random.get_state(), random.getstate()
            seed_all(4)
            torch.set_rng_state(state[0])
            np.random.set_state(state[1])
            random.setstate(state[2])
            assert equal(BEYOND[name](), plain)


def test_what_no_patch_reaches_does_not_move_a_lanes_own_numbers(patched: None):
    """Another job's dropout, or its seed, between a seed and a draw changes nothing."""
    with job(0):
        seed_all(5)
        alone = [draw() for draw in DRAWS.values()]
        seed_all(5)
        for draw in BEYOND.values():
            draw()
    with job(1):
        seed_all(6)
        for draw in BEYOND.values():
            draw()
    with job(0):
        assert all(map(equal, [draw() for draw in DRAWS.values()], alone))


def test_torchs_default_generator_is_the_lanes(patched: None):
    """Seeded, read, restored, and given to a function, ``torch.default_generator`` is the lane's; elsewhere torch's."""
    wanted = torch.Generator().manual_seed(7)
    first, second = torch.rand(3, generator=wanted), torch.rand(3, generator=wanted)
    outside = torch.manual_seed(1).get_state()
    assert torch.equal(torch.default_generator.get_state(), outside)
    with job(1):
        torch.default_generator.manual_seed(7)
    with job(2):
        assert torch.default_generator.initial_seed() != 7
        torch.default_generator.manual_seed(8)
    with job(1):
        assert torch.default_generator.initial_seed() == 7
        assert torch.equal(torch.rand(3), first)
        state = torch.default_generator.get_state()
        assert torch.equal(torch.rand(3, generator=torch.default_generator), second)
        torch.default_generator.set_state(state)
        assert torch.equal(torch.empty(3).uniform_(generator=torch.default_generator), second)
        assert torch.default_generator.seed() == torch.initial_seed()
        assert isinstance(torch.default_generator, torch.Generator)
    torch.default_generator.manual_seed(7)
    assert torch.equal(torch.rand(3, generator=torch.default_generator), first)


def test_numpys_own_instance_is_the_lanes(patched: None):
    """What scipy and scikit-learn take, ``numpy.random.mtrand._rand``, is a state per lane and still a RandomState."""
    plain = np.random.RandomState(3).standard_normal(4)
    shared: Any = np.random.mtrand._rand  # type: ignore[attr-defined]
    assert isinstance(shared, np.random.RandomState)
    for lane in (0, 1):
        with job(lane):
            np.random.seed(3)
    with job(1):
        shared.standard_normal(9)
    with job(0):
        assert np.array_equal(shared.standard_normal(4), plain)
        shared.seed(3)
        assert np.array_equal(np.random.standard_normal(4), plain)
    np.random.seed(3)
    assert np.array_equal(shared.standard_normal(4), plain)


def test_a_single_lane_is_plain_torch_and_numpy():
    """Nobody is to be kept apart: the process's generators stay the only ones, mixed draws included."""
    assert randomness.patches(cpu_lanes(1)) == []


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own, on the way to the graph
def test_a_compiled_function_still_draws(patched: None):
    """Tracing code that draws, from the default generator too, works inside a lane."""
    compiled = torch.compile(lambda x: torch.nn.functional.dropout(x) + torch.randn(4), backend="eager")
    with job(0):
        assert compiled(torch.ones(4)).shape == (4,)


def test_lanes_do_not_start_with_the_same_numbers(patched: None):
    """Unseeded numbers are as random as a process's own: no two lanes name their previews alike."""
    seen = set()
    for lane in range(4):
        with job(lane):
            seen |= {random.random(), float(np.random.rand()), float(torch.rand(())), torch.initial_seed()}
    assert len(seen) == 16


def test_states_are_saved_and_restored_within_a_lane(patched: None):
    """``get_rng_state``, ``set_rng_state``, ``seed`` and ``fork_rng`` work on the lane's generator."""
    with job(0):
        torch.manual_seed(1)
        state = torch.get_rng_state()
        first = torch.rand(2)
        torch.set_rng_state(state)
        with torch.random.fork_rng():
            torch.manual_seed(50)
        assert torch.equal(torch.rand(2), first)
        assert torch.seed() == torch.initial_seed()
        assert not torch.equal(torch.get_rng_state(), state)


def test_cuda_seeds_of_a_lane_on_the_cpu_seed_nothing(patched: None):
    """On a lane without a GPU, seeding all GPUs is nothing, and no seed waits for a GPU to come."""
    waiting = len(torch.cuda._queued_calls)
    with job(0):
        torch.cuda.manual_seed_all(3)
        torch.cuda.manual_seed(3)
        torch.manual_seed(3)
    assert len(torch.cuda._queued_calls) == waiting


def test_names_taken_before_are_replaced_too():
    """``from numpy.random import rand`` before the start is the lane's as well, until the overlay goes."""
    module = type(np)("a_custom_node")
    module.rand, module.randn, module.choice = np.random.rand, torch.randn, random.choice  # type: ignore[attr-defined]
    sys.modules["a_custom_node"] = module
    try:
        with installed(randomness.patches(cpu_lanes())):
            assert module.rand is np.random.rand
            assert module.randn is torch.randn
            assert module.choice is random.choice
            with job(0):
                torch.manual_seed(2)
                expected = torch.randn(2)
                torch.manual_seed(2)
                assert torch.equal(module.randn(2), expected)
        assert module.rand is np.random.rand
    finally:
        del sys.modules["a_custom_node"]


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")  # TorchScript itself is what is tested
def test_torchscript_and_default_devices_still_work(patched: None):
    """TorchScript knows the replaced functions as its builtins, and a default device applies to them."""

    def scripted(count: int) -> torch.Tensor:
        return torch.randn(count)

    assert torch.jit.script(scripted)(3).shape == (3,)
    torch.set_default_device("meta")
    try:
        with job(0):
            assert torch.rand(2).device.type == "meta"
            assert torch.randn(2, device="cpu").device.type == "cpu"
    finally:
        torch.set_default_device(None)


def test_like_functions_without_a_generator_argument_fill_the_same_bits():
    """On a torch whose ``*_like`` take no generator, the values are drawn in two steps and are the same."""
    cases = [
        ("rand_like", (X,), {}),
        ("randn_like", (X.t(),), {"dtype": torch.float64}),
        ("randint_like", (X, 9), {}),
        ("randint_like", (X, 3, 9), {}),
        ("randint_like", (X,), {"low": 3, "high": 9}),
        ("randn_like", (), {"input": X, "requires_grad": True}),
    ]
    for name, args, kwargs in cases:
        expected = getattr(torch, name)(*args, **kwargs, generator=torch.Generator().manual_seed(6))
        found = randomness._fill_like(name, torch.Generator().manual_seed(6), *args, **dict(kwargs))
        assert equal(found, expected), name
        assert found.requires_grad == expected.requires_grad


def prepare_noise(seed: int, between: Callable[[], None] = lambda: None) -> torch.Tensor:
    """What ComfyUI does for each picture: seed, then draw, as two steps."""
    generator = torch.manual_seed(seed)
    between()
    return torch.randn([1, 4, 32, 32], dtype=torch.float32, generator=generator, device="cpu")


def run_lanes(rounds: int, meet: Callable[[], None]) -> int:
    """Four workers at once; how many of their noises are not the seed's."""
    wrong: list[int] = []

    def worker(lane: int) -> None:
        with job(lane):
            for index in range(rounds):
                seed = 1000 * lane + index
                noise = prepare_noise(seed, meet)
                generator = torch.Generator().manual_seed(seed)
                if not torch.equal(noise, torch.randn([1, 4, 32, 32], generator=generator)):
                    wrong.append(seed)

    threads = [threading.Thread(target=worker, args=(lane,)) for lane in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return len(wrong)


def test_four_lanes_at_once_get_their_own_seeds_noise(patched: None):
    """Four workers that seed and draw at once, meeting between the two steps each time, all get the right noise."""
    barrier = threading.Barrier(4)
    assert run_lanes(50, lambda: barrier.wait(30) and None) == 0


def test_without_the_patches_they_do_not():
    """The same meeting without the overlay gives wrong noise: the test above can fail."""
    barrier = threading.Barrier(4)
    assert run_lanes(10, lambda: barrier.wait(30) and None) > 20


def test_lanes_that_share_a_gpu_draw_from_generators_of_their_own():
    """Two lanes on one GPU may not share its generator; lanes with a GPU each use that GPU's own."""
    lanes = [Lane(0, "cuda:0"), Lane(1, "cuda:0"), Lane(2, "cuda:1")]
    found = draws.LaneDraws(lanes)
    kinds = []
    for lane in range(3):
        with job(lane):
            own = found.current()
            assert own is not None
            kinds.append((own.device, own._shared))
    assert kinds == [(torch.device("cuda:0"), True), (torch.device("cuda:0"), True), (torch.device("cuda:1"), False)]


def test_every_hidden_method_of_numpy_and_random_is_covered():
    """No function of the two modules still shares its state between lanes."""
    targets = {patch.target for patch in host_randomness.patches(lambda: None)}
    for module in (np.random, random):
        hidden = np.random.mtrand._rand if module is np.random else random._inst  # type: ignore[attr-defined]
        for name, value in vars(module).items():
            if getattr(value, "__self__", None) is hidden and not name.startswith("_"):
                assert f"{module.__name__}:{name}" in targets
    assert {"numpy.random:seed", "numpy.random:ranf", "random:seed", "random:shuffle"} <= targets


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> list[torch.Generator]:
    """The generators of two GPUs, played by CPU ones: which of them is seeded is what matters."""
    generators = [torch.Generator().manual_seed(1), torch.Generator().manual_seed(2)]
    monkeypatch.setattr(torch.cuda, "init", lambda: None)
    monkeypatch.setattr(torch.cuda, "default_generators", tuple(generators))
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device="cuda": "another GPU's")
    monkeypatch.setattr(torch.cuda, "get_rng_state_all", lambda: [found.get_state() for found in generators])
    return generators


def test_a_lane_seeds_its_own_gpu_alone(two_gpus: list[torch.Generator]):
    """No way of seeding or restoring from one lane rewinds the other lane's GPU."""
    gpus = [Lane(0, "cuda:0"), Lane(1, "cuda:1")]
    foreign = two_gpus[0].get_state()
    with installed(randomness.patches(gpus)), job(1):
        for index, seed in enumerate((torch.manual_seed, torch.cuda.manual_seed, torch.cuda.manual_seed_all)):
            seed(40 + index)
            assert two_gpus[1].initial_seed() == 40 + index
        states = torch.cuda.get_rng_state_all()
        torch.cuda.seed_all()
        assert two_gpus[1].initial_seed() != 42
        torch.cuda.set_rng_state_all(states)
        assert torch.equal(two_gpus[1].get_state(), states[1])
        torch.cuda.seed()
        torch.cuda.set_rng_state(states[1])
        torch.cuda.set_rng_state(states[1], device="cuda:0")
        assert torch.equal(torch.cuda.get_rng_state(), states[1])
        assert torch.equal(torch.cuda.get_rng_state(1), states[1])
        assert torch.cuda.get_rng_state("cuda:0") == "another GPU's"
    assert torch.equal(two_gpus[0].get_state(), foreign)


def test_lanes_that_share_a_gpu_seed_its_generator_too(two_gpus: list[torch.Generator]):
    """Operators without a generator draw from the GPU's own one there: with one job at a time they follow the seed."""
    own = draws.Draws("cuda:1", shared=True)
    own._private = torch.Generator()  # stands for one on the GPU
    foreign = two_gpus[0].get_state()
    own.seed(50)
    assert own._private.initial_seed() == two_gpus[1].initial_seed() == 50
    state = two_gpus[1].get_state()
    own.seed(51)
    own.set_cuda_state(state)
    assert torch.equal(own._private.get_state(), state)
    assert torch.equal(two_gpus[1].get_state(), state)
    assert torch.equal(two_gpus[0].get_state(), foreign)
