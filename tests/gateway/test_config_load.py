"""config.toml read whole: a config, or every mistake at once with its line."""

import tomllib
from pathlib import Path
from textwrap import dedent

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.config import Backend, Config, Limits, Listen, Rate, RateLimits, Timeouts
from gateway.config_load import LARGEST_FILE, ConfigError, Problem, load, parse, read

WHOLE = (Path(__file__).parents[2] / "config.toml").read_text()


def said(text: str) -> list[str]:
    """The problems of a text as the user sees them."""
    return [str(problem) for problem in parse(dedent(text))[1]]


def accepted(text: str) -> Config:
    """The config of a text that has no problems."""
    config, problems = parse(dedent(text))
    assert problems == []
    assert config is not None
    return config


def test_empty_file_is_the_defaults() -> None:
    """A file that changes nothing is the default config."""
    assert accepted("") == accepted("[listen]\n[rate.submit]\n") == Config()


def test_friendly_spellings() -> None:
    """Units, single strings for arrays, dotted keys and inline tables are all read."""
    config = accepted(
        """
        listen.host = "::1"
        listen.gpu_ports = [9001, 9002]
        backend = {url = "http://localhost:9188", args = ["--lowvram"]}
        timeouts.read = "10m"
        [limits]
        body = "64MiB"
        [rate]
        submit = {rate = "600r/m", burst = 5, delay = 2}
        read.nodelay = false
        """
    )
    assert config == Config(
        listen=Listen(host=("::1",), gpu_ports=(9001, 9002)),
        backend=Backend(url="http://localhost:9188", args=("--lowvram",)),
        timeouts=Timeouts(read=600.0),
        limits=Limits(body=64 << 20),
        rate=RateLimits(submit=Rate(10, 5, delay=2), read=Rate(50, 200, delay=0)),
    )


def test_buckets_keep_what_is_not_said() -> None:
    """A bucket's table changes only its own keys."""
    assert accepted("[rate.events]\nburst = 9").rate.events == Rate(5, 9, refuse=False)
    assert accepted("[rate.submit]\nnodelay = true").rate.submit == Rate(10, 20)


def test_all_problems_at_once() -> None:
    """Every mistake is named in one go, by line, with the key that was meant."""
    assert said(
        """\
        client_max_body_size = "100M"
        gpu_ports = [8181]
        [listen]
        gpu_prots = [8181]
        front_port = 99999
        gpu_ports = [8181, "x"]
        [limts]
        body = "1GB"
        [limits]
        body = \"\"\"
        [fake]
        \"\"\"
        submit = 1
        [rate.submit]
        rate = "10r/x"
        nodelay = true
        delay = 3
        brst = 1
        xyz = {}
        [rate]
        read = 5
        scope = "al"
        """
    ) == [
        "config.toml:1: client_max_body_size: unknown key; nginx's client_max_body_size is [limits] body here",
        "config.toml:2: gpu_ports: unknown key; did you mean [listen] gpu_ports?",
        "config.toml:4: [listen] gpu_prots: unknown key; did you mean gpu_ports?",
        "config.toml:5: [listen] front_port: must be 0 to 65535, not 99999",
        "config.toml:6: [listen] gpu_ports: item 2 must be a whole number, not a string",
        "config.toml:7: [limts]: unknown table; did you mean [limits]?",
        'config.toml:10: [limits] body: a size is a number of bytes, or such as "64KB", "100MB", "1GB"',
        "config.toml:13: [limits] submit: unknown key; did you mean [rate] submit?",
        'config.toml:15: [rate.submit] rate: a rate is a number of requests a second, or such as "10r/s", "600r/m"',
        "config.toml:17: [rate.submit] delay: contradicts nodelay = true; keep one of the two",
        "config.toml:18: [rate.submit] brst: unknown key; did you mean burst?",
        "config.toml:19: [rate.submit.xyz]: unknown table; known here: rate, burst, delay, refuse, nodelay",
        "config.toml:21: [rate] read: must be a table, not a whole number",
        'config.toml:22: [rate] scope: must be cost or all, not "al"; did you mean all?',
    ]


def test_contradictions_have_lines_too() -> None:
    """What only shows in two settings together is named where the first of them stands."""
    assert said("[backend]\n\ndevices = ['cpu']\n[listen]\nfront_port = 8181") == [
        "config.toml:3: [backend] devices: names 1 for 4 GPUs: one per port, or as COMFY_NUM_GPUS or --gpus says",
        "config.toml:5: [listen] front_port: port 8181 is that of GPU 0 as well",
    ]


def test_no_contradiction_with_what_could_not_be_read() -> None:
    """A setting that is wrong in itself is not judged again by its default."""
    assert said("[listen]\nfront_port = 8181\ngpu_ports = [8181, -1]") == [
        "config.toml:3: [listen] gpu_ports: item 2 must be 0 to 65535, not -1"
    ]
    assert said("listen = 1\nbackend.devices = ['cpu']") == [
        "config.toml:1: listen: must be a table, not a whole number"
    ]


