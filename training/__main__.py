"""Train FAN on labelled faces: the frame embedder on stills, then all of it on clips.

    DATA  ->  OUT/stills/embedder.pth.tar  ->  OUT/fan.safetensors

A run that was killed goes on from its last saved state when it is started again with the same
options.
"""

import argparse
import sys
from pathlib import Path

from export.checkpoint import write_checkpoint
from training.data import read_dataset
from training.loop import choose_device
from training.options import add_training, read_options, run_command
from training.run import train


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m training",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--validation", type=Path, help="faces to measure on as it goes; nothing learns from them"
    )
    add_training(parser, "build/training", "fer2013", "64x10,96x14,112x6", 1.0)
    args = parser.parse_args(argv)

    def command() -> None:
        device = choose_device(args.device)
        options = read_options(args)
        data = read_dataset(args.data, args.labels).to(device)
        validation = None
        if args.validation:
            validation = read_dataset(args.validation, args.labels, "PublicTest").to(device)
        path = args.out / "fan.safetensors"
        write_checkpoint(train(data, validation, options), path)
        print(f"{path}: `make evaluate CHECKPOINT={path} DATA=...` measures it")

    return run_command(
        "training", command, "stopped; the same command goes on from its last saved state"
    )


if __name__ == "__main__":
    sys.exit(main())
