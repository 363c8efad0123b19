from __future__ import annotations

from flare_app.roster import Roster


def test_all_are_present_until_one_gives_no_answer_and_again_when_it_does() -> None:
    roster = Roster(["c", "a", "b"], max_offences=2)
    assert roster.present == ["a", "b", "c"]
    roster.lose("b", "silent")
    assert roster.present == ["a", "c"]
    assert roster.absent == roster.left_out == {"b": "silent"}
    roster.admit("b")
    assert roster.present == ["a", "b", "c"]
    assert roster.left_out == {}


def test_offences_exclude_for_good() -> None:
    roster = Roster(["a", "b"], max_offences=2)
    roster.offend("a")
    assert roster.present == ["a", "b"]
    roster.offend("a")
    roster.admit("a")
    assert roster.present == ["b"]
    assert roster.excluded == {"a": "excluded after 2 rejected updates"}
    roster.lose("a", "silent")
    assert roster.absent == {}
    assert roster.left_out == roster.excluded


def test_offences_of_an_earlier_part_of_the_job_count() -> None:
    roster = Roster(["a", "b"], max_offences=3, offences={"a": 2, "gone": 5})
    roster.offend("a")
    assert roster.present == ["b"]
    assert roster.offences == {"a": 3, "gone": 5}


def test_the_more_often_a_site_is_silent_the_later_it_is_due() -> None:
    roster = Roster(["a", "b"], max_offences=2, silences={"b": 1})
    assert roster.miss("b", "silent") == 2
    assert [roster.due(), roster.due(), roster.due()] == [[], ["b"], ["b"]]
    roster.lose("b", "of another version")
    assert roster.due() == ["b"]
    roster.admit("b")
    assert roster.miss("b", "silent") == 4
    assert [roster.due() for _ in range(4)] == [[], [], [], ["b"]]
    roster.admit("b")
    roster.contributed(["a", "b"])
    assert roster.silences == {}
    assert roster.miss("b", "silent") == 1
    assert roster.due() == ["b"]
