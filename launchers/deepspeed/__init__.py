"""@deepspeed: DeepSpeed's launcher over the nodes of a gang."""
