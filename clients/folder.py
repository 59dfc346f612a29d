"""Many sources at once: every video below some folders, a few at a time, into a results folder.

    folders, files  ->  find  ->  Job, ...  ->  run  ->  OUT/<video>.json, <video>.csv, ...
                                                         OUT/summary.csv, failed.csv

A video's JSON is written last and whole: what has one, of the same file and options, is done. The
same command after a kill does the rest.
"""

import csv
import io
import json
import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from base.errors import FerError
from base.files import write_whole
from base.text import clean
from clients.analyse import analyse
from clients.analysis import Options
from clients.errors import ResultsDiffer, ServerUnavailable, VideoUnreadable
from clients.faces import DetectorPool
from clients.reports.tables import to_dict, write_csv
from clients.triton import TritonClient

logger = logging.getLogger(__name__)

# What a folder is searched for: videos, moving pictures and photographs.
VIDEOS = {
    *(".3g2", ".3gp", ".amv", ".asf", ".avi", ".dv", ".f4v", ".flv", ".h264", ".h265", ".hevc"),
    *(".m2ts", ".m2v", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".mxf", ".ogm"),
    *(".ogv", ".rm", ".rmvb", ".ts", ".vob", ".webm", ".wmv", ".y4m"),
    *(".apng", ".avif", ".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"),
}
RUN = "run.json"  # whose results a folder holds
AT_ONCE = 2  # videos: one is decoded while another one waits for the server


@dataclass(frozen=True, kw_only=True)
class Shard:
    """Every so manieth video, so that several machines share the work.

    Args:
        index: from 0 or from 1: the last is 0 as well as `count`.
        count: of shards.
    """

    index: int = 0
    count: int = 1

    @property
    def name(self) -> str:
        """What the names of its tables end in: nothing where there is one shard alone."""
        return f".{self.index}-of-{self.count}" if self.count > 1 else ""


@dataclass(frozen=True, kw_only=True)
class Job:
    """A video and where its results go.

    Args:
        path: of the video.
        name: by which it is listed: its path below the folder that was named.
    """

    path: Path
    name: str

    def result(self, out: Path) -> Path:
        """Name its JSON; the tables lie beside it."""
        return out / f"{self.name}.json"


def find(sources: Sequence[Path]) -> list[Job]:
    """List the videos and pictures among some files and below some folders, by name.

    Raises:
        VideoUnreadable: where there is none, or two would write to one file.
    """
    jobs: dict[str, Job] = {}
    for source in sources:
        if not source.exists():
            raise VideoUnreadable(f"{clean(str(source))}: no such file or folder")
        for path in walk(source):
            name = str(path.relative_to(source)) if source.is_dir() else path.name
            if name in jobs:
                raise VideoUnreadable(
                    f"{jobs[name].path} and {path} would both write to {name}.json; expected names "
                    "that differ: give each folder an --out of its own"
                )
            jobs[name] = Job(path=path, name=name)
    if not jobs:
        where = ", ".join(map(str, sources))
        raise VideoUnreadable(f"{where}: no video or picture in it, nor in the folders below")
    return [jobs[name] for name in sorted(jobs)]


def walk(source: Path) -> Iterator[Path]:
    """List a file, or all videos below a folder but for hidden ones."""
    if not source.is_dir():
        yield source
        return
    for path in source.rglob("*"):
        hidden = any(part.startswith(".") for part in path.relative_to(source).parts)
        if not hidden and path.suffix.lower() in VIDEOS and path.is_file():
            yield path


def run(
    sources: Sequence[Path],
    out: Path,
    client: TritonClient,
    options: Options,
    *,
    shard: Shard = Shard(),
    progress: bool = False,
) -> int:
    """Analyse every video that has no result yet, and write the tables of all.

    Returns:
        how many failed; failed.csv says why.

    Raises:
        FerError: where nothing can go on: no server, another run's folder, a full disk.
    """
    jobs = find(sources)
    mine = [job for i, job in enumerate(jobs) if i % shard.count == shard.index % shard.count]
    claim(out, sources)
    asked = {"options": asdict(options), "model": client.model, "labels": client.contract.labels}
    asked = json.loads(json.dumps(asked))
    open_jobs = [job for job in mine if not is_done(job, out, asked)]
    failed: dict[str, str] = {}
    done = len(mine) - len(open_jobs)
    with tqdm(total=len(mine), initial=done, unit="video", disable=not progress) as bar:
        for job, error in work(open_jobs, out, client, options, asked):
            if error:
                failed[job.name] = error
                logger.info("%s failed: %s", job.name, error)
            bar.update()
    write_tables(mine, failed, out, shard)
    return len(failed)