def test_warnings_do_not_refuse() -> None:
    """A warning is said and the config stands."""
    config, problems = parse("[listen]\nhost = '0.0.0.0'")
    assert config is not None
    assert config.listen.host == ("0.0.0.0",)
    assert [problem.warning for problem in problems] == [True]
    assert str(problems[0]).startswith("config.toml:2: warning: [listen] host: 0.0.0.0 without [tls]")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[listen]\nfront_port = ", "config.toml:2: syntax: invalid value at the end of the file"),
        ("[listen]\nfront_port 1", "config.toml:2: syntax: expected '=' after a key"),
        ("a = 1\n\n\na = 2 # x\n", "config.toml:4: syntax: cannot overwrite a value at column 6"),
        ("x = 'a", "config.toml:1: syntax: expected "),
        ("x = " + "[" * 5000, "config.toml: nests brackets too deep"),
        ("x = " + "1" * 5000, "config.toml: holds a number that is too long"),
    ],
)
def test_syntax(text: str, says: str) -> None:
    """A syntax error is one line with its place."""
    (problem,) = said(text)
    assert problem.startswith(says)


def test_keys_cannot_break_the_report() -> None:
    """Control characters in a key do not reach the terminal."""
    (problem,) = said('"a\\u001b[31m\\n" = 1')
    assert problem.isprintable()


def test_file(tmp_path: Path) -> None:
    """A file is read with its name in the messages; a byte-order mark and CRLF are fine."""
    path = tmp_path / "my.toml"
    path.write_bytes(b"\xef\xbb\xbf[listen]\r\nfront_port = 0\r\n")
    assert load(path) == (Config(listen=Listen(front_port=0)), [])
    path.write_text("\n\n[listn]")
    with pytest.raises(ConfigError) as caught:
        load(str(path))
    assert str(caught.value) == f"{path}:3: [listn]: unknown table; did you mean [listen]?"
    assert caught.value.problems == [Problem(str(path), 3, "[listn]", "unknown table; did you mean [listen]?")]


def test_unreadable_files(tmp_path: Path) -> None:
    """No file, a folder, not text, or far too large: one line each and no exception."""
    (tmp_path / "latin.toml").write_bytes(b"[log]\n# caf\xe9\n")
    (tmp_path / "large.toml").write_bytes(b"#" * (LARGEST_FILE + 1))
    for name, says in {
        "none.toml": "none.toml: cannot be read: No such file or directory",
        "": "cannot be read: Is a directory",
        "a\0b": "cannot be read: embedded null byte",
        "latin.toml": "latin.toml:2: is not UTF-8 from here on",
        "large.toml": "is larger than 1048576 bytes",
    }.items():
        config, problems = read(f"{tmp_path}/{name}")
        assert config is None
        assert says in str(problems[0])


def holds(text: str) -> None:
    """The promise for any text: a config, or at least one error; every problem on a line of the file."""
    config, problems = parse(text)
    assert (config is None) == any(not problem.warning for problem in problems)
    assert all(0 <= problem.line <= text.count("\n") + 1 and problem.message for problem in problems)


@given(st.text() | st.text(alphabet="ab=.[]{}\"'#\\\n\r01-:T "))
def test_garbage(text: str) -> None:
    """Whatever text comes, there is a config or an error, never an exception."""
    holds(text)


@given(
    st.integers(0, len(WHOLE)),
    st.integers(0, 40),
    st.text(alphabet="ab=.[]{}\"'#\\\n\r01-:T ", max_size=8)
    | st.sampled_from(["[rate.all]\n", "listen", "= {a = 1}\n"]),
)
def test_damaged_file(at: int, length: int, patch: str) -> None:
    """A whole config.toml with any piece of it overwritten is still read or refused."""
    holds(WHOLE[:at] + patch + WHOLE[at + length :])


VALUES = st.sampled_from(
    [
        "0",
        "1",
        "-1",
        "8181",
        "1e400",
        "nan",
        "true",
        '""',
        '"all"',
        '"10s"',
        '"1GB"',
        "[]",
        "[1, [2]]",
        "{}",
        "1979-05-27",
    ]
)
PLACES = st.sampled_from(["listen", "backend", "rate.submit", "x", "x.y.z", "rate.x.y"]) | st.sampled_from(
    [f"{section}.{key}" for section, table in tomllib.loads(WHOLE).items() for key in table]
)


@given(st.dictionaries(PLACES, VALUES, max_size=6))
def test_any_type_anywhere(settings: dict[str, str]) -> None:
    """A value of any type in the place of any setting is read or refused."""
    holds("".join(f"{place} = {value}\n" for place, value in settings.items()))
