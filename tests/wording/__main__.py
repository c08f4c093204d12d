"""``python -m tests.wording``: write the snapshots anew, and say how much of the source they cover."""

from __future__ import annotations

from tests.wording import helps, provoked, templates
from tests.wording.snapshots import SNAPSHOTS, write


def main() -> None:
    outcomes = provoked.provoke()
    write({**helps.texts(), "errors.txt": provoked.text(outcomes), "templates.txt": templates.text()})
    errors = [site for site in templates.sites() if site.is_error]
    met = provoked.provoked_sites(outcomes)
    print(f"{len(outcomes)} command lines meet {len(met)} of {len(errors)} errors in the source")
    print(f"wrote {SNAPSHOTS}")


if __name__ == "__main__":
    main()
