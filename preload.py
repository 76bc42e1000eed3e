"""Automatic1111 and Forge: our command-line flags. Standard library only, before any extension."""


def preload(parser) -> None:
    """Called with the host's argparse parser."""
    parser.add_argument(
        "--promptadapt-models-path",
        default=None,
        metavar="FOLDER",
        help="where Prompt Adapt looks for policies and scorers; models/promptadapt without it",
    )
