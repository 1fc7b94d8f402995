//! The decisions of a rank of a gang, input by input.
#![allow(clippy::unwrap_used)]

use proto::checkpoint::CheckpointRef;
use proto::id::{Generation, Rank, Step};
use proto::message::{GracefulStop, RankPhase};
use rank_core::gang::{Effect, GangRank, Input, Order, Rules};
use rank_core::state::{StateLabel, StateSource};

const RULES: Rules = Rules {
    steps: 6,
    checkpoint_every: 4,
    digest_every: 3,
    validate_every: 0,
};

fn order(generation: u64) -> Order {
    Order {
        generation: Generation(generation),
        rank: Rank(1),
        world: 2,
        standby: false,
        resume: None,
        graceful_stop: None,
        detect_within_ms: 3_000,
    }
}

fn stopping(generation: u64, graceful_stop: GracefulStop) -> Input {
    Input::Ordered(Order {
        graceful_stop: Some(graceful_stop),
        ..order(generation)
    })
}

fn label(generation: u64, step: u64) -> StateLabel {
    StateLabel {
        generation: Generation(generation),
        step: Step(step),
    }
}

fn stepped(step: u64, graceful_stop: bool) -> Input {
    let step = Step(step);
    Input::Stepped {
        step,
        graceful_stop,
    }
}

fn broke() -> Input {
    let error = "connection closed by peer".to_owned();
    Input::Broke { error }
}

fn adopts(order: Order) -> Vec<Effect> {
    let joining = Effect::Phase(RankPhase::Joining);
    vec![Effect::TakeUp(order), joining, Effect::Meet]
}

/// A rank of generation 1 that trains from the base weights.
fn training() -> GangRank {
    let mut rank = GangRank::new(RULES, order(1));
    assert_eq!(rank.handle(Input::Loaded), adopts(order(1)));
    let holdings = vec![None, None];
    let source = StateSource::Base;
    let holds = false;
    assert_eq!(
        rank.handle(Input::Met { holdings }),
        [Effect::Synchronize { source, holds }]
    );
    assert_eq!(
        rank.handle(Input::Synchronized),
        [Effect::Phase(RankPhase::Training), Effect::Step(Step(1))]
    );
    rank
}

#[test]
fn a_rank_trains_to_the_end_and_saves_where_the_job_says() {
    let mut rank = training();
    let mut effects = Vec::new();
    for step in 1..=6 {
        effects.extend(rank.handle(stepped(step, false)));
        let saved = Input::Saved { step: Step(step) };
        assert_eq!(rank.is_saving(), step == 4 || step == 6);
        assert_eq!(rank.handle(saved), []);
    }
    let [digest, save, report, next] = [Effect::Digest, Effect::Save, Effect::Report, Effect::Step];
    let s = Step;
    let expected = [
        vec![report(s(1)), next(s(2))],
        vec![report(s(2)), next(s(3))],
        vec![digest(s(3)), report(s(3)), next(s(4))],
        vec![save(s(4)), report(s(4)), next(s(5))],
        vec![report(s(5)), next(s(6))],
        vec![digest(s(6)), save(s(6)), report(s(6)), Effect::Leave],
    ];
    assert_eq!(effects, expected.concat());
    assert_eq!(
        rank.handle(Input::Left),
        [Effect::Phase(RankPhase::Finished)]
    );
    assert_eq!(rank.held(), Some(label(1, 6)));
}

