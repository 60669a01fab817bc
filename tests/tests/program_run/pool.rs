//! A program that a test gets after another's use is as good as a new one.

use std::{panic::AssertUnwindSafe, panic::catch_unwind};

use anyhow::Result;
use lb_common::abi::map;
use lb_tests::program::{Outcome, Pool, Program, Sizes};

use crate::{
    defence::stay_on_one_core,
    lab::{Case, Lab},
    random::{Source, setup_in, sizes},
    reply_route::{Behind, Router, client, reply_to},
};

/// Of the frames that are compared.
const SEED: u64 = 8;

/// A number that no other program of the machine has.
fn id(program: &Program) -> Result<u32> {
    Ok(program.lb()?.info()?.id())
}

/// The program asks for a next hop.
fn ask(router: &mut Router) -> Result<()> {
    for case in Case::all().into_iter().filter(|case| case.is_nat()) {
        router.reply(&reply_to(case, client(case.v4, Behind::Unresolved)))?;
    }
    Ok(())
}

#[test]
fn every_map_of_a_reset_program_holds_what_a_new_ones_does() -> Result<()> {
    let new = Program::load(Sizes::default())?.contents()?;
    let mut router = Router::new(false)?;
    ask(&mut router)?;
    router.lab.program.fill(0xa5)?;
    let full = router.lab.program.contents()?;
    assert!(full.keys().eq(new.keys()), "other maps");
    for (name, contents) in &full {
        // The kernel lets nobody write what the program takes for constant, and
        // nothing is logged at level 0.
        if !name.starts_with(".rodata") && name != "AYA_LOGS" {
            assert_ne!(contents, &new[name], "{name} is as it was");
        }
    }

    router.lab.program.reset()?;
    assert_eq!(router.lab.program.contents()?, new);

    // The ring buffer was emptied by the look at it, so once more.
    drop(router);
    let mut router = Router::new(false)?;
    ask(&mut router)?;
    router.lab.program.reset()?;
    let requests = &router.lab.program.contents()?[map::NEIGHBOUR_REQUESTS];
    assert!(requests.is_empty(), "{requests:?}");
    Ok(())
}

/// What becomes of 5000 random frames, and the program.
fn outcomes(lab: Lab) -> Result<(Vec<Outcome>, Lab)> {
    let (lab, known) = setup_in(lab)?;
    let mut source = Source::new(SEED, &known);
    let outcomes = (0..5000)
        .map(|_| lab.program.run(&source.whole()))
        .collect::<Result<_>>()?;
    Ok((outcomes, lab))
}

#[test]
fn a_reset_program_does_with_packets_what_it_did_when_it_was_new() -> Result<()> {
    static POOL: Pool = Pool::new(1);
    stay_on_one_core();
    let (first, lab) = outcomes(Lab::of(POOL.take(sizes())?)?)?;
    let mut program = lab.program;
    let used = id(&program)?;
    program.fill(0xff)?;
    drop(program);

    let program = POOL.take(sizes())?;
    assert_eq!(id(&program)?, used, "another program");
    let (second, _) = outcomes(Lab::of(program)?)?;
    for (number, (first, second)) in first.iter().zip(&second).enumerate() {
        assert_eq!(first, second, "frame {number}");
    }
    let kinds = |action| first.iter().filter(|o| o.action == action).count();
    let kinds = (0..=3).map(kinds).collect::<Vec<_>>();
    assert!(kinds[1..].iter().all(|n| *n > 100), "by action: {kinds:?}");
    Ok(())
}

#[test]
fn a_program_is_used_again_unless_its_test_panicked_or_there_are_too_many() -> Result<()> {
    static POOL: Pool = Pool::new(1);
    let take = |services| {
        POOL.take(Sizes {
            services,
            ..Sizes::default()
        })
    };
    let first = id(&*take(64)?)?;
    assert_eq!(id(&*take(64)?)?, first);
    let other = id(&*take(65)?)?;
    assert_ne!(other, first, "of another size");
    // The one that was used last is kept.
    assert_eq!(id(&*take(65)?)?, other);

    let panicked = catch_unwind(AssertUnwindSafe(|| {
        let _program = take(65);
        panic!("as a test that fails");
    }));
    assert!(panicked.is_err());
    assert_ne!(id(&*take(65)?)?, other, "used after a panic");
    Ok(())
}
