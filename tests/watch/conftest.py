"""A fleet that every service of was called, and the Prometheus that scraped it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import pytest

from tests.parts.eventually import eventually
from tests.watch.load import Load
from tests.watch.site import LIMIT, Site


class Loaded(NamedTuple):
    """A site, and who calls it."""

    site: Site
    load: Load


@pytest.fixture(scope="session")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Loaded]:
    """Scraped often enough for rates, with a backup that was tried out; faults are to be mended by who made them."""
    site = Site(tmp_path_factory.mktemp("site"))
    try:
        site.start()
        load = Load(site)
        load.drill(site)
        seen = "count(kronos:namespace:hit_ratio_rate5m) + count(kronos_db_queue_messages)"

        def shown() -> bool:
            load.round()
            return site.prometheus.value(seen) is not None

        eventually(shown, LIMIT, site.prometheus.log)
        yield Loaded(site, load)
    finally:
        site.stop()
