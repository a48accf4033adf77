"""The line by which a rank's wrapper reports that the rank has failed, where the guard did not start the rank.

What starts ranks (mpirun, DeepSpeed's launcher) may name no rank, or the one that it noticed first, or end with a code
of its own. So something small stands between it and each rank, and says on stderr how the rank ended.
"""

from __future__ import annotations

REPORT = (
    r"\[gang\] rank (?P<rank>\d{1,9}) \(node (?P<node>\d{1,9})\) ended with (?P<exit_code>-?\d{1,9})(?!\d)"
    # Open MPI's own words for one that ends with code 0 without having ended MPI, which its wrapper cannot know.
    # Versions 4 and 5 break the line at different places.
    r"|has exited due to process rank (?P<left>\d{1,9}) with PID \d{1,19} on\s{1,80}node \S{1,300} exiting\s{1,80}"
    r"improperly"
)
"""Finds each such line. Which of several counts is said by :func:`core.guard.reports.chosen`."""
