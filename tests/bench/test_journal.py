"""The journal's bench runs, and what it measures is there: one short round, so that it cannot rot."""

from pathlib import Path

from bench.journal import main


async def test_one_round(tmp_path: Path):
    """Every submission is durable, and those that come together share commits."""
    rows = await main(tmp_path, 0.02)
    assert [len(row.latencies) for row in rows] == [row.submissions for row in rows]
    assert all(row.commits for row in rows)
    together = rows[-1]
    assert together.commits < together.submissions
    assert "µs CPU each" in str(together)
