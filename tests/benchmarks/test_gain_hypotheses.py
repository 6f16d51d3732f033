"""What could make the paper's gain is told from the rows, whichever are there, finished or not."""

import pytest

from benchmarks.federated import (
    gain_hypotheses,
    on_the_way,
    paired_claims,
    table2_cross_silo,
    what_makes_the_gain,
)
from benchmarks.federated.experiment import Args
from benchmarks.federated.first_record import Args as FirstArgs
from benchmarks.federated.first_record import found as first_record
from benchmarks.federated.paired_claims import FULL, STANDARD
from benchmarks.record.ledger import Ledger
from tests.benchmarks.planting import planted_row

PAPER = Args(preset="paper")


@pytest.fixture
def ledger(tmp_path):
    """Full-size FedAvg on two seeds, as on record."""
    ledger = Ledger(tmp_path / "federated.jsonl")
    for seed, accuracy in ((0, 0.6803), (1, 0.6567)):
        ledger.write(planted_row(PAPER.cell(), accuracy, seed=seed))
    return ledger


def line(text, *parts):
    """The only line of a table that holds all of these."""
    (found,) = (row for row in text.splitlines() if all(part in row for part in parts))
    return [cell.strip() for cell in found.strip("|").split("|")]


def test_hes_initialisation_at_full_size_is_told_as_far_as_it_got(ledger):
    assert gain_hypotheses.he_claim(FULL, ledger) is None
    he = PAPER.cell(init="he")
    ledger.write(planted_row(he, 0.70, seed=0, rounds=600))
    claim = gain_hypotheses.he_claim(FULL, ledger)
    at_600 = 100 * dict(p[:2] for p in planted_row(PAPER.cell(), 0.6803)["curve"])[600]
    told = f"FedAvg, 70.00 against {at_600:.2f} %, seed 0 (plain seed 1: 65.67 %), full size"
    assert claim.run == told
    assert claim.ours == f"{70 - at_600:+.2f} (1 seed), 600 of 1,500 rounds"
    assert (claim.paper, claim.verdict) == ("+3.97", "undecided: 600 of 1,500 rounds")
    told = line(gain_hypotheses.table(ledger), "FedAvg, He init", "without WSA")
    assert told[2:] == [claim.ours, "not run yet", f"full size: {claim.verdict}"]
    # The sections with the accuracies take it as well.
    args = FirstArgs(results=ledger.path, rounds=1500)
    assert line(first_record(args).text, "FedAvg, He init")[2:4] == ["600 (unfinished)", "70.00"]
    way = on_the_way.found(on_the_way.Args(preset="paper", results=ledger.path))
    assert f"{70 - at_600:+.2f}" in line(way.text, "gain of it, seed 0")


def test_hes_scope_as_the_target_stands_beside_his_initialisation_on_the_way(ledger):
    ledger.write(planted_row(PAPER.cell(strength=10.0, target="he"), 0.69, seed=0))
    way = on_the_way.found(on_the_way.Args(preset="paper", results=ledger.path))
    assert line(way.text, "FedAvg +WSA 10, He's scope, seed 0")[-1] == "69.00"
    assert line(way.text, "gain of it, seed 0")[-1] == "+0.97"


def test_finished_seeds_give_an_interval_and_both_sizes_stand_side_by_side(ledger):
    small = Args(preset="cpu")
    for seed in range(3):
        for args, accuracy in ((PAPER, 0.6567), (small, 0.49)):
            ledger.write(planted_row(args.cell(), accuracy, seed=seed))
            ledger.write(planted_row(args.cell(init="he"), accuracy + 0.04, seed=seed))
    told = line(gain_hypotheses.table(ledger), "FedAvg, He init", "without WSA")
    number = "+4.00 ± 0.00 (3 seeds), 1,500 rounds"
    assert told[2:] == [number, number, "full size: confirmed; standard problem: confirmed"]
    for size in (FULL, STANDARD):
        claim = gain_hypotheses.he_claim(size, ledger)
        assert (claim.verdict, claim.run[-len(size.name) :]) == ("confirmed", size.name)
    assert "seeds 0, 1, 2" in claim.run


def test_every_hypothesis_has_a_line_and_what_was_run_stands_first(ledger):
    ledger.write(planted_row(PAPER.cell(differ="steps"), 0.66, seed=0))
    ledger.write(planted_row(PAPER.cell(differ="steps", strength=10.0), 0.65, seed=0))
    rows = gain_hypotheses.table(ledger).splitlines()[2:-2]
    assert len(rows) == len(gain_hypotheses.hypotheses(PAPER))
    assert len(set(rows)) == len(rows)
    assert "different numbers of steps" in rows[0]
    assert all("not run yet |" in row[-14:] for row in rows[1:])


def test_further_seeds_of_the_pair_give_intervals_without_an_edit(ledger, monkeypatch):
    monkeypatch.setattr(paired_claims, "RESULTS", ledger.path.parent)
    for seed, gain in enumerate((-0.4, -0.2, -0.3)):
        for args in (PAPER, Args(preset="cpu")):
            ledger.write(planted_row(args.cell(), 0.65, seed=seed))
            ledger.write(planted_row(args.cell(strength=10.0), 0.65 + gain / 100, seed=seed))
    full, standard = table2_cross_silo.claims()
    for claim in (full, standard):
        assert (claim.ours, claim.verdict) == ("-0.30 ± 0.25 (3 seeds)", "the reverse")


def test_a_gain_of_the_last_evaluation_alone_is_called_that(ledger, monkeypatch):
    monkeypatch.setattr(paired_claims, "RESULTS", ledger.path.parent)
    small = Args(preset="cpu")
    for seed, gain in enumerate((0.04, 0.02, 0.03)):
        plain = planted_row(small.cell(), 0.5, seed=seed)
        treated = planted_row(small.cell(strength=10.0), 0.5, seed=seed)
        for point in treated["curve"]:
            point[1] -= 0.001
        treated["curve"][-1][1] = treated["accuracy"] = 0.5 + gain / 100
        ledger.write(plain)
        ledger.write(treated)
    (claim,) = (claim for claim in table2_cross_silo.claims() if "standard" in claim.run)
    assert claim.verdict == "gain, last round alone"
    assert claim.ours == ("+0.03 ± 0.02 (3 seeds); last three evaluations -0.06 ± 0.01 (3 seeds)")
    told = line(gain_hypotheses.table(ledger), "the paper's line", "FedAvg +WSA")
    assert told[-1] == "standard problem: gain, last round alone"


def test_settings_with_several_seeds_are_claims_of_their_own(ledger, monkeypatch):
    monkeypatch.setattr(paired_claims, "RESULTS", ledger.path.parent)
    (none,) = what_makes_the_gain.claims()
    assert none.verdict == "not run yet"
    small = Args(preset="cpu")
    for seed, gain in enumerate((4.1, 3.9, 4.0)):
        ledger.write(planted_row(small.cell(), 0.49, seed=seed))
        treated = small.cell(strength=10.0, target="he")
        ledger.write(planted_row(treated, 0.49 + gain / 100, seed=seed))
    for extra, accuracy in (({"fusion": "pooled"}, 0.48), ({"fusion": "sum"}, 0.50)):
        ledger.write(planted_row(small.cell(strength=10.0, **extra), accuracy, seed=0))
    several, one = what_makes_the_gain.claims()
    assert (several.ours, several.verdict) == ("+4.00 ± 0.25 (3 seeds)", "confirmed")
    assert "FedAvg +WSA 10, He's scope" in several.run
    assert (one.ours, one.verdict) == ("-1.00 to +1.00 (1 seed each)", "undecided: one seed")
