"""The command line: one file per command, imported only when that command is called.

``main`` is the console script. The summaries below are all that ``edgekit --help`` needs, which is
why it starts fast; a test holds them against the commands' own docstrings.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

COMMANDS: dict[str, str] = {
    "init": "Write a commented edgekit.toml that runs.",
    "doctor": "Say which runtimes and exporters work here, and what to install.",
    "check": "Say which operators of a model each runtime takes, before anything is exported.",
    "quantize": "Make float and INT8 artifacts of a model for several runtimes, in one bundle.",
    "inspect": "Open a bundle or a model file and say what it really contains.",
    "debug": "Show which layers the error of INT8 comes from, and what cures it.",
    "deploy": "Push a bundle to a device, measure it there, choose and activate the best.",
    "probe": "Push a bundle to a device and measure it there, without activating anything.",
    "select": "Choose again from recorded measurements, within another budget.",
    "run": "Quantize and deploy in one go; what did not change is not done again.",
    "status": "Show what is active on a device.",
    "rollback": "Return to the release that was active before.",
    "targets": "List, add, show, trust and remove the devices to deploy to.",
    "virtual": "Start, stop and list emulated devices, for want of a board.",
    "runtimes": "List and fetch what devices need to run models, for a bench without internet.",
    "gc": "Remove what no active or previous release on a device needs.",
    "results": "List the recorded measurements.",
    "report": "Write the HTML report of a run.",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    # `edgekit -v quantize` means `edgekit quantize -v`.
    leading = []
    while arguments and arguments[0] in ("--json", "-v", "-vv", "--verbose", "-q", "--quiet"):
        leading.append(arguments.pop(0))
    if not arguments or arguments[0] in ("-h", "--help"):
        sys.stdout.write(help_text())
        return 0 if arguments else 2
    if arguments[0] == "--version":
        from edgekit import __version__

        sys.stdout.write(f"edgekit {__version__}\n")
        return 0
    name, *rest = arguments
    try:
        from edgekit.cli import guard

        return guard.run(name, [*leading, *rest], last=argv is None)
    except KeyboardInterrupt:  # before the guard stood, or while it fell
        return 130


def help_text() -> str:
    """What ``edgekit --help`` prints."""
    width = max(map(len, COMMANDS)) + 2
    lines = [f"  {name:<{width}}{summary}" for name, summary in COMMANDS.items()]
    return "\n".join(
        [
            "Usage: edgekit COMMAND [OPTIONS] [ARGUMENTS]",
            "",
            "  One PyTorch model in; INT8 artifacts for four runtimes out, run, measured and",
            "  checked on the device; the fastest one that keeps its accuracy is activated.",
            "",
            "Commands:",
            *lines,
            "",
            "Options:",
            "  --version   Show the version.",
            "  -h, --help  Show this text; `edgekit COMMAND --help` shows a command's options.",
            "",
        ]
    )