def claim(out: Path, sources: Sequence[Path]) -> None:
    """Make the results folder this run's, or see that it is.

    Raises:
        ResultsDiffer: where it holds something else.
    """
    said = {"schema": 1, "sources": [str(source.resolve()) for source in sources]}
    record = out / RUN
    try:
        found = json.loads(record.read_text())
    except FileNotFoundError:
        # Hidden: what another shard is about to write.
        if out.is_dir() and any(not p.name.startswith(".") for p in out.iterdir()):
            raise ResultsDiffer(
                f"--out {out} holds files, but no results of videofer; expected a new or an empty "
                "folder, or that of an earlier run"
            ) from None
        write_whole(record, json.dumps(said).encode())
        return
    except (ValueError, OSError) as error:
        raise ResultsDiffer(f"{record} cannot be read ({error}); give another --out") from error
    if found != said:
        raise ResultsDiffer(
            f"--out {out} holds results of {clean(str(found.get('sources')))}; expected those of "
            f"{said['sources']}: give another --out"
        )


def identity(job: Job) -> dict[str, Any]:
    """Say which file a result is of."""
    status = job.path.stat()
    return {"bytes": status.st_size, "modified_ns": status.st_mtime_ns}


def is_done(job: Job, out: Path, asked: dict[str, Any]) -> bool:
    """Tell whether a video has a result, of the file as it is and of what is asked."""
    try:
        made = json.loads(job.result(out).read_text())["made_of"]
        return made == {"file": identity(job), "asked": asked}
    except (OSError, ValueError, KeyError, TypeError):
        return False


def work(
    jobs: Sequence[Job],
    out: Path,
    client: TritonClient,
    options: Options,
    asked: dict[str, Any],
) -> Iterator[tuple[Job, str]]:
    """Do the jobs, AT_ONCE at a time; give each as it ends, with what went wrong, or nothing."""
    upcoming = iter(jobs)
    with DetectorPool() as detectors, ThreadPoolExecutor(AT_ONCE) as workers:

        def do(job: Job) -> None:
            made_of = {"file": identity(job), "asked": asked}
            job.result(out).unlink(missing_ok=True)  # of another file, or other options
            result = analyse(job.path, client, options, detectors=detectors)
            content = {**to_dict(result), "made_of": made_of}
            del content["created"]  # a run that was stopped leaves the files of one that was not
            path = job.result(out)
            path.parent.mkdir(parents=True, exist_ok=True)
            write_csv(result, path.with_suffix(".csv"))
            write_whole(path, json.dumps(content, ensure_ascii=False).encode())

        running: dict[Future[None], Job] = {}
        try:
            while True:
                while len(running) < AT_ONCE and (job := next(upcoming, None)):
                    running[workers.submit(do, job)] = job
                if not running:
                    return
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    yield running.pop(future), outcome(future)
        except BaseException:
            client.close()  # ends the others at their next request: nobody waits for them
            raise


def outcome(future: "Future[None]") -> str:
    """Say what went wrong with a video, if anything.

    Raises:
        FerError: for what would befall the next one, too.
    """
    try:
        future.result()
        return ""
    except ServerUnavailable:
        raise
    except (FerError, OSError) as error:
        return clean(str(error))


def write_tables(jobs: Sequence[Job], failed: dict[str, str], out: Path, shard: Shard) -> None:
    """Write a row of each track of each result, and a row of each video that has none."""
    rows = [row for job in jobs for row in summary_rows(job, out)]
    columns = list(dict.fromkeys(key for row in rows for key in row))
    errors = [{"video": name, "error": failed[name]} for name in sorted(failed)]
    write_whole(out / f"summary{shard.name}.csv", table(columns or ["video"], rows))
    write_whole(out / f"failed{shard.name}.csv", table(["video", "error"], errors))


def summary_rows(job: Job, out: Path) -> Iterator[dict[str, Any]]:
    """Give a row for each track of a result, if there is one."""
    try:
        result = json.loads(job.result(out).read_text())
    except FileNotFoundError:
        return
    for track in result["tracks"]:
        yield {
            "video": job.name,
            "track": track["track"],
            "start_s": track["start_s"],
            "end_s": track["end_s"],
            "coverage": track["coverage"],
            "emotion": track["emotion"],
            **track["probabilities"],
        }


def table(columns: Sequence[str], rows: Sequence[dict[str, Any]]) -> bytes:
    """Write rows as CSV."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()
