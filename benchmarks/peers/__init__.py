"""What teams build today to serve a function as a job: the peers of the benchmark, as their manuals show them."""
