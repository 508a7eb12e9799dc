"""A site is parsed, printed and sorted, and nothing that is no site can be made."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mechdiff.architectures.sites import KINDS, Site
from mechdiff.errors import StudyError

SITES = st.builds(Site, st.integers(0, 200), st.sampled_from(KINDS))


@given(SITES)
def test_what_is_printed_is_parsed_back(site):
    assert Site.parse(str(site)) == site


def test_a_site_reads_as_layer_and_kind():
    site = Site.parse("L24.resid_post")
    assert (site.layer, site.kind) == (24, "resid_post")
    assert str(site) == "L24.resid_post"


@given(st.lists(SITES, max_size=30))
def test_sites_sort_in_the_order_of_computation(sites):
    assert sorted(sites) == sorted(sites, key=lambda site: (site.layer, KINDS.index(site.kind)))


def test_a_block_reads_its_input_before_it_writes_its_output():
    kinds = [site.kind for site in sorted(Site(0, kind) for kind in sorted(KINDS))]
    assert kinds == ["resid_pre", "z", "attn_proj", "attn_out", "resid_mid", "mlp_out", "resid_post"]
    assert Site(0, "resid_post") < Site(1, "resid_pre")
    assert Site(10, "z") > Site(9, "z"), "layers sort as numbers, not as text"


@given(SITES, SITES)
def test_two_sites_compare_in_one_way(first, second):
    assert (first < second) + (first == second) + (first > second) == 1
    assert (first <= second) == (not first > second)


def test_equal_sites_are_one_key():
    assert {Site(3, "z"): "a", Site.parse("L3.z"): "b"} == {Site(3, "z"): "b"}


@pytest.mark.parametrize("text", ["", "resid_post", "L.resid_post", "L-1.resid_post", "L3resid_post", "l3.z", "L3.z ", "L3.z.z", "L3.5.z"])
def test_what_is_no_site_says_how_one_is_written(text):
    with pytest.raises(StudyError, match=r"is not a site.*L<layer>\.<kind>.*resid_mid"):
        Site.parse(text)


@pytest.mark.parametrize(("layer", "kind"), [(0, "resid"), (-1, "z"), (0, "")])
def test_a_site_that_cannot_be_names_the_kinds(layer, kind):
    with pytest.raises(StudyError, match=r"no such site.*resid_pre, z, attn_proj"):
        Site(layer, kind)


def test_an_unknown_kind_in_a_text_names_the_kinds():
    with pytest.raises(StudyError, match=r"no such site: layer 3, kind 'mlp'"):
        Site.parse("L3.mlp")
