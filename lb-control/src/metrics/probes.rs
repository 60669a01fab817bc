//! What health checks found.

use prometheus::proto::{Bucket, Histogram, MetricType};

use super::page::{Page, counter, gauge, labelled};
use crate::status::Snapshot;

/// Adds it.
pub(super) fn probes(page: &mut Page, snapshot: &Snapshot) {
    page.counters(
        "lb_probe_results_total",
        "Health checks done, by result.",
        snapshot
            .probes
            .iter()
            .flat_map(|probe| {
                probe.results.iter().map(|(result, n)| {
                    counter(
                        &[
                            ("pool", &probe.pool),
                            ("backend", &probe.backend),
                            ("result", result),
                        ],
                        *n,
                    )
                })
            })
            .collect(),
    );
    page.gauges(
        "lb_probe_certificate_expiry_time_seconds",
        "When the first of the certificates that a backend showed to its checks ends, in Unix time.",
        snapshot
            .probes
            .iter()
            .filter_map(|probe| {
                let labels = [("pool", &*probe.pool), ("backend", &*probe.backend)];
                Some(gauge(&labels, probe.certificate_expiry? as f64))
            })
            .collect(),
    );
    page.family(
        "lb_probe_duration_seconds",
        "How long health checks took.",
        MetricType::HISTOGRAM,
        snapshot
            .probes
            .iter()
            .map(|probe| {
                let mut histogram = Histogram::default();
                histogram.set_sample_count(probe.durations.count);
                histogram.set_sample_sum(probe.durations.sum_seconds);
                histogram.set_bucket(
                    probe
                        .durations
                        .buckets
                        .iter()
                        .map(|(upper_bound, count)| {
                            let mut bucket = Bucket::default();
                            bucket.set_upper_bound(*upper_bound);
                            bucket.set_cumulative_count(*count);
                            bucket
                        })
                        .collect(),
                );
                let mut metric = labelled(&[("pool", &probe.pool), ("backend", &probe.backend)]);
                metric.set_histogram(histogram);
                metric
            })
            .collect(),
    );
}
