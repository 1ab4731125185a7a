"""Everything a person starts: the command line, the demos, the measurements."""
