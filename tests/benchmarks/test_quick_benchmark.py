"""The quick benchmark: ratios now beside ratios before."""

import json
from pathlib import Path

import pytest

from benchmarks import peers, quick
from benchmarks.peer_servers.processes import PeerError


def test_every_way_of_the_quick_run_is_one_of_the_peers():
    assert set(quick.WAYS) <= peers.WAYS.keys()


def test_ratios_stand_beside_those_of_an_earlier_run(tmp_path):
    path = tmp_path / "2026-01-02-abc-here" / "quick.json"
    path.parent.mkdir()
    path.write_text(json.dumps({"ratios": {"a": 0.8, "gone": 2.0}}))
    text = quick.compare({"a": 0.9, "new": 1.0}, quick.read_ratios(path), path)
    assert "| a | 0.90 | 0.80 | +12 % |" in text
    assert "2026-01-02-abc-here" in text
    assert "gone" not in text
    assert "new" not in text


@pytest.mark.parametrize("content", ["", "[]", '{"ratios": 3}', '{"ratios": {"a": "x"}}'])
def test_file_of_another_kind_is_refused_in_words(tmp_path, content):
    path = tmp_path / "quick.json"
    path.write_text(content)
    with pytest.raises(PeerError, match=r"not a quick\.json"):
        quick.read_ratios(path)


def test_missing_earlier_run_ends_in_one_line(capsys):
    assert quick.main(["--against", str(Path("/nowhere/quick.json"))]) == 1
    assert "quick: /nowhere/quick.json: not a quick.json" in capsys.readouterr().err
