"""The commands on model files: settings of each, and the work, without the command line."""
