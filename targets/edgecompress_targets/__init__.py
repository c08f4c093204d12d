"""Hardware targets as data: one TOML file per target, named after it; each figure has its source."""
