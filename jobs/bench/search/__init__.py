"""Whether searching pays: PBT, TPE and ASHA against random search and a single run, at equal steps, on a real task."""
