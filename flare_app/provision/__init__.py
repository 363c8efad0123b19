"""From a project file to a federation that runs: startup kits, the processes of one machine, submitted jobs."""