#[test]
fn a_rank_validates_where_the_job_says_and_never_after_a_newer_order() {
    let rules = Rules {
        validate_every: 2,
        ..RULES
    };
    let mut rank = GangRank::new(rules, order(1));
    rank.handle(Input::Loaded);
    let holdings = vec![None, None];
    rank.handle(Input::Met { holdings });
    rank.handle(Input::Synchronized);
    let [save, validate, report, next] =
        [Effect::Save, Effect::Validate, Effect::Report, Effect::Step];
    let s = Step;
    assert_eq!(rank.handle(stepped(1, false)), [report(s(1)), next(s(2))]);
    assert_eq!(
        rank.handle(stepped(2, false)),
        [validate(s(2)), report(s(2)), next(s(3))]
    );
    rank.handle(stepped(3, false));
    // The checkpoint first: it is kept even if the validation breaks.
    assert_eq!(
        rank.handle(stepped(4, false)),
        [save(s(4)), validate(s(4)), report(s(4)), next(s(5))]
    );
    rank.handle(Input::Saved { step: s(4) });
    rank.handle(stepped(5, false));
    assert_eq!(
        rank.handle(Input::Ordered(order(2))),
        [Effect::Abort],
        "the other ranks may be in the validation"
    );
    let effects = rank.handle(stepped(6, false));
    assert!(!effects.contains(&validate(s(6))), "{effects:?}");
}

#[test]
fn rank_0_opens_the_store_and_a_world_of_one_needs_none() {
    let opens = |world| {
        let first = Order {
            rank: Rank(0),
            world,
            ..order(1)
        };
        let effects = GangRank::new(RULES, first).handle(Input::Loaded);
        effects.contains(&Effect::OpenStore)
    };
    assert!(opens(2) && !opens(1));
}

#[test]
fn a_stop_without_checkpoint_keeps_the_step_in_memory_and_a_later_request_saves_it() {
    let mut rank = training();
    assert_eq!(
        rank.handle(stopping(1, GracefulStop::WithoutCheckpoint)),
        []
    );
    // The stop only takes effect once all ranks know of it.
    assert!(
        rank.handle(stepped(1, false))
            .contains(&Effect::Step(Step(2)))
    );
    let effects = rank.handle(stepped(2, true));
    assert_eq!(effects, [Effect::Report(Step(2)), Effect::Leave]);
    rank.handle(Input::Left);
    assert_eq!(
        rank.handle(stopping(1, GracefulStop::WithCheckpoint)),
        [Effect::Save(Step(2))]
    );
    rank.handle(Input::Saved { step: Step(2) });
    assert_eq!(
        rank.handle(stopping(1, GracefulStop::WithCheckpoint)),
        [],
        "once"
    );
}

#[test]
fn a_stop_with_checkpoint_writes_a_shard_of_the_step_at_which_all_stop() {
    let mut rank = training();
    rank.handle(stopping(1, GracefulStop::WithCheckpoint));
    let effects = rank.handle(stepped(1, true));
    assert_eq!(
        effects,
        [
            Effect::Save(Step(1)),
            Effect::Report(Step(1)),
            Effect::Leave
        ]
    );
    assert_eq!(rank.handle(stopping(1, GracefulStop::WithCheckpoint)), []);
}

#[test]
fn a_broken_group_costs_the_partial_step_alone() {
    let mut rank = training();
    rank.handle(stepped(1, false));
    let error = "connection closed by peer".to_owned();
    assert_eq!(
        rank.handle(broke()),
        [Effect::Phase(RankPhase::Broken { error })]
    );
    assert_eq!(rank.held(), Some(label(1, 1)));
    assert_eq!(rank.handle(Input::Ordered(order(2))), adopts(order(2)));
    let holdings = vec![Some(label(1, 0)), Some(label(1, 1))];
    let source = StateSource::Memory {
        root: Rank(1),
        label: label(1, 1),
        all: false,
    };
    let holds = true;
    assert_eq!(
        rank.handle(Input::Met { holdings }),
        [Effect::Synchronize { source, holds }]
    );
    rank.handle(Input::Synchronized);
    assert_eq!(rank.held(), Some(label(2, 1)));
}

