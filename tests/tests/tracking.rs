//! Just-enough tracking against a small reference model: random histories of a
//! service, driven through the code that the kernel runs, compiled for the
//! host, and through the real program under BPF_PROG_TEST_RUN.
//!
//! The invariant: a flow that is idle for less than its time-out never changes
//! its member while that member serves it, whatever the pressure on the table.
//! `LB_TEST_SEED=n` repeats one history; `LB_TEST_FULL` runs ten times as many.

#[path = "tracking/history.rs"]
mod history;
#[path = "tracking/host.rs"]
mod host;
#[path = "tracking/kernel.rs"]
mod kernel;
#[path = "tracking/plant.rs"]
mod plant;

use history::{Options, Report, run};
use lb_tests::check;

/// Histories of one kind, each with a seed of its own.
fn histories(
    name: &str,
    count: u64,
    options: Options,
    mut one: impl FnMut(u64, Options) -> anyhow::Result<Report>,
) -> anyhow::Result<Report> {
    let seeds: Vec<u64> = match std::env::var("LB_TEST_SEED") {
        Ok(seed) => vec![seed.parse()?],
        Err(_) => (0..count
            * if std::env::var_os("LB_TEST_FULL").is_some() {
                10
            } else {
                1
            })
            .collect(),
    };
    let mut total = Report::default();
    for seed in &seeds {
        let report = one(*seed, options)?;
        anyhow::ensure!(
            report.violations.is_empty(),
            "{name}, seed {seed}: {}",
            report.violations.join("\n")
        );
        total.add(&report);
    }
    println!("{name}: {} histories, {total}", seeds.len());
    Ok(total)
}

fn on_host(seed: u64, options: Options) -> anyhow::Result<Report> {
    run(
        &mut host::Host::new(options.buckets, options.resets),
        seed,
        options,
    )
}

#[test]
fn with_room_in_the_table_no_flow_moves_on_the_host() {
    check(|| {
        let options = Options {
            buckets: 256,
            steps: 4000,
            flood: 0,
            resets: false,
        };
        let total = histories("host, roomy", 60, options, on_host)?;
        // The histories reach what they are meant to reach.
        anyhow::ensure!(
            total.found > 1000 && total.inserted > 1000 && total.refused == 0,
            "{total}"
        );
        anyhow::ensure!(total.changes > 1000 && total.stabilised > 100, "{total}");
        Ok(())
    });
}

#[test]
fn with_a_small_table_no_flow_moves_on_the_host() {
    check(|| {
        let options = Options {
            buckets: 2,
            steps: 4000,
            flood: 0,
            resets: false,
        };
        let total = histories("host, small table", 60, options, on_host)?;
        anyhow::ensure!(total.refused > 1000, "the table was never full: {total}");
        Ok(())
    });
}

#[test]
fn under_floods_of_syns_and_stray_acks_no_flow_moves_on_the_host() {
    check(|| {
        let options = Options {
            buckets: 16,
            steps: 3000,
            flood: 60,
            resets: false,
        };
        let total = histories("host, floods", 60, options, on_host)?;
        anyhow::ensure!(total.refused > 3000, "the table was never full: {total}");
        Ok(())
    });
}

fn in_kernel(seed: u64, options: Options) -> anyhow::Result<Report> {
    run(
        &mut kernel::Kernel::new(options.buckets, options.resets)?,
        seed,
        options,
    )
}

#[test]
fn no_flow_moves_in_the_kernel() {
    check(|| {
        let options = Options {
            buckets: 64,
            steps: 2500,
            flood: 0,
            resets: false,
        };
        let total = histories("kernel, roomy", 6, options, in_kernel)?;
        anyhow::ensure!(total.found > 100 && total.changes > 100, "{total}");
        Ok(())
    });
}

#[test]
fn under_floods_and_with_a_full_table_no_flow_moves_in_the_kernel() {
    check(|| {
        let options = Options {
            buckets: 8,
            steps: 2500,
            flood: 40,
            resets: false,
        };
        let total = histories("kernel, floods", 6, options, in_kernel)?;
        anyhow::ensure!(total.refused > 100, "the table was never full: {total}");
        Ok(())
    });
}

#[test]
fn host_and_kernel_decide_alike() {
    check(|| {
        let options = Options {
            buckets: 8,
            steps: 1500,
            flood: 20,
            resets: false,
        };
        for seed in 1000..1003 {
            let host = on_host(seed, options)?;
            let kernel = in_kernel(seed, options)?;
            anyhow::ensure!(
                host.trace == kernel.trace,
                "seed {seed}: packet {:?} differs",
                host.trace
                    .iter()
                    .zip(&kernel.trace)
                    .position(|(a, b)| a != b)
            );
            anyhow::ensure!(host.trace.len() > 1000);
        }
        Ok(())
    });
}

/// Flows of members that are gone are reset, and no others.
fn resetting(buckets: u32, flood: u32) -> Options {
    Options {
        buckets,
        steps: 3000,
        flood,
        resets: true,
    }
}

#[test]
fn flows_of_members_that_are_gone_are_reset_and_no_others_on_the_host() {
    check(|| {
        let total = histories("host, resets", 60, resetting(256, 0), on_host)?;
        anyhow::ensure!(total.reset > 1000 && total.found > 1000, "{total}");
        Ok(())
    });
}

#[test]
fn with_a_full_table_no_living_flow_is_reset_on_the_host() {
    check(|| {
        let total = histories("host, resets, floods", 60, resetting(8, 40), on_host)?;
        anyhow::ensure!(total.refused > 1000, "the table was never full: {total}");
        Ok(())
    });
}

#[test]
fn flows_of_members_that_are_gone_are_reset_and_no_others_in_the_kernel() {
    check(|| {
        let total = histories("kernel, resets", 4, resetting(64, 0), in_kernel)?;
        anyhow::ensure!(total.reset > 50, "{total}");
        let total = histories("kernel, resets, floods", 4, resetting(8, 20), in_kernel)?;
        anyhow::ensure!(total.refused > 50, "the table was never full: {total}");
        Ok(())
    });
}
