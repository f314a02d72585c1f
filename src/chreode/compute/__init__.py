"""How a machine is used: random streams, processes, devices, threads, progress."""
