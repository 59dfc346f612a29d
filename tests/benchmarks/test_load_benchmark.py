"""The load benchmark: what it asks perf_analyzer for, and what it makes of the answer."""

import pytest

from benchmarks import load, perf_analyzer
from benchmarks.perf_analyzer import (
    Load,
    Measured,
    PerfAnalyzer,
    QueueFull,
    SharedMemoryRefused,
    Spent,
)
from benchmarks.turns import ratio, to_table
from serving import ServingError


@pytest.fixture(autouse=True)
def clips_elsewhere(tmp_path, monkeypatch):
    """Clips to send are written beside the test's results, not into build/."""
    write = perf_analyzer.write_clips
    monkeypatch.setattr(perf_analyzer, "write_clips", lambda lengths: write(lengths, tmp_path))


def analyzer_at(url, folder, **changes):
    return PerfAnalyzer(url, "127.0.0.1:1", folder, **changes)


def measured(rate=10.0, frames=(16,), **changes):
    spent = {
        "fan_embedder": Spent(
            queue=0.5, compute_input=0.1, compute_infer=30.0, compute_output=0.1, mean_batch=16.0
        )
    }
    return Measured(Load(frames=frames, **changes), rate, {50: 31.0, 95: 40.0, 99: 50.0}, spent)


def test_perf_analyzer_loads_a_real_server_and_says_where_the_time_goes(server, tmp_path):
    analyzer = analyzer_at(server.grpc_url, tmp_path, window_s=0.5)
    found = analyzer.run("mix", Load(frames=(1, 3), concurrency=2))
    assert found.clips_per_s > 0
    assert found.frames_per_s == 2 * found.clips_per_s  # of one and three frames
    assert 0 < found.latency_ms[50] <= found.latency_ms[99]
    assert {"fan", "fan_embedder", "fan_attention"} <= found.spent.keys()
    assert found.spent["fan_embedder"].compute_infer > 0
    assert 1 <= found.spent["fan_embedder"].mean_batch <= 6
    assert (tmp_path / "mix.csv").is_file()


def test_frames_travel_in_shared_memory(server, tmp_path):
    found = analyzer_at(server.grpc_url, tmp_path, window_s=0.5).run(
        "shm", Load(frames=(4,), protocol="shm")
    )
    assert found.clips_per_s > 0


def test_refused_load_is_told_in_the_tools_words(server, tmp_path):
    with pytest.raises(ServingError, match=r"perf_analyzer ended with \d+ at x: .*nope"):
        analyzer_at(server.grpc_url, tmp_path).run("x", Load(model="nope"))


def test_server_without_shared_memory_is_told_from_other_failures(tmp_path, monkeypatch):
    tool = tmp_path / "perf_analyzer"
    tool.write_text("#!/bin/sh\necho Client shared memory is disabled. >&2\nexit 1\n")
    tool.chmod(0o755)
    monkeypatch.setattr(perf_analyzer, "binary", lambda: tool)
    monkeypatch.setattr(PerfAnalyzer, "statistics", lambda self: {})
    with pytest.raises(SharedMemoryRefused):
        analyzer_at("127.0.0.1:1", tmp_path).run("shm", Load(protocol="shm"))

    def run(name, asked):
        if asked.protocol == "shm":
            raise SharedMemoryRefused
        return measured(protocol=asked.protocol)

    assert "--allow-client-shm=true" in "\n".join(load.over_protocols(run))


def test_tool_that_writes_nothing_is_not_read_from_an_earlier_run(tmp_path, monkeypatch):
    (tmp_path / "again.csv").write_text("Inferences/Second,p50 latency\n1,2\n")
    monkeypatch.setattr(perf_analyzer, "binary", lambda: "true")
    monkeypatch.setattr(PerfAnalyzer, "statistics", lambda self: {})
    with pytest.raises(ServingError, match="perf_analyzer ended with 0 at again"):
        analyzer_at("127.0.0.1:1", tmp_path).run("again", Load())


