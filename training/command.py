"""Train a network on labelled faces: FAN's frame embedder on stills, then FAN on clips.

    DATA  ->  OUT/stills/embedder.pth.tar  ->  OUT/fan.safetensors
    DATA  ->  OUT/<model>.safetensors          the others: on stills alone

A run that was killed goes on from its last saved state when it is started again with the same
options.
"""

from dataclasses import replace
from pathlib import Path

from base.command import make_parser
from networks.checkpoint import read_checkpoint, write_checkpoint
from networks.entries import NETWORKS
from networks.prior import with_prior
from training.data import read_dataset
from training.loop import choose_device
from training.options import add_training, phases, read_options, read_training, run_command
from training.run import train, train_network


def main(argv: list[str] | None = None) -> int:
    parser = make_parser("train", __doc__)
    parser.add_argument(
        "--validation", type=Path, help="faces to measure on as it goes; nothing learns from them"
    )
    parser.add_argument(
        "--model",
        default="fan",
        choices=[name for name, network in NETWORKS.items() if network.trainer],
        help="network to train (default: %(default)s)",
    )
    parser.add_argument(
        "--teachers",
        type=Path,
        nargs="+",
        default=[],
        help="checkpoints of ours: stage one learns what they answer beside the labels",
    )
    add_training(parser, "build/training", "fer2013", None, 1.0)
    args = parser.parse_args(argv)
    if args.phases is None:
        args.phases = phases(NETWORKS[args.model].recipe.phases)

    def command() -> None:
        device = choose_device(args.device)
        # They teach how common each emotion is, too: balance keeps it apart again.
        teachers = tuple(with_prior(read_checkpoint(path)) for path in args.teachers)
        options = replace(read_options(args), teachers=teachers)
        if options.others is not None:
            options = replace(options, others=options.others.to(device))
        data = read_training(args).to(device)
        validation = None
        if args.validation:
            validation = read_dataset(args.validation, args.labels, "PublicTest").to(device)
        if NETWORKS[args.model].trainer == "clips":
            checkpoint = train(data, validation, options)
        else:
            checkpoint = train_network(args.model, data, validation, options)
        path = args.out / f"{args.model}.safetensors"
        write_checkpoint(checkpoint, path)
        print(checkpoint.notes.get("measured", "not measured: no --validation"))
        print(f"{path}: `videofer evaluate <faces> --checkpoint {path}` measures it further,")
        print(f"`videofer export --checkpoint {path}`, then `videofer serve`, serves it.")
        print(f"How it went: {args.out}/*/log.csv")

    return run_command(
        "train",
        command,
        "stopped; the same command goes on, and does at most some two minutes' work again",
    )