#[test]
fn a_newer_generation_unblocks_the_thread_and_is_adopted_after_the_older_one_is_left() {
    let mut rank = training();
    assert_eq!(rank.handle(Input::Ordered(order(2))), [Effect::Abort]);
    assert_eq!(rank.serving().generation, Generation(1));
    // The step still completed: it counts, but is not saved.
    let mut expected = vec![Effect::Report(Step(4))];
    expected.extend(adopts(order(2)));
    assert_eq!(rank.handle(stepped(4, false)), expected);
    assert_eq!(rank.held(), Some(label(1, 4)));
    assert_eq!(rank.handle(Input::Ordered(order(3))), [Effect::Abort]);
    assert_eq!(rank.handle(Input::Ordered(order(2))), [], "older");
    assert_eq!(rank.handle(broke()), adopts(order(3)));
}

#[test]
fn a_newer_generation_does_not_wait_for_a_shard_of_an_older_one() {
    let late = |end: Input| {
        let mut rank = training();
        rank.handle(stopping(1, GracefulStop::WithoutCheckpoint));
        rank.handle(stepped(2, true));
        rank.handle(Input::Left);
        assert_eq!(
            rank.handle(stopping(1, GracefulStop::WithCheckpoint)),
            [Effect::Save(Step(2))]
        );
        assert_eq!(rank.handle(Input::Ordered(order(2))), [Effect::Abort]);
        assert_eq!(rank.handle(end), adopts(order(2)));
    };
    late(broke());
    // The shard was just written.
    late(Input::Saved { step: Step(2) });
}

#[test]
fn a_standby_keeps_what_it_holds_and_gets_ready() {
    let mut rank = training();
    rank.handle(stepped(1, false));
    rank.handle(broke());
    let standby = Order {
        standby: true,
        ..order(2)
    };
    let ready = Effect::Phase(RankPhase::Ready);
    assert_eq!(
        rank.handle(Input::Ordered(standby)),
        [Effect::TakeUp(standby), ready]
    );
    assert_eq!(rank.held(), Some(label(1, 1)));
    assert_eq!(rank.handle(Input::Ordered(order(3))), adopts(order(3)));
}

#[test]
fn a_process_that_still_loads_adopts_the_newest_order_when_it_has_loaded() {
    let mut rank = GangRank::new(RULES, order(1));
    assert_eq!(rank.handle(Input::Ordered(order(2))), []);
    assert_eq!(rank.handle(Input::Loaded), adopts(order(2)));
}

#[test]
fn a_step_that_no_checkpoint_has_yet_is_saved_when_the_next_generation_begins() {
    let begins = |held: u64, saved: Option<u64>| {
        let resume = saved.map(|step| CheckpointRef {
            step: Step(step),
            generation: Generation(1),
        });
        let first = Order { resume, ..order(2) };
        let mut rank = GangRank::new(RULES, first);
        rank.handle(Input::Loaded);
        let holdings = vec![Some(label(1, held)); 2];
        rank.handle(Input::Met { holdings });
        rank.handle(Input::Synchronized)
    };
    let training = Effect::Phase(RankPhase::Training);
    let (save, next) = (Effect::Save(Step(4)), Effect::Step(Step(5)));
    assert_eq!(begins(4, None), [training.clone(), save, next.clone()]);
    assert_eq!(begins(4, Some(4)), [training.clone(), next]);
    assert_eq!(
        begins(6, Some(4)),
        [training.clone(), Effect::Save(Step(6)), Effect::Leave]
    );
    assert_eq!(begins(5, Some(4)), [training, Effect::Step(Step(6))]);
}

/// The group may break while other ranks still receive the state. This rank holds it already.
#[test]
fn a_state_that_was_taken_over_is_held_before_all_have_it() {
    let mut rank = GangRank::new(RULES, order(3));
    rank.handle(Input::Loaded);
    let holdings = vec![Some(label(2, 5)), None];
    rank.handle(Input::Met { holdings });
    rank.handle(Input::Holds(label(2, 5)));
    rank.handle(broke());
    assert_eq!(rank.held(), Some(label(2, 5)));
}
