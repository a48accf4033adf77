"""``horovod_run``: Horovod over gloo on the nodes of a gang, without mpirun."""
