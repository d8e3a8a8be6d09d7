"""A fork server: a process that has imported what agents need, and of which their processes are forked in no time."""
