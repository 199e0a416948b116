"""What makes machines into a cluster: files and scripts for the people who run them, none needed by the command."""