def test_open_loop_arrives_at_random_and_closed_loop_keeps_clips_in_flight(tmp_path):
    analyzer = analyzer_at("127.0.0.1:1", tmp_path)
    opened = analyzer.command(Load(concurrency=None, rate=12.5), tmp_path / "a.csv")
    closed = analyzer.command(Load(concurrency=4), tmp_path / "a.csv")
    assert opened[opened.index("--request-rate-range") + 1] == "12.50"
    assert opened[opened.index("--request-distribution") + 1] == "poisson"
    assert closed[closed.index("--concurrency-range") + 1] == "4"
    assert "--async" in opened
    assert not {"--request-rate-range", "--async"} & set(closed)


def test_server_whose_queue_is_full_ends_the_arrivals_and_is_told():
    def run(name, asked):
        if asked.rate > 8:
            raise QueueFull
        return measured(rate=asked.rate)

    reached, told = load.over_arrivals(run, 10.0)
    assert len(reached) == 4
    assert told[0].startswith("At 9.0 arriving/s the queue was full")


def test_served_is_held_against_the_same_graph_in_process(repository, monkeypatch):
    monkeypatch.setattr(load, "ROUNDS", 2)
    monkeypatch.setattr(load, "IN_PROCESS_S", 0.01)
    asked = []

    def run(name, load):
        asked.append((name, load.protocol))
        return measured()

    graph = repository / "fan_embedder" / "1" / "model.onnx"
    _, table = load.beside_in_process(run, graph)
    assert [protocol for _, protocol in asked] == ["grpc", "shm"] * 2
    assert len({name for name, _ in asked}) == 4  # each has a CSV of its own
    assert "| ONNX Runtime in process |" in table
    assert "| `fan`, gRPC | 160.0 |" in table


def test_what_a_model_counted_before_is_not_counted_again():
    before = {"requests": 10, "frames": 100, "runs": 10, "queue": 5e6, "compute_input": 0}
    before |= {"compute_infer": 1e9, "compute_output": 0}
    after = {"requests": 14, "frames": 164, "runs": 12, "queue": 9e6, "compute_input": 4e6}
    after |= {"compute_infer": 1.2e9, "compute_output": 8e6}
    assert perf_analyzer.counted(before, after)
    assert not perf_analyzer.counted(after, after)
    assert perf_analyzer.spent_between(before, after) == Spent(
        queue=1.0, compute_input=1.0, compute_infer=50.0, compute_output=2.0, mean_batch=32.0
    )


def test_tables_say_frames_clips_latency_and_batch():
    text = load.table([measured(), measured(frames=(3, 5))], "frames", load.describe_frames)
    assert "| 16, 2 in flight | 160.0 | 10.0 | 31.0 | 40.0 | 50.0 | 16.0 |" in text
    assert "| 3 to 5, 2 in flight | 40.0 | 10.0 |" in text
    assert "10 % apart" in load.noise([measured(10.0), measured(11.0), measured(10.0)])


def test_ratios_are_taken_round_by_round():
    # Both halve in the second round: a noisy machine, and no change of the ratio.
    rates = {"one": [10.0, 5.0], "two": [20.0, 10.0]}
    assert ratio(rates, "two", "one") == (2.0, 2.0, 2.0)
    assert "| two | 15.0 | 12.5 to 17.5 | 2.00 | 2.00 to 2.00 |" in to_table(rates, "one")


def test_missing_tool_ends_in_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(perf_analyzer, "FOLDER", tmp_path)
    assert load.main(["--url", "127.0.0.1:1", "--out", str(tmp_path)]) == 1
    assert capsys.readouterr().err.count("bench: ") == 1


def test_server_that_is_not_there_ends_in_one_line(tmp_path, capsys):
    assert load.main(["--url", "127.0.0.1:1", "--out", str(tmp_path)]) == 1
    assert "bench: the server at 127.0.0.1:1 does not say" in capsys.readouterr().err
