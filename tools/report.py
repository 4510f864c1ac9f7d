"""Write one page about a run, finished or not: python tools/report.py runs/x"""

from dataclasses import dataclass
from typing import Annotated

import tyro

from supernet.checked import Checked, FilePath
from supernet.paths import check_file, check_new_file
from supernet_tools.pipeline.command_line import closing, main, parse
from supernet_tools.pipeline.located import NOT_MOVED, MovedData
from supernet_tools.pipeline.trust import Trust


@dataclass(frozen=True)
class Report(Checked):
    """Write report.html: data, training, searches, race, trust, exports, predictions, commands.

    The page needs no network and no other file. A run that goes on gives a partial page that says what is missing.
    """

    run: Annotated[FilePath, tyro.conf.Positional]
    """Folder of the run."""
    out: FilePath | None = None
    """File to write, whose name ends in .html; report.html in the run by default."""
    data: MovedData = NOT_MOVED
    """Where the images of the run are now, if they were moved."""
    trust: Trust = ()
    """Code from outside this project that the run's files name and that may run, as package.module:function."""


def run() -> None:
    args = parse(Report, __doc__)
    if args.out is not None:
        check_new_file(args.out, flag="out", suffix=".html")

    from supernet_tools.pipeline.report import PAGE, report_stage

    if args.out is None:
        check_file(args.run / PAGE, "the page")

    closing([report_stage(args.run, args.out, moved=args.data)])


if __name__ == "__main__":
    main(run)
