"""Several units with one queue of work: launched as the plan says, ended as soon as nothing is left for them."""
