"""The documentation: every command on its pages is run, and what is generated is held against its source."""
