"""The launchers: each one a thin decorator and the pure plan of its command. None imports another."""

from .. import core as core  # says so where there is no Metaflow, before anything else of it is missed
