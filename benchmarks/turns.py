"""Ways to do one job, measured in turns: a noisy machine is noisy to all of them.

    {name: way}  ->  frames a second of each, round by round  ->  a table of medians and ratios

A ratio is taken within each round and its quartiles are given beside it: that is what two machines,
or two runs, may be compared by.
"""

import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence

from tqdm import tqdm

# Does its job once and says how many frames that were.
Way = Callable[[], int]
Rates = dict[str, list[float]]

REST_S = 0.5  # threads of the way before spin on for a while, on the cores of the next


def take_turns(ways: Mapping[str, Way], rounds: int) -> Rates:
    """Run every way once a round, warmed up.

    Returns:
        each way's frames a second, round by round.
    """
    rates: Rates = {name: [] for name in ways}
    for way in ways.values():
        way()  # the first run allocates
    for _ in tqdm(range(rounds), unit="round", disable=not sys.stderr.isatty()):
        for name, way in ways.items():
            time.sleep(REST_S)
            way()  # caches and clocks as in a run of many
            start = time.perf_counter()
            num_frames = way()
            rates[name].append(num_frames / (time.perf_counter() - start))
    return rates


def ratio(rates: Rates, name: str, base: str) -> tuple[float, float, float]:
    """Compare two ways round by round: lower quartile, median and upper quartile of the ratios."""
    ratios = [one / other for one, other in zip(rates[name], rates[base], strict=True)]
    return quartiles(ratios)


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """Give lower quartile, median and upper quartile of two values or more."""
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, median, high


def to_table(rates: Rates, base: str) -> str:
    """Write Markdown: each way's frames a second, and its ratio to one of them."""
    rows = [
        f"| way | frames/s | quartiles | ratio to {base} | quartiles |",
        "|---|---|---|---|---|",
    ]
    for name, values in rates.items():
        low, median, high = quartiles(values)
        least, middle, most = ratio(rates, name, base)
        rows.append(
            f"| {name} | {median:.1f} | {low:.1f} to {high:.1f} "
            f"| {middle:.2f} | {least:.2f} to {most:.2f} |"
        )
    return "\n".join(rows)
