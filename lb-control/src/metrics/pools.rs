//! Which of the pools' rules for bad times are in force.

use super::{
    GaugeColumn, flag,
    page::{Page, gauge},
};
use crate::status::PoolHealth;

/// The rules of pools for bad times.
pub(super) fn pools(page: &mut Page, all: &[PoolHealth]) {
    let gauges: [GaugeColumn<PoolHealth>; 4] = [
        (
            "lb_pool_backends_up",
            "Backends of the pool that are up by their checks, of those that take part.",
            |p| p.up as f64,
        ),
        (
            "lb_pool_kept_in",
            "Backends that max_ejected keeps in although checks speak against them.",
            |p| p.kept_in.len() as f64,
        ),
        (
            "lb_pool_overloaded_share",
            "Whether nobody is up and the overloaded backends share the load.",
            |p| flag(p.overloaded_share),
        ),
        (
            "lb_pool_all_down",
            "Whether every backend is down, so that when_all_down is in force.",
            |p| flag(p.all_down.is_some()),
        ),
    ];
    for (name, help, value) in gauges {
        let of = |pool: &PoolHealth| gauge(&[("pool", &pool.pool)], value(pool));
        page.gauges(name, help, all.iter().map(of).collect());
    }
}
