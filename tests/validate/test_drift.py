"""Statistics of drift that need no model."""

from __future__ import annotations

import numpy as np
from smelt.validate.drift import KLD_EDGES, kld_histogram


def test_the_histogram_counts_every_token_once_an_edge_in_the_bin_above_it() -> None:
    values = np.array([0.0, 9e-8, 1e-7, 1.7e-7, 1.8e-7, 0.5, 99.9, 100.0, 1e9])
    found = kld_histogram(values)
    assert found.edges == KLD_EDGES
    assert (found.edges[0], found.edges[-1], len(found.edges)) == (1e-7, 100.0, 37)
    assert sum(found.counts) == len(values)
    assert found.counts[:3] == (2, 2, 1)
    assert found.counts[-2:] == (1, 2)


def test_the_bins_are_a_quarter_of_a_decade_wide() -> None:
    widths = np.diff(np.log10(KLD_EDGES))
    assert abs(widths - 0.25).max() < 0.01
