"""Hardware targets as data: one TOML file a target, the stem is its name, every figure with its source."""
