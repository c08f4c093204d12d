"""``python -m edgecompress``."""

from edgecompress.cli import main

raise SystemExit(main())
