"""`metaflow-gang doctor`: what each launcher, and Metaflow's configuration for gangs, needs and has on this machine."""
