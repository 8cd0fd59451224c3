"""The virtual twin: a whole service (pods, queues, rolls, metrics pages) in virtual time, run by the operator's own
decisions and by the baselines that it is held against."""
