"""Two minutes for a pull request: our server against ONNX Runtime in process, now and before.

    videofer bench quick
    videofer bench quick --against benchmarks/results/<run>/quick.json

Prints ratios within this run beside those of an earlier one; frames a second of two runs are not
to be compared. Writes quick.json below build/benchmarks/.
"""

import json
from collections.abc import Mapping
from pathlib import Path

from base.command import make_parser, number, run_command
from base.files import write_whole
from base.provenance import provenance
from benchmarks.peer_servers.processes import PeerError
from benchmarks.peers import IN_PROCESS_FP32, PACKAGES, Bench, start
from benchmarks.results import KEPT, RESULTS, refusals_told, results_folder
from benchmarks.turns import ratio, take_turns, to_table

BASE = "ONNX Runtime, INT8, batches of 16"
WAYS = (
    BASE,
    IN_PROCESS_FP32,
    "Triton, FP32, `fan`",
    "Triton, INT8, `fan`",
    "Triton, INT8, `fan`, shared memory",
    "Triton, INT8 on OpenVINO, `fan`",
)


def newest() -> Path | None:
    """Find the last quick.json that was written or kept, if any."""
    found = [path for folder in (RESULTS, KEPT) for path in folder.glob("*/quick.json")]
    return max(found, key=lambda path: path.parent.name, default=None)  # it begins with the date


def read_ratios(path: Path) -> Mapping[str, float]:
    """Read the ratios of an earlier run.

    Raises:
        PeerError: for a file that is none of ours.
    """
    try:
        return {str(k): float(v) for k, v in json.loads(path.read_text())["ratios"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise PeerError(
            f"{path}: not a quick.json of `videofer bench quick` ({error!r}); --against names one"
        ) from error


def compare(ratios: Mapping[str, float], before: Mapping[str, float], source: Path) -> str:
    """Write Markdown: each way's ratio now and before."""
    rows = [f"| way, to {BASE} | now | {source.parent.name} | change |", "|---|---|---|---|"]
    for name, now in ratios.items():
        if name in before:
            change = 100 * (now / before[name] - 1)
            rows.append(f"| {name} | {now:.2f} | {before[name]:.2f} | {change:+.0f} % |")
    return "\n".join(rows)


def run(rounds: int, against: Path | None, folder: Path) -> str:
    """Measure, keep the ratios, and give the report."""
    before = read_ratios(against) if against else {}
    with Bench() as bench:
        ways, _ = start(bench, WAYS)
        rates = take_turns(ways, rounds)
    ratios = {name: round(ratio(rates, name, BASE)[1], 4) for name in rates}
    origin = provenance(*PACKAGES)
    kept = {"provenance": origin, "rounds": rounds, "base": BASE, "ratios": ratios}
    write_whole(folder / "quick.json", (json.dumps(kept, indent=2) + "\n").encode())
    sections = [f"{origin}; {rounds} rounds", to_table(rates, BASE)]
    if against:
        sections.append(compare(ratios, before, against))
    return "\n\n".join([*sections, str(folder / "quick.json")])


def main(argv: list[str] | None = None) -> int:
    parser = make_parser("bench quick", __doc__)
    parser.add_argument(
        "--rounds", type=number(int, least=2), default=7, help="turns (default: %(default)s)"
    )
    parser.add_argument("--against", type=Path, help="quick.json to compare with (default: newest)")
    parser.add_argument("--host", help="what to call this machine (default: its name)")
    parser.add_argument("--out", type=Path, help="folder to write (default: in build/benchmarks)")
    args = parser.parse_args(argv)

    def command() -> None:
        with refusals_told():
            print(run(args.rounds, args.against or newest(), args.out or results_folder(args.host)))

    return run_command("quick", command)
