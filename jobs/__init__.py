"""What is submitted to a cluster: thin entry modules, recipes, benchmarks. Runs from the repository or from Ray's
working_dir."""
