"""What mpirun, and whatever else starts programs over SSH, runs in its place: ``agent.py FILE [OPTION] HOST COMMAND``.

``FILE`` says where the nodes of the gang are and has the key to them (:mod:`core.peers` writes it). The command runs on
the node that is called HOST, in its task's environment and folder, with this program's stdin, and this program exits
with its exit code: 128 and the number of the signal that ended it; 255, with the reason on stderr, where it could not
be run or the connection broke. When this program ends first, the command is ended.

It starts once for each node, and Python compiles a file that it is given each time: all but the start is in
:mod:`caller`.
"""

import os
import sys

if __name__ == "__main__":
    # Its folder becomes the package that this file is a part of.
    package = type(sys)("guard")
    package.__path__ = [os.path.dirname(os.path.abspath(__file__))]
    sys.modules["guard"] = package
    __package__ = "guard"

    from .caller import main

    main(sys.argv[1:])
